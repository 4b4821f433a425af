"""Products by warpgroups: what is offered, how weights are packed, sources that compile."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

pytest.importorskip("cuda.bindings.nvrtc", reason="no CUDA bindings")
pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from cuda.bindings import nvrtc

from aegis_pipe.device.cuda.cublaslt import MatrixProduct
from aegis_pipe.device.cuda.kernels import warpgroup_products
from aegis_pipe.device.cuda.kernels.elementwise import FUNCTIONS
from aegis_pipe.device.cuda.kernels.registry import Machine
from aegis_pipe.device.cuda.kernels.source import does_wait
from aegis_pipe.device.cuda.kernels.warpgroup_products import KERNEL_FAMILY, tilings
from aegis_pipe.device.cuda.kernels.warpgroup_source import (
    DEPTH,
    LINE_BYTES,
    ROWS,
    WarpgroupTiling,
    pack,
    packed_bytes,
    source_of,
    steps_of,
)

MULTIPROCESSORS = 132
HALF = np.dtype(np.float16)
(FAMILY,) = KERNEL_FAMILY
VIT = [(197, 768, 2304), (197, 768, 768), (197, 768, 3072), (197, 3072, 768)]


def product(m: int, k: int, n: int, **more: Any) -> MatrixProduct:
    return MatrixProduct(m=m, n=n, k=k, dtype="float16", bias=True, **more)


def machine(capability: int = 90) -> Machine:
    return Machine(None, None, "none", capability, MULTIPROCESSORS)  # type: ignore[arg-type]


def request(
    shape: tuple[int, int, int] = (20, 72, 40),
    *,
    dtype: object = np.float16,
    activation: str | None = None,
    is_constant: bool = True,
    **attributes: object,
) -> KernelRequest:
    m, k, n = shape
    specs = [TensorSpec(np.dtype(dtype), each) for each in ((m, k), (k, n), (n,), (m, n))]
    given: dict[str, Any] = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} | attributes
    operator = "Gemm"
    if activation is not None:
        given |= {"activation": activation, "activation_alpha": 0.01}
        operator = "com.microsoft.FusedGemm"
    constants = {1: np.zeros((k, n), dtype), 2: np.zeros(n, dtype)} if is_constant else {}  # type: ignore[call-overload]
    return KernelRequest(operator, "node", given, tuple(specs[:3]), (specs[3],), constants)


def offers(asked: KernelRequest, capability: int = 90) -> list[str]:
    assert FAMILY.alternatives is not None
    found = FAMILY.alternatives(asked, machine(capability))
    return [each.variant for each in found]


def test_what_is_offered_differs_and_is_the_same_every_time() -> None:
    found = offers(request())
    assert found
    assert max(Counter(found).values()) == 1
    assert offers(request()) == found
    assert FAMILY.choose(request(), machine()) is None


@pytest.mark.parametrize("activation", ["", "Relu", "Gelu", "FastGelu"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_ends_of_products(activation: str, dtype: object) -> None:
    assert offers(request(dtype=dtype, activation=activation))


def convolution(channels: int, window: int, side: int = 14) -> KernelRequest:
    """Return a convolution of channels last, with bias, residual and Relu."""
    reach = side - window + 1
    shapes = [(1, side, side, channels), (48, channels, window, window), (48,)]
    specs = [TensorSpec(HALF, shape) for shape in (*shapes, (1, reach, reach, 48))]
    attributes: dict[str, Any] = {
        "kernel_shape": (window, window),
        "strides": (1, 1),
        "dilations": (1, 1),
        "pads": (0, 0, 0, 0),
        "group": 1,
        "activation": "Relu",
        "activation_params": (),
    }
    constants = {at: np.zeros(shapes[at], np.float16) for at in (1, 2)}
    operator = "com.microsoft.NhwcFusedConv"
    return KernelRequest(operator, "node", attributes, tuple(specs), tuple(specs[3:]), constants)


def test_windows_of_one_pixel_are_products() -> None:
    assert FAMILY.alternatives is not None
    asked = convolution(64, 1)
    found = FAMILY.alternatives(asked, machine())
    assert {each.kernel for each in found} == {"conv.warpgroup"}
    operands, _, source = warpgroup_products._found(asked, found[0], machine())
    p = operands.product
    assert (p.m, p.k, p.n, p.activation, p.w_transposed) == (196, 64, 48, "relu", True)
    assert (operands.bias, operands.residual) == (2, 3)
    assert "const T* b, const T* r, T* y" in source
    assert len(found[0].packed[1].pack(np.zeros((48, 64, 1, 1), np.float16))) == packed_bytes(p)
    assert not offers(convolution(64, 3))
    assert not offers(convolution(60, 1))
    assert not offers(convolution(64, 1, side=28))


def test_what_is_not_offered() -> None:
    assert not offers(request(dtype=np.float32))
    assert not offers(request(is_constant=False))
    assert not offers(request(activation="Tanh"))
    assert not offers(request(alpha=0.5))
    assert not offers(request((20, 72, 44)))
    assert not offers(request((20, 76, 40)))
    assert not offers(request((513, 72, 40)))
    # The generation before has no such instructions, and neither has the one after.
    assert not offers(request(), 89)
    assert not offers(request(), 100)


@pytest.mark.parametrize("shape", [*VIT, (128, 3072, 768), (1, 64, 16), (512, 40, 4096)])
def test_what_is_tried_is_little_and_fits(shape: tuple[int, int, int]) -> None:
    p = product(*shape)
    found = tilings(p, MULTIPROCESSORS)
    assert 0 < len(found) <= 14
    for tiling in found:
        assert tiling.shared_bytes <= 227 << 10
        assert tiling.columns % 8 == 0
        assert tiling.columns <= 256
        assert tiling.stage_bytes % 1024 == 0
        splits, columns, rows = tiling.grid(p)
        assert splits <= steps_of(p)
        assert columns * tiling.columns >= p.n
        assert rows * ROWS >= p.m
        # A last tile's lines end within what is packed.
        last = (steps_of(p) - 1) * p.n + columns * tiling.columns
        assert last * LINE_BYTES <= packed_bytes(p)


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_weights_lie_as_blocks_read_them(is_transposed: bool, dtype: Any) -> None:
    p = replace(product(3, 136, 24), w_transposed=is_transposed)
    weights = np.arange(136 * 24).reshape(136, 24).astype(np.float32).astype(dtype)
    packed = np.full(packed_bytes(p), 0xA5, np.uint8)
    pack(p, weights.T if is_transposed else weights, packed)
    lines = packed.view(dtype).reshape(-1, 8, 8)
    for k, n in ((0, 0), (7, 1), (8, 7), (63, 9), (64, 23), (135, 14)):
        step, group = k // DEPTH, k % DEPTH // 8
        assert lines[step * 24 + n, group ^ n % 8, k % 8] == weights[k, n]
    # Behind the depth, and behind the last line, are zeros.
    assert not lines[2 * 24, 1:].any()
    assert not lines[3 * 24 :].any()


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize(("k", "n"), [(768, 768), (72, 3072), (64, 8), (8, 20), (200, 1)])
def test_every_byte_of_packed_weights(is_transposed: bool, k: int, n: int) -> None:
    """Whatever the bits are: no numbers among them, too."""
    p = replace(product(3, k, n), w_transposed=is_transposed)
    weights = np.random.default_rng(k + n).integers(0, 1 << 16, (k, n), np.uint16)
    lines = np.zeros((steps_of(p), n, 8, 8), np.uint16)
    for at in range(0, k, 8):
        step, group = at // DEPTH, at % DEPTH // 8
        lines[step, np.arange(n), group ^ np.arange(n) % 8] = weights[at : at + 8].T
    behind = bytes(packed_bytes(p) - lines.nbytes)
    given = weights.T if is_transposed else weights
    # As they lie in a file, and as a view of others.
    for each in (np.ascontiguousarray(given), np.asfortranarray(given)):
        packed = np.full(packed_bytes(p), 0xA5, np.uint8)
        pack(p, each.view(np.float16), packed)
        assert packed.tobytes() == lines.tobytes() + behind


def test_weights_with_axes_of_length_one_are_matrices() -> None:
    assert FAMILY.alternatives is not None
    specs = [TensorSpec(HALF, each) for each in ((2, 5, 72), (1, 72, 40), (2, 5, 40))]
    weights = np.arange(72 * 40).reshape(1, 72, 40).astype(np.float16)
    asked = KernelRequest("MatMul", "node", {}, tuple(specs[:2]), (specs[2],), {1: weights})
    layout = FAMILY.alternatives(asked, machine())[0].packed[1]
    p = replace(product(10, 72, 40), bias=False)
    expected = np.empty(packed_bytes(p), np.uint8)
    pack(p, weights[0], expected)
    assert np.array_equal(layout.pack(weights), expected)


def test_the_same_bytes_of_another_matrix_are_another_layout() -> None:
    """What is packed is kept by the bytes it is made of, its layout and its size."""
    assert FAMILY.alternatives is not None
    wide, deep = (
        FAMILY.alternatives(request((20, k, n)), machine())[0].packed[1]
        for k, n in ((64, 128), (128, 64))
    )
    assert wide.size_bytes == deep.size_bytes
    content = np.arange(64 * 128).astype(np.float16)
    packed = [
        each.pack(content.reshape(shape)).tobytes()
        for each, shape in ((wide, (64, 128)), (deep, (128, 64)))
    ]
    assert packed[0] != packed[1]
    assert wide.layout != deep.layout


def log_of(source: str) -> str:
    """Compile for compute 9.0 as the device does; return what the assembler says."""
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"k.cu", 0, [], [])
    options = [b"--std=c++17", b"--gpu-architecture=sm_90a", b"--ptxas-options=-v"]
    (code,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = bytes(size)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(program)
    assert code == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()
    return log.decode()


@pytest.mark.parametrize(
    ("p", "tiling", "activation"),
    [
        (product(197, 768, 2304), WarpgroupTiling(72, 1, 12), "a"),
        (product(197, 768, 3072), WarpgroupTiling(96, 1, 5, "late"), "gelu(a)"),
        (product(197, 3072, 768, residual=True), WarpgroupTiling(96, 4, 10), "vmax(a, 0.0f)"),
        (product(8, 72, 40), WarpgroupTiling(48, 2, 2, "end"), "gelu_tanh(a)"),
        (
            replace(product(1, 64, 16), dtype="bfloat16", bias=False, w_transposed=True),
            WarpgroupTiling(16, 1, 2),
            "a",
        ),
    ],
)
def test_sources_compile_and_keep_to_registers(
    p: MatrixProduct, tiling: WarpgroupTiling, activation: str
) -> None:
    source = source_of(p, tiling, activation, FUNCTIONS)
    assert does_wait(source)
    log = log_of(source)
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in log
    # The assembler tells of multiplications that it could not let run side by side.
    assert "wgmma" not in log


def test_the_next_kernel_begins_when_a_tiling_says() -> None:
    p = product(197, 768, 768)
    sources = {
        when: source_of(p, WarpgroupTiling(24, 1, 8, when)).partition('extern "C"')[2]
        for when in ("at once", "late", "end")
    }
    waits = {when: "wait_for_kernels_before();" in source for when, source in sources.items()}
    lets = {when: "let_the_next_begin();" in source for when, source in sources.items()}
    assert waits == {"at once": True, "late": False, "end": False}
    assert lets == {"at once": False, "late": True, "end": False}


def test_sources_of_an_alternative_are_those_it_is_bound_with() -> None:
    assert FAMILY.alternatives is not None
    assert FAMILY.sources is not None
    asked = request((197, 768, 3072), activation="Gelu")
    found = FAMILY.alternatives(asked, machine())
    sources = [FAMILY.sources(asked, each, machine()) for each in found]
    assert all(len(each) == 1 for each in sources)
    assert len({each[0] for each in sources}) == len(found)
    operands, tiling, _ = warpgroup_products._found(asked, found[-1], machine())
    assert operands.product.activation == "gelu"
    assert tiling == tilings(operands.product, MULTIPROCESSORS)[-1]
