"""Kernels in place of fills: the same memory, in the same order, launched quicker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from aegis_pipe.device.cuda.cudnn_convolution import Convolution, ConvolutionPlans, Cudnn
from aegis_pipe.device.cuda.fills import Fills
from aegis_pipe.device.protocols import DeviceContext

driver = pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from cuda.bindings import driver as cu  # noqa: E402

COUNT = 1 << 16
SLOW_COPY = """
extern "C" __global__ void entry(const int* from, int* to, int count) {
  int at = blockIdx.x * blockDim.x + threadIdx.x;
  long long begin = clock64();
  while (clock64() - begin < 20000) {}
  if (at < count) to[at] = from[at];
}
"""


@pytest.fixture
def fills(context: DeviceContext) -> Fills:
    found = context._fills  # type: ignore[attr-defined]
    assert isinstance(found, Fills)
    return found


@pytest.fixture
def copy(context: DeviceContext) -> Iterator[Callable[[int, int, int], None]]:
    """Enqueues a kernel that takes its time."""
    image = driver.compile_cubin(SLOW_COPY, f"sm_{driver.architecture(driver.device(0))}")
    library = driver.load_library(image)
    kernel = driver.kernel_function(library, "entry")
    kept: list[Any] = []

    def enqueue(source: int, target: int, stream: int) -> None:
        kept.append(driver.Arguments([source, target, COUNT]))
        driver.launch(kernel, (COUNT // 256, 1, 1), (256, 1, 1), 0, stream, kept[-1])

    yield enqueue
    driver.unload_library(library)


def _recorded(stream: int, enqueue: Callable[[], None]) -> int:
    driver.begin_capture(stream)
    enqueue()
    return int(driver.end_capture(stream))


def _run(launchable: int, stream: int) -> None:
    driver.launch_graph(launchable, stream)
    driver.synchronise_stream(stream)


def test_order_is_kept(
    context: DeviceContext, fills: Fills, stream: int, copy: Callable[[int, int, int], None]
) -> None:
    a, b, c = (driver.allocate(4 * COUNT) for _ in range(3))
    ones, found = np.ones(COUNT, np.int32), np.empty(COUNT, np.int32)
    driver.copy_to_device(a, ones.ctypes.data, ones.nbytes)

    def enqueue() -> None:
        # What the first copy writes and the second reads is filled between them.
        copy(a, b, stream)
        driver.enqueue_fill(b, 0xAB, 4 * COUNT - 4, stream)
        copy(b, c, stream)

    graph = _recorded(stream, enqueue)
    assert len(driver.fills(graph)) == 1
    before = driver.recorded(graph)
    fills.replace(graph)
    assert not driver.fills(graph)
    nodes, edges = driver.recorded(graph)
    assert (len(nodes), len(edges)) == (len(before[0]), len(before[1])) == (3, 2)
    is_early = driver.architecture(driver.device(0)) >= 90
    assert sum(edge.kind is not None for edge in edges) == is_early
    launchable = driver.instantiate(graph)
    for _ in range(50):
        _run(launchable, stream)
        driver.copy_to_host(found.ctypes.data, c, found.nbytes)
        assert (found[:-1].view(np.uint32) == 0xABABABAB).all()
        assert found[-1] == 1
    driver.destroy_graph(launchable)
    for address in (a, b, c):
        driver.free(address)


def test_what_is_no_line_of_words_stays(fills: Fills, stream: int) -> None:
    address = driver.allocate(1024)

    def enqueue() -> None:
        driver.enqueue_fill(address, 1, 1024, stream)
        driver.enqueue_fill(address, 2, 1023, stream)
        driver.enqueue_fill(address, 3, 512, stream)
        driver.checked(cu.cuMemsetD2D8Async, address, 256, 4, 128, 2, stream)

    graph = _recorded(stream, enqueue)
    fills.replace(graph)
    assert len(driver.fills(graph)) == 2
    launchable = driver.instantiate(graph)
    _run(launchable, stream)
    found = np.empty(1024, np.uint8)
    driver.copy_to_host(found.ctypes.data, address, found.nbytes)
    expected = np.full(1024, 2, np.uint8)
    expected[:512] = 3
    expected[:128] = expected[256:384] = 4
    expected[1023] = 1
    np.testing.assert_array_equal(found, expected)
    driver.destroy_graph(launchable)
    driver.free(address)


@pytest.mark.gpu_alone
def test_launches_cost_less(
    fills: Fills, stream: int, copy: Callable[[int, int, int], None]
) -> None:
    """Fills of some sizes are kernels to the driver, too; of those that are not, each costs."""
    a, b = driver.allocate(4 * COUNT), driver.allocate(4 * COUNT)
    found = {}
    for size_bytes in (4, 64, 528, 4096, 1 << 15, 4 * COUNT):

        def enqueue(size_bytes: int = size_bytes) -> None:
            for _ in range(40):
                driver.enqueue_fill(b, 0, size_bytes, stream)
                copy(a, b, stream)

        launchables = []
        for is_replaced in (False, True):
            graph = _recorded(stream, enqueue)
            if is_replaced:
                fills.replace(graph)
            launchables.append(driver.instantiate(graph))
        times: list[list[int]] = [[], []]
        for _ in range(30):
            for launchable, spent in zip(launchables, times, strict=True):
                begin = time.perf_counter_ns()
                driver.launch_graph(launchable, stream)
                spent.append(time.perf_counter_ns() - begin)
                driver.synchronise_stream(stream)
        with_fills, with_kernels = (float(np.median(spent)) for spent in times)
        found[size_bytes] = (with_fills, with_kernels)
        for launchable in launchables:
            driver.destroy_graph(launchable)
    for address in (a, b):
        driver.free(address)
    assert any(3 * with_kernels < with_fills for with_fills, with_kernels in found.values()), found


def test_every_plan_of_a_convolution_that_fills(
    context: DeviceContext, fills: Fills, stream: int
) -> None:
    """ResNet-50's first 3x3 convolution at batch 32: cuDNN sets its semaphores to zero."""
    c = Convolution(32, 64, (56, 56), 64, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), "float16")
    generator = np.random.default_rng(5)
    arrays = {
        "x": generator.standard_normal((32, 56, 56, 64)).astype(np.float16),
        "w": generator.standard_normal((64, 3, 3, 64)).astype(np.float16),
    }
    expected, found = (np.empty((32, 56, 56, 64), np.float16) for _ in range(2))
    workspace_bytes = 32 << 20
    memory = {name: driver.allocate(array.nbytes) for name, array in arrays.items()}
    for name, array in arrays.items():
        driver.copy_to_device(memory[name], array.ctypes.data, array.nbytes)
    memory |= {"y": driver.allocate(found.nbytes), "workspace": driver.allocate(workspace_bytes)}
    addresses = {"bias": 0, "residual": 0, **memory}
    cudnn = Cudnn(context._handle)  # type: ignore[attr-defined]
    plans = ConvolutionPlans(cudnn, c)
    filled = 0
    for index, _ in list(plans.algorithms(workspace_bytes)):
        for target in (expected, found):
            graph = _recorded(stream, partial(plans.enqueue, index, stream, **addresses))
            if target is found:
                filled += len(driver.fills(graph))
                fills.replace(graph)
                assert not driver.fills(graph)
            launchable = driver.instantiate(graph)
            # What the one before left behind is no zeros.
            for _ in range(2):
                _run(launchable, stream)
            driver.copy_to_host(target.ctypes.data, memory["y"], target.nbytes)
            driver.destroy_graph(launchable)
        assert found.tobytes() == expected.tobytes()
    cudnn.close()
    for address in memory.values():
        driver.free(address)
    if not filled:
        pytest.skip("cuDNN fills nothing on this GPU")
