"""The GPU passes what any device must."""

import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.device.registry import open_device
from aegis_pipe.testing.check_device import DEVICE_CHECKS


def open_gpu() -> DeviceContext:
    return open_device("cuda", clock=SystemClock()).context


@pytest.mark.parametrize("name", DEVICE_CHECKS)
def test_cuda(name: str) -> None:
    DEVICE_CHECKS[name](open_gpu)


@pytest.mark.filterwarnings("ignore:The pynvml package is deprecated:FutureWarning")
def test_the_sensors_tell_temperature_and_clocks_until_the_device_is_closed() -> None:
    pytest.importorskip("pynvml", reason="no nvidia-ml-py")
    context = open_gpu()
    try:
        readings = context.read_sensors()
    finally:
        context.close()
    assert readings is not None, "NVML is not to be reached; the log says why"
    assert readings.temperature_celsius is not None
    assert 10 <= readings.temperature_celsius <= 110
    assert dict(readings.clocks_hertz).keys() == {"sm", "memory"}
    assert all(1e8 <= hertz <= 1e10 for _, hertz in readings.clocks_hertz)
    assert context.read_sensors() is None
