"""The GPU passes what any device must."""

import numpy as np
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


SMID = """
extern "C" __global__ void entry(unsigned* out) {
  unsigned id;
  asm volatile("mov.u32 %0, %smid;" : "=r"(id));
  if (threadIdx.x == 0) out[blockIdx.x] = id;
}"""


def test_a_stream_keeps_to_its_multiprocessors() -> None:
    from aegis_pipe.device.cuda import driver
    from aegis_pipe.device.cuda.stream import handle_of

    with open_gpu() as context:
        parts = [context.create_stream(n, multiprocessors=size) for n, size in enumerate((16, 32))]
        blocks = 4096
        address = driver.allocate(4 * blocks)
        ordinal = driver.device(0)
        major, minor = (
            driver.attribute(ordinal, f"COMPUTE_CAPABILITY_{part}") for part in ("MAJOR", "MINOR")
        )
        library = driver.load_library(driver.compile_cubin(SMID, f"sm_{major}{minor}"))
        kernel, arguments = driver.kernel_function(library, "entry"), driver.Arguments([address])
        seen = []
        for stream in parts:
            driver.launch(kernel, (blocks, 1, 1), (64, 1, 1), 0, handle_of(stream), arguments)
            stream.synchronise()
            found = np.empty(blocks, np.uint32)
            driver.copy_to_host(found.ctypes.data, address, found.nbytes)
            seen.append(set(found.tolist()))
        driver.unload_library(library)
        driver.free(address)
    assert [len(each) for each in seen] == [16, 32]
    assert not seen[0] & seen[1]


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
