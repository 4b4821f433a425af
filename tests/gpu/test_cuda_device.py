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
