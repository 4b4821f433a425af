"""Every kernel family's sources compile for every architecture; NVRTC needs no GPU."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from aegis_pipe.kernel import Attribute, KernelRequest
from aegis_pipe.tensor import TensorSpec

pytest.importorskip("cuda.bindings.nvrtc", reason="no CUDA bindings")
driver = pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.faults import FaultWord  # noqa: E402
from aegis_pipe.device.cuda.kernels import KERNELS, byte_products, planar_convolutions  # noqa: E402
from aegis_pipe.device.cuda.kernels.registry import Binding, Machine  # noqa: E402
from tests.unit.device.cuda.assembler import spilled_bytes  # noqa: E402
from tests.unit.device.cuda.kernel_requests import examples  # noqa: E402

SHARED_KIB = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""Of a block, at most, by compute capability: what kernels are chosen by."""
SPILLED = {(80, "STFT, stft"): 8}
"""Bytes, around a cosine in double precision, in a kernel that nobody waits for."""


class CollectingCompiler:
    """Keeps sources instead of loading them."""

    def __init__(self) -> None:
        self.sources: list[str] = []

    def function(self, source: str, shared_bytes: int = 0) -> int:
        self.sources.append(source)
        return 1


class _Words:
    def word(self, node: str, kernel: str) -> FaultWord:
        return FaultWord(64, np.zeros(1, np.int32), node, kernel)


def _machine(capability: int, compiler: CollectingCompiler) -> Machine:
    shared_bytes = SHARED_KIB[capability] << 10
    return Machine(compiler, None, "none", capability, 132, shared_bytes_max=shared_bytes)


def sources_of(request: KernelRequest, capability: int = 90) -> list[str]:
    """Return the sources of the first kernel of our own that takes a request."""
    compiler = CollectingCompiler()
    machine = _machine(capability, compiler)
    for kernel in KERNELS.candidates(request.operator):
        choice = kernel.choose(request, machine)
        if choice is not None:
            addresses = [
                tuple(None if spec is None else 256 * (at + 1) for at, spec in enumerate(specs))
                for specs in (request.inputs, request.outputs)
            ]
            kernel.bind(Binding(request, choice, machine, *addresses, 4096, _Words()))
            return compiler.sources
    raise AssertionError(f"{request.operator} is not known")


def _request(
    operator: str,
    inputs: Sequence[tuple[int, ...]],
    output: tuple[int, ...],
    attributes: Mapping[str, Attribute] | None = None,
    dtype: object = np.float32,
) -> KernelRequest:
    specs = tuple(TensorSpec(np.dtype(dtype), shape) for shape in inputs)
    return KernelRequest(
        operator, "node", attributes or {}, specs, (TensorSpec(np.dtype(dtype), output),)
    )


_WINDOWS = {"kernel_shape": (3, 3), "strides": (1, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1)}
_CONV = {**_WINDOWS, "group": 1}
_HALF = ml_dtypes.bfloat16


def _depthwise() -> KernelRequest:
    request = _request(
        "com.microsoft.NhwcFusedConv",
        [(1, 8, 8, 16), (16, 1, 3, 3), (16,)],
        (1, 8, 8, 16),
        {**_CONV, "group": 16, "activation": "Clip", "activation_params": (0.0, 6.0)},
        np.float16,
    )
    return replace(request, constants={1: np.zeros((16, 1, 3, 3), np.float16)})


def _attention() -> KernelRequest:
    attributes = {
        "q_num_heads": 2,
        "kv_num_heads": 1,
        "scale": 0.5,
        "is_causal": 1,
        "softcap": 2.0,
        "left_window_size": -1,
        "right_window_size": -1,
    }
    return _request("Attention", [(1, 5, 8), (1, 7, 4), (1, 7, 4), (5, 7)], (1, 5, 8), attributes)


def _strided_attention() -> KernelRequest:
    view = (1, 2, 5, 4, 0, 4, 24)
    attributes = {
        **{f"{name}_view": (*view, 8 * place) for place, name in enumerate("qkv")},
        "y_view": (1, 2, 5, 4, 0, 4, 8, 0),
        "scale": 0.5,
    }
    return _request("aegis.StridedAttention", [(5, 24)] * 3, (5, 8), attributes)


