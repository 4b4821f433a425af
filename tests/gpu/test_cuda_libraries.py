"""cuBLASLt and cuDNN compute what they are asked for: every algorithm offered, against float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from types import ModuleType

import numpy as np
import pytest

from aegis_pipe.device.cuda.cublaslt import CublasLt, MatrixProduct, MatrixProductPlan
from aegis_pipe.device.cuda.cudnn_convolution import Convolution, ConvolutionPlans, Cudnn

WORKSPACE_BYTES = 32 * 2**20
TOLERANCE = {"float32": 1e-6, "float16": 1e-3}


class Memory:
    """Arrays on the GPU, by plain driver calls."""

    def __init__(self, driver: ModuleType) -> None:
        self._driver = driver
        self._addresses: list[int] = []

    def call(self, name: str, *arguments: object) -> tuple[object, ...]:
        error, *results = getattr(self._driver, name)(*arguments)
        assert error == self._driver.CUresult.CUDA_SUCCESS, f"{name}: {error}"
        return tuple(results)

    def put(self, array: np.ndarray) -> int:
        (address,) = self.call("cuMemAlloc", max(array.nbytes, 1))
        self._addresses.append(int(address))
        self.call("cuMemcpyHtoD", address, array.ctypes.data, array.nbytes)
        return int(address)

    def get(self, address: int, like: np.ndarray) -> np.ndarray:
        self.call("cuCtxSynchronize")
        array = np.empty_like(like)
        self.call("cuMemcpyDtoH", array.ctypes.data, address, array.nbytes)
        return array

    def free(self) -> None:
        while self._addresses:
            self.call("cuMemFree", self._addresses.pop())


@pytest.fixture
def memory() -> Iterator[Memory]:
    driver = pytest.importorskip("cuda.bindings.driver", reason="no cuda-bindings")
    pathfinder = pytest.importorskip("cuda.pathfinder", reason="no cuda-pathfinder")
    try:
        error, *_ = driver.cuInit(0)
    except RuntimeError as failure:
        pytest.skip(f"no CUDA driver: {failure}")
    if error != driver.CUresult.CUDA_SUCCESS:
        pytest.skip(f"no GPU: {error}")
    for library in ("nvrtc", "cublasLt", "cudnn"):
        pathfinder.load_nvidia_dynamic_lib(library)
    memory = Memory(driver)
    (device,) = memory.call("cuDeviceGet", 0)
    (context,) = memory.call("cuDevicePrimaryCtxRetain", device)
    memory.call("cuCtxSetCurrent", context)
    yield memory
    memory.free()
    memory.call("cuDevicePrimaryCtxRelease", device)


def values(*shape: int, dtype: str) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def assert_close(got: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert error < TOLERANCE[dtype]


PRODUCTS = [
    MatrixProduct(m=128, n=768, k=512, dtype="float16", w_transposed=True, bias=True),
    MatrixProduct(m=16, n=64, k=32, dtype="float16", bias=True, activation="gelu_tanh"),
    MatrixProduct(m=16, n=64, k=96, dtype="float32", bias=True, activation="relu", residual=True),
    MatrixProduct(m=24, n=40, k=56, dtype="float32", x_transposed=True, alpha=0.5),
    MatrixProduct(
        m=32,
        n=48,
        k=64,
        dtype="float32",
        batch=5,
        x_batch_stride=32 * 64,
        w_batch_stride=64 * 48,
        y_batch_stride=32 * 48,
    ),
]


@pytest.mark.parametrize("product", PRODUCTS)
def test_every_algorithm_of_a_product(memory: Memory, product: MatrixProduct) -> None:
    p = product
    x = values(p.batch, *((p.k, p.m) if p.x_transposed else (p.m, p.k)), dtype=p.dtype)
    w = values(p.batch, *((p.n, p.k) if p.w_transposed else (p.k, p.n)), dtype=p.dtype)
    bias, residual = values(p.n, dtype=p.dtype), values(p.batch, p.m, p.n, dtype=p.dtype)
    wide_x = x.astype(np.float64).transpose(0, *((2, 1) if p.x_transposed else (1, 2)))
    wide_w = w.astype(np.float64).transpose(0, *((2, 1) if p.w_transposed else (1, 2)))
    expected = p.alpha * wide_x @ wide_w
    expected = expected + bias if p.bias else expected
    expected = expected + residual if p.residual else expected
    if p.activation == "relu":
        expected = np.maximum(expected, 0)
    elif p.activation:
        inner = np.sqrt(2 / np.pi) * (expected + 0.044715 * expected**3)
        expected = 0.5 * expected * (1 + np.tanh(inner))
    y = np.full((p.batch, p.m, p.n), np.nan, p.result_dtype)
    addresses = {"x": memory.put(x), "w": memory.put(w), "bias": memory.put(bias)}
    if p.residual:
        addresses["residual"] = memory.put(residual)
    workspace = memory.put(np.zeros(WORKSPACE_BYTES, np.uint8))
    cublaslt = CublasLt()
    plan = MatrixProductPlan(cublaslt, p)
    algorithms = list(plan.algorithms(WORKSPACE_BYTES))
    assert algorithms
    for algorithm in algorithms:
        runs = []
        for _ in range(2):
            target = memory.put(y)
            plan.enqueue(algorithm, 0, **addresses, y=target, workspace=workspace)
            runs.append(memory.get(target, y))
        assert_close(runs[0], expected, p.dtype)
        assert all(a.tobytes() == b.tobytes() for a, b in pairwise(runs))
    plan.close()
    cublaslt.close()


CONVOLUTION = Convolution(
    batch=2,
    channels=16,
    spatial=(9, 11),
    filters=24,
    window=(3, 3),
    strides=(2, 1),
    dilations=(1, 2),
    pads_before=(0, 1),
    pads_after=(1, 2),
    dtype="float16",
    bias=True,
    residual=True,
    activation="relu",
)


def reference(c: Convolution, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Convolve window by window, in float64."""
    pads = [(0, 0), *zip(c.pads_before, c.pads_after, strict=True), (0, 0)]
    padded = np.pad(x.astype(np.float64), pads)
    y = np.zeros((c.batch, *c.result, c.filters))
    for i, j in np.ndindex(*c.window):
        rows = slice(i * c.dilations[0], None, c.strides[0])
        columns = slice(j * c.dilations[1], None, c.strides[1])
        window = padded[:, rows, columns][:, : c.result[0], : c.result[1]]
        y += window @ w[:, i, j].T.astype(np.float64)
    return y


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_plan_of_a_convolution(memory: Memory, dtype: str) -> None:
    c = replace(CONVOLUTION, dtype=dtype)
    x = values(c.batch, *c.spatial, c.channels, dtype=dtype)
    w = values(c.filters, *c.window, c.channels, dtype=dtype)
    bias, residual = values(c.filters, dtype=dtype), values(c.batch, *c.result, 24, dtype=dtype)
    expected = np.maximum(reference(c, x, w) + bias + residual, 0)
    y = np.full(expected.shape, np.nan, dtype)
    addresses = {
        name: memory.put(array)
        for name, array in {"x": x, "w": w, "bias": bias, "residual": residual}.items()
    }
    workspace = memory.put(np.zeros(WORKSPACE_BYTES, np.uint8))
    cudnn = Cudnn()
    plans = ConvolutionPlans(cudnn, c)
    offered = list(plans.algorithms(WORKSPACE_BYTES))
    assert offered
    results = {}
    for index, algorithm in offered:
        target = memory.put(y)
        plans.enqueue(index, 0, **addresses, y=target, workspace=workspace)
        results[algorithm] = memory.get(target, y)
        assert_close(results[algorithm], expected, dtype)
    wanted = offered[-1][1]
    again = ConvolutionPlans(cudnn, c, wanted)
    ((index, algorithm),) = again.algorithms(WORKSPACE_BYTES)
    assert algorithm == wanted
    target = memory.put(y)
    again.enqueue(index, 0, **addresses, y=target, workspace=workspace)
    assert memory.get(target, y).tobytes() == results[wanted].tobytes()
    cudnn.close()


