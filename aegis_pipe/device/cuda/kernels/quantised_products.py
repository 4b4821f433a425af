"""Products of quantised matrices: exact sums in int32, rescaled as they are written.

One tiled product for all; what its elements are, expressions say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aegis_pipe.device.cuda.faults import INDEX_OUT_OF_RANGE
from aegis_pipe.device.cuda.kernels.each import each, given, results, simple_kernel
from aegis_pipe.device.cuda.kernels.operands import (
    integer,
    integers,
    number,
    operand,
    required,
    result,
)
from aegis_pipe.device.cuda.kernels.quantisation import launch_range, saturated
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.device.cuda.kernels.small_types import SMALL_INTEGERS
from aegis_pipe.device.cuda.kernels.source import (
    ALL,
    FLOAT32,
    FLOATS,
    Walk,
    broadcast_strides,
    computed,
    literal,
    stored,
)
from aegis_pipe.device.cuda.kernels.tiles import tiled_product
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_EIGHT_BITS = frozenset({np.dtype(np.int8), np.dtype(np.uint8)})
_UINT8 = np.dtype(np.uint8)


@dataclass(frozen=True, slots=True)
class Matrices:
    """Shapes of a product, with a batch that broadcasts."""

    m: int
    n: int
    k: int
    batch: tuple[int, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]

    @classmethod
    def of(
        cls, left: Sequence[int], right: Sequence[int], *, turned: tuple[bool, bool]
    ) -> Matrices:
        """Read the shapes of both operands, and which of them are transposed."""
        left = tuple(left) if len(left) > 1 else (1, *left)
        right = tuple(right) if len(right) > 1 else (*right, 1)
        m, k = left[-2:][::-1] if turned[0] else left[-2:]
        n = right[-2] if turned[1] else right[-1]
        batch = np.broadcast_shapes(left[:-2], right[:-2])
        return cls(m, n, k, batch, left, right)

    def offset(self, shape: Sequence[int]) -> str:
        """Return a C expression: where the matrix of batch `z` begins."""
        size = shape[-2] * shape[-1]
        strides = [s * size for s in broadcast_strides(shape[:-2], self.batch)]
        return Walk.of(self.batch or (1,), [strides or [0]]).offset(0, "z")


def _index(spec: TensorSpec, matrices: Matrices, vector: str) -> str:
    """Return which of its values a parameter has: one, one a row, one a column, or in full."""
    if spec.element_count == 1:
        return "0"
    if len(spec.shape) == 1:
        return vector
    shape = (*matrices.batch, matrices.m, matrices.n)
    strides = broadcast_strides(spec.shape, shape)
    where = f"(((long long)z * {matrices.m} + i) * {matrices.n} + j)"
    if strides[-2] == 0:
        where = where.replace(" i)", " 0)")
    if strides[-1] == 0:
        where = where.replace(" j)", " 0)")
    return Walk.of(shape, [strides]).offset(0, where)


# --- MatMulInteger and QLinearMatMul ----------------------------------------------------------


def _positions(request: KernelRequest) -> tuple[int, int, int]:
    """Return where B and the zero points of A and B are."""
    return (3, 2, 5) if request.operator == "QLinearMatMul" else (1, 2, 3)


def _accepts_integer(request: KernelRequest) -> bool:
    right_at, _, _ = _positions(request)
    return required(request).dtype in _EIGHT_BITS and required(request, right_at).dtype in (
        _EIGHT_BITS
    )


MATMUL_NAMES = {"as": 1, "bs": 4, "ys": 6, "yz": 7}
"""Operands of `multiplied` for QLinearMatMul, by position."""


def _parameter(
    request: KernelRequest, matrices: Matrices, name: str, position: int, vector: str
) -> str:
    spec = operand(request, position)
    return "" if spec is None else f"{name}[{_index(spec, matrices, vector)}]"


def matmul_factor(request: KernelRequest, matrices: Matrices) -> str:
    """Return a C expression: QLinearMatMul's levels to one of the sum, at z, i, j."""
    a_scale, b_scale, y_scale = (
        _parameter(request, matrices, name, MATMUL_NAMES[name], vector)
        for name, vector in (("as", "i"), ("bs", "j"), ("ys", "i"))
    )
    return f"((float)get({a_scale}) * (float)get({b_scale}) / (float)get({y_scale}))"