def _skip() -> KernelRequest:
    shapes = [(2, 5, 64), (1, 5, 64), (64,), (64,), (64,)]
    request = _request(
        "com.microsoft.SkipLayerNormalization", shapes, (2, 5, 64), {"epsilon": 1e-5}, np.float16
    )
    statistics = TensorSpec(np.dtype(np.float32), (2, 5, 1))
    (result,) = request.outputs
    return replace(request, outputs=(result, statistics, None, result))


REQUESTS = {
    "add": _request("Add", [(4, 8), (8,)], (4, 8)),
    "gelu half": _request(
        "com.microsoft.BiasGelu", [(4, 8), (8,)], (4, 8), {"approximate": "none"}, np.float16
    ),
    "transpose": _request("Transpose", [(4, 6)], (6, 4), {"perm": (1, 0)}, _HALF),
    "softmax": _request("Softmax", [(4, 100)], (4, 100), {"axes": (1,)}, np.float16),
    "long softmax": _request("Softmax", [(4, 40000)], (4, 40000), {"axes": (1,)}),
    "columns": _request("ReduceMean", [(4, 5, 64)], (4, 64), {"axes": (1,), "keepdims": 0}),
    "layer": _request(
        "LayerNormalization", [(4, 768), (768,), (768,)], (4, 768), {"axis": 1, "epsilon": 1e-5}
    ),
    "skip": _skip(),
    "wide rms": _request(
        "RMSNormalization", [(4, 8192), (8192,)], (4, 8192), {"axis": 1, "epsilon": 1e-5}, _HALF
    ),
    "matmul": _request("MatMul", [(2, 5, 7), (7, 3)], (2, 5, 3)),
    "conv": _request("Conv", [(1, 3, 8, 8), (4, 3, 3, 3), (4,)], (1, 4, 8, 8), _CONV),
    "depthwise": _depthwise(),
    "attention": _attention(),
    "strided attention": _strided_attention(),
    "pool": _request("MaxPool", [(1, 3, 8, 8)], (1, 3, 8, 8), {**_WINDOWS, "storage_order": 0}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_compiles_everywhere(name: str) -> None:
    for capability in SHARED_KIB:
        sources = sources_of(REQUESTS[name], capability)
        assert sources, "a kernel that does something has a source"
        for source in sources:
            image = driver.compile_cubin(source, f"sm_{capability}")
            assert image.startswith(b"\x7fELF")


@pytest.fixture(scope="module")
def requests() -> list[KernelRequest]:
    return [request for request, _ in examples()]


def _sources(requests: Sequence[KernelRequest], capability: int) -> dict[str, list[str]]:
    """Return the sources of one request for each operator and kernel, by name."""
    machine = _machine(capability, CollectingCompiler())
    found: dict[str, list[str]] = {}
    for request in requests:
        for kernel in KERNELS.candidates(request.operator):
            choice = kernel.choose(request, machine)
            if choice is not None:
                name = f"{request.operator}, {choice.kernel}"
                if name not in found:
                    found[name] = [] if choice.view else sources_of(request, capability)
                break
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("capability", SHARED_KIB)
def test_every_operator_compiles_and_spills_nothing(
    requests: list[KernelRequest], capability: int
) -> None:
    all_sources = _sources(requests, capability)
    # Their kernels have tensor cores, and tests of their own.
    with_tensor_cores = {planar_convolutions.OPERATOR, byte_products.RESIDUAL}
    named = {name.partition(", ")[0] for name in all_sources} | with_tensor_cores
    assert named | {request.operator for request in REQUESTS.values()} == set(KERNELS.operators())
    pairs = [(name, source) for name, sources in all_sources.items() for source in sources]
    architecture = f"sm_{capability}"
    # The compiler lets go of Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        spilled = list(pool.map(lambda pair: spilled_bytes(pair[1], architecture), pairs))
    found = {
        (capability, name): each for (name, _), each in zip(pairs, spilled, strict=True) if each
    }
    assert {key for key, each in found.items() if each > SPILLED.get(key, 0)} == set()


def test_same_source_for_the_same_request() -> None:
    for request in REQUESTS.values():
        assert sources_of(request) == sources_of(request)


def test_a_source_that_is_wrong_is_told() -> None:
    with pytest.raises(AssertionError, match="undefined"):
        driver.compile_cubin('extern "C" __global__ void k() { nothing(); }', "sm_90")