def test_early_starts_are_taken_back(memory: Memory) -> None:
    """A kernel recorded to begin before the one ahead has ended is made to wait for it."""
    from cuda.bindings import driver as cu

    from aegis_pipe.device.cuda import driver

    c = replace(CONVOLUTION, dtype="float32", tf32=True, channels=256, spatial=(28, 28))
    c = replace(c, filters=512, window=(1, 1), dilations=(1, 1), strides=(2, 2))
    c = replace(c, pads_before=(0, 0), pads_after=(0, 0))
    size_bytes = 4 * max(2 * 28 * 28 * 256, 512 * 256, 2 * 14 * 14 * 512)
    addresses = {
        name: memory.put(np.zeros(size_bytes, np.uint8))
        for name in ("x", "w", "bias", "residual", "y")
    }
    workspace = memory.put(np.zeros(WORKSPACE_BYTES, np.uint8))
    cudnn = Cudnn()
    plans = ConvolutionPlans(cudnn, c)
    stream = driver.create_stream(0)

    def early(graph: int) -> int:
        count = int(driver.checked(cu.cuGraphGetEdges, graph)[-1])
        kinds = driver.checked(cu.cuGraphGetEdges, graph, count)[2]
        return sum(kind.type != 0 for kind in kinds)

    found = 0
    for index, _ in list(plans.algorithms(WORKSPACE_BYTES)):
        plans.enqueue(index, stream, **addresses, workspace=workspace)
        driver.synchronise_stream(stream)
        driver.begin_capture(stream)
        for _ in range(2):
            plans.enqueue(index, stream, **addresses, workspace=workspace)
        graph = driver.end_capture(stream)
        _, edges = driver.recorded(graph)
        starts = [edge for edge in edges if edge.kind is not None]
        found += len(starts)
        assert len(starts) == early(graph)
        plain = [edge._replace(kind=None) for edge in starts]
        driver.replace_edges(graph, starts, plain)
        assert early(graph) == 0
        assert sorted(each.key for each in driver.recorded(graph)[1]) == sorted(
            each._replace(kind=None).key for each in edges
        )
        driver.destroy_graph(driver.instantiate(graph))
    driver.destroy_stream(stream)
    cudnn.close()
    if not found:
        pytest.skip("cuDNN lets no kernel begin early on this GPU")