def multiplied(request: KernelRequest, matrices: Matrices) -> str:
    """Return a C expression: MatMulInteger's or QLinearMatMul's result for `s` at z, i, j."""
    if request.operator == "MatMulInteger":
        return "s"
    target = result(request)
    y_zero = _parameter(request, matrices, "yz", MATMUL_NAMES["yz"], "i")
    real = f"rintf((float)s * {matmul_factor(request, matrices)}) + (float){y_zero}"
    return f"({stored(target.dtype)}){saturated(real, 'float', target.dtype)}"


def _bind_integer(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    right_at, a_zero_at, b_zero_at = _positions(request)
    matrices = Matrices.of(
        required(request).shape, required(request, right_at).shape, turned=(False, False)
    )

    a_zero = _parameter(request, matrices, "a_zero", a_zero_at, "i")
    b_zero = _parameter(request, matrices, "b_zero", b_zero_at, "j")
    left = f"(int)a[{matrices.offset(matrices.left)} + (long long)i * {matrices.k} + q]"
    right = f"(int)b[{matrices.offset(matrices.right)} + (long long)q * {matrices.n} + j]"
    names = {"a": 0, "b": right_at, "a_zero": a_zero_at, "b_zero": b_zero_at}
    if request.operator == "QLinearMatMul":
        names |= MATMUL_NAMES
    return tiled_product(
        binding,
        (matrices.m, matrices.n, matrices.k),
        math.prod(matrices.batch),
        kind="int",
        left=f"{left} - (int){a_zero}" if a_zero else left,
        right=f"{right} - (int){b_zero}" if b_zero else right,
        final=f"y[place] = {multiplied(request, matrices)};",
        parameters=[*given(binding, names), *results(binding, {"y": 0})],
    )


# --- QGemm ------------------------------------------------------------------------------------

_A, _B, _A_SCALE, _A_ZERO, _B_SCALE, _B_ZERO, _BIAS, _Y_SCALE, _Y_ZERO = range(9)


def _accepts_gemm(request: KernelRequest) -> bool:
    left = required(request)
    scalars = [operand(request, i) for i in (_A_SCALE, _A_ZERO, _Y_SCALE, _Y_ZERO)]
    is_dynamic = left.dtype == FLOAT32 and operand(request, _A_SCALE) is None
    return (
        required(request, _B).dtype in _EIGHT_BITS
        and (left.dtype in _EIGHT_BITS or is_dynamic)
        and all(spec.element_count == 1 for spec in scalars if spec)
        and (operand(request, _Y_SCALE) is not None) == (result(request).dtype in _EIGHT_BITS)
    )


def _gemm_workspace(request: KernelRequest) -> int:
    """Return room for the scale and zero point of an A that is quantised on the way in."""
    return 16 if required(request).dtype == FLOAT32 else 0


GEMM_NAMES = {"as": _A_SCALE, "bs": _B_SCALE, "bias": _BIAS, "ys": _Y_SCALE, "yz": _Y_ZERO}
"""Operands of `gemm_result`, by position."""


def gemm_factor(request: KernelRequest) -> str:
    """Return a C expression: what the sum is multiplied by, at j."""
    factor = f"(*as * bs[{'j' if required(request, _B_SCALE).element_count > 1 else '0'}])"
    if number(request, "alpha") != 1:
        factor = f"({factor} * {literal(number(request, 'alpha'), 'float')})"
    return factor if operand(request, _Y_SCALE) is None else f"({factor} / *ys)"


def gemm_total(request: KernelRequest, m: int, n: int) -> tuple[str, str]:
    """Return C expressions: the sum `s` at i, j with what is added to integers, and what is after.

    The second is "" if nothing is: a bias is the one or the other, by its type.
    """
    bias = operand(request, _BIAS)
    if bias is None:
        return "(float)s", ""
    at = Walk.of((m, n), [broadcast_strides(bias.shape[-2:], (m, n))]).offset(
        0, f"((unsigned)i * {n}u + j)"
    )
    if bias.shape[-1:] == (n,) and bias.element_count == n:
        at = "j"
    if bias.dtype.kind == "i":
        return f"(float)(s + bias[{at}])", ""
    return "(float)s", f"(float)get(bias[{at}])"


def gemm_result(request: KernelRequest, m: int, n: int, factor: str = "") -> str:
    """Return a C expression: QGemm's result for the sum `s` at i, j."""
    target = result(request)
    factor = factor or gemm_factor(request)
    total, further = gemm_total(request, m, n)
    if operand(request, _Y_SCALE) is None:
        final = f"{total} * {factor}{f' + {further}' if further else ''}"
        return f"To<{stored(target.dtype)}>::of({final})"
    zero_text = " + (float)*yz" if operand(request, _Y_ZERO) is not None else ""
    real = f"rintf({total} * {factor}){zero_text}"
    levels = integers(request, "levels")
    return f"({stored(target.dtype)}){saturated(real, 'float', target.dtype, levels)}"


def _bind_gemm(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    left_spec = required(request)
    turned = (bool(integer(request, "transA")), bool(integer(request, "transB")))
    matrices = Matrices.of(left_spec.shape, required(request, _B).shape, turned=turned)
    m, n, k = matrices.m, matrices.n, matrices.k
    launches: list[Enqueue] = []
    names = {"a": _A, "b": _B, "az": _A_ZERO, "bz": _B_ZERO}
    parameters = given(binding, {**names, **GEMM_NAMES})
    at_a = f"{matrices.offset(matrices.left)} + " + (
        f"(long long)q * {m} + i" if turned[0] else f"(long long)i * {k} + q"
    )
    at_b = f"{matrices.offset(matrices.right)} + " + (
        f"(long long)j * {k} + q" if turned[1] else f"(long long)q * {n} + j"
    )
    left = f"(int)a[{at_a}]"
    if operand(request, _A_ZERO) is not None:
        left += " - (int)*az"
    if left_spec.dtype == FLOAT32:
        scale, zero = binding.workspace, binding.workspace + 4
        source = ("const float* x", parameters[0][1])
        launches = launch_range(binding, left_spec.element_count, source, scale, zero, "float")
        parameters += [("const float* as", scale), ("const float* az", zero)]
        left = f"(int)fminf(fmaxf(rintf(a[{at_a}] / *as), -*az), 255.0f - *az)"
    right = f"(int)b[{at_b}]"
    b_zero = operand(request, _B_ZERO)
    if b_zero is not None:
        right += f" - (int)bz[{'j' if b_zero.element_count > 1 else '0'}]"
    return launches + tiled_product(
        binding,
        (m, n, k),
        math.prod(matrices.batch),
        kind="int",
        left=left,
        right=right,
        final=f"y[place] = {gemm_result(request, m, n)};",
        parameters=[*parameters, *results(binding, {"y": 0})],
    )


# --- Weights of few bits, in blocks -----------------------------------------------------------


def _accepts_bits(request: KernelRequest) -> bool:
    zeros = operand(request, 3)
    return (
        required(request).dtype in FLOATS
        and required(request, 1).dtype == _UINT8
        and required(request, 2).dtype in FLOATS
        and (zeros is None or zeros.dtype in FLOATS | {_UINT8})
        and not integer(request, "is_reordered")
        and not integer(request, "is_prepacked")
    )


def _bind_bits(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    data, target = required(request), result(request)
    depth, columns = data.shape[-1], target.shape[-1]
    bits, size = integer(request, "bits"), integer(request, "block_size")
    blocks, per_byte = -(-depth // size), 8 // bits
    kind = computed(data.dtype)
    mask = (1 << bits) - 1
    level = (
        f"(w[(long long)j * {blocks * size // per_byte} + q / {per_byte}] "
        f">> ({bits} * (q % {per_byte})) & {mask})"
    )
    zeros, zero = operand(request, 3), str(1 << (bits - 1))
    block = f"q / {size}"
    if zeros is not None and zeros.dtype in FLOATS:
        zero = f"(S)get(zeros[(long long)j * {blocks} + {block}])"
    elif zeros is not None:
        row = -(-blocks // per_byte)
        zero = (
            f"(int)(zeros[(long long)j * {row} + {block} / {per_byte}] "
            f">> ({bits} * ({block} % {per_byte})) & {mask})"
        )
    scale = f"(S)get(scales[(long long)j * {blocks} + {block}])"
    bias = " + (S)get(bias[j])" if operand(request, 4) is not None else ""
    rows = data.element_count // max(1, depth)
    return tiled_product(
        binding,
        (rows, columns, depth),
        1,
        kind=kind,
        left=f"get(a[(long long)i * {depth} + q])",
        right=f"((S)(int){level} - (S)({zero})) * {scale}",
        final=f"y[place] = To<{stored(target.dtype)}>::of(s{bias});",
        parameters=[
            *given(binding, {"a": 0, "w": 1, "scales": 2, "zeros": 3, "bias": 4}),
            *results(binding, {"y": 0}),
        ],
    )


def _accepts_gather(request: KernelRequest) -> bool:
    data, zeros = required(request), operand(request, 3)
    return (
        (data.dtype == _UINT8 or data.dtype in SMALL_INTEGERS)
        and (zeros is None or zeros.dtype == data.dtype)
        and required(request, 2).dtype in FLOATS
        and integer(request, "gather_axis") == 0
        and integer(request, "quantize_axis") == len(data.shape) - 1
    )


def _bind_gather(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    data, scales, target = required(request), required(request, 2), result(request)
    bits, size = integer(request, "bits"), integer(request, "block_size")
    is_packed = data.dtype == _UINT8
    per_byte = 8 // bits if is_packed else 1
    width, rows = target.shape[-1], data.shape[0]
    inner, count = math.prod(data.shape[1:-1]), scales.shape[-1]
    mask = (1 << bits) - 1

    def unpacked(name: str, row: int, index: str) -> str:
        where = f"{name}[(g * {inner} + r) * {row}LL + ({index}) / {per_byte}]"
        if not is_packed:
            return f"get({where})"
        return f"(int)({where} >> ({bits} * (({index}) % {per_byte})) & {mask})"

    zero = str(1 << (bits - 1)) if is_packed or data.dtype.name.startswith("u") else "0"
    zeros = operand(request, 3)
    if zeros is not None:
        zero = unpacked("zeros", zeros.shape[-1], f"c / {size}")
    statements = f"""
  const long long c = i % {width}, r = i / {width} % {inner};
  long long g = (long long)at[i / {width * inner}];
  if (g < 0) g += {rows};
  if (g < 0 || g >= {rows}) {{ *fault = {INDEX_OUT_OF_RANGE}; g = 0; }}
  const float level = (float){unpacked("x", data.shape[-1], "c")} - (float)({zero});
  y[i] = To<{stored(target.dtype)}>::of(
    level * (float)get(scales[(g * {inner} + r) * {count}LL + c / {size}]));"""
    parameters = [
        *given(binding, {"x": 0, "at": 1, "scales": 2, "zeros": 3}),
        *results(binding, {"y": 0}),
    ]
    return each(binding, target.element_count, statements, parameters, faults=True)


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    simple_kernel(
        "matmul.integer",
        ("MatMulInteger", "QLinearMatMul"),
        _bind_integer,
        accepts=_accepts_integer,
    ),
    simple_kernel(
        "matmul.quantised",
        ("com.microsoft.QGemm",),
        _bind_gemm,
        accepts=_accepts_gemm,
        workspace=_gemm_workspace,
    ),
    simple_kernel("matmul.bits", ("com.microsoft.MatMulNBits",), _bind_bits, accepts=_accepts_bits),
    simple_kernel(
        "gather.block_quantised",
        ("com.microsoft.GatherBlockQuantized",),
        _bind_gather,
        accepts=_accepts_gather,
        dtypes=ALL | SMALL_INTEGERS,
    ),
)
