"""Convolutions and matrix products of bytes, with weights that are known at load.

Rows of the left matrix are pixels with all that their window sees (or rows of a matrix), columns
of the right one are filters. Tensor cores add up x w as the bytes are; zero points come in at the
end, so that sums are exact whatever the operands' types:

    sum (x - x0)(w - w0) = sum x w  -  x0 sum w  -  w0 sum x  +  depth x0 w0

sum w is packed with the weights. What lies outside of the image is x0 there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aegis_pipe.device.cuda.kernels.operands import integer, integers, operand, required, result
from aegis_pipe.device.cuda.kernels.quantisation import limits
from aegis_pipe.device.cuda.kernels.quantised_layers import (
    CONV_NAMES,
    added,
    conv_factor,
)
from aegis_pipe.device.cuda.kernels.quantised_products import (
    GEMM_NAMES,
    MATMUL_NAMES,
    Matrices,
    gemm_factor,
    gemm_result,
    gemm_total,
    matmul_factor,
)
from aegis_pipe.device.cuda.kernels.source import stored
from aegis_pipe.kernel import KernelRequest

CAPABILITY_MIN = 80
"""Before, tensor cores take bytes in other shapes."""
CONVOLUTION = "com.microsoft.QLinearConv"
RESIDUAL = "aegis.QLinearConvAdd"
CONVOLUTIONS = (CONVOLUTION, RESIDUAL)
OPERATORS = (*CONVOLUTIONS, "QLinearMatMul", "MatMulInteger", "com.microsoft.QGemm")
_EIGHT_BITS = frozenset({np.dtype(np.int8), np.dtype(np.uint8)})


@dataclass(frozen=True, slots=True)
class ByteProduct:
    """A convolution of channels-last images; a matrix is an image of one line."""

    batch: int
    space: tuple[int, int]
    channels: int
    filters: int
    result: tuple[int, int]
    window: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)
    weights_at: int = 3
    x_zero_at: int = 2
    w_zero_at: int = 5

    @property
    def rows(self) -> int:
        """Of the result."""
        return self.batch * math.prod(self.result)

    @property
    def taps(self) -> int:
        """Pixels of a window."""
        return math.prod(self.window)

    @property
    def steps(self) -> int:
        """Lines of 128 bytes that the depth is."""
        return -(-self.taps * self.channels // 128)

    @property
    def multiplied(self) -> int:
        """Multiplications of bytes."""
        return self.rows * self.filters * self.taps * self.channels


def product_of(request: KernelRequest) -> ByteProduct | None:
    """Return what is to be multiplied, if it is for this kernel."""
    found = _convolution(request) if request.operator in CONVOLUTIONS else _matrices(request)
    if found is None or not found.rows or not found.filters or not found.channels:
        return None
    weights, zero = required(request, found.weights_at), operand(request, found.w_zero_at)
    if required(request).dtype not in _EIGHT_BITS or weights.dtype not in _EIGHT_BITS:
        return None
    if found.weights_at not in request.constants or found.rows >= 1 << 30:
        return None
    return found if zero is None or found.w_zero_at in request.constants else None


def _convolution(request: KernelRequest) -> ByteProduct | None:
    data, weights, target = required(request), required(request, 3), result(request)
    if len(data.shape) != 4 or integer(request, "group") != 1:
        return None
    height, width, pads = *data.shape[1:3], integers(request, "pads")
    first, second = weights.shape[2:]

    def pair(name: str) -> tuple[int, int]:
        down, across = integers(request, name)
        return down, across

    return ByteProduct(
        data.shape[0],
        (height, width),
        data.shape[3],
        weights.shape[0],
        (target.shape[1], target.shape[2]),
        (first, second),
        pair("strides"),
        pair("dilations"),
        (pads[0], pads[1]),
    )


def _matrices(request: KernelRequest) -> ByteProduct | None:
    weights_at, x_zero_at, w_zero_at, singles, vectors = {
        "MatMulInteger": (1, 2, 3, (2,), (3,)),
        "QLinearMatMul": (3, 2, 5, (1, 2, 6, 7), (4, 5)),
        "com.microsoft.QGemm": (1, 3, 5, (2, 3, 7, 8), (4, 5)),
    }[request.operator]
    left, right = required(request).shape, required(request, weights_at).shape
    if len(left) < 2 or len(right) != 2:
        return None
    flipped = False
    if request.operator == "com.microsoft.QGemm":
        flipped = bool(integer(request, "transB"))
        is_whole = (operand(request, 7) is not None) == (result(request).dtype in _EIGHT_BITS)
        if integer(request, "transA") or operand(request, 2) is None or not is_whole:
            return None
    columns = right[0] if flipped else right[1]
    for at in (*singles, *vectors):
        spec = operand(request, at)
        sizes = (1, columns) if at in vectors else (1,)
        if spec is not None and (spec.element_count not in sizes or len(spec.shape) > 1):
            return None
    rows = math.prod(left[:-1])
    return ByteProduct(
        1,
        (1, rows),
        left[-1],
        columns,
        (1, rows),
        weights_at=weights_at,
        x_zero_at=x_zero_at,
        w_zero_at=w_zero_at,
    )


def taps_of(request: KernelRequest, p: ByteProduct, weights: np.ndarray) -> np.ndarray:
    """Return weights as [filter, tap, channel]."""
    if request.operator in CONVOLUTIONS:
        return np.moveaxis(weights, 1, -1).reshape(p.filters, p.taps, p.channels)
    return (weights if is_turned(request) else weights.T)[:, np.newaxis]


def is_turned(request: KernelRequest) -> bool:
    """Return whether weights of a matrix product lie by filter."""
    return request.operator == "com.microsoft.QGemm" and bool(integer(request, "transB"))


def has_weights_zero(request: KernelRequest, p: ByteProduct) -> bool:
    """Return whether zero points of weights are other than 0."""
    zeros = request.constants.get(p.w_zero_at)
    return zeros is not None and bool(zeros.any())


def kinds_of(request: KernelRequest, p: ByteProduct) -> tuple[str, str]:
    """Return the types of data and weights in PTX."""
    data, weights = (
        "s8" if required(request, at).dtype == np.int8 else "u8" for at in (0, p.weights_at)
    )
    return data, weights


def zero_of(request: KernelRequest, p: ByteProduct) -> str:
    """Return a C expression: the zero point of data."""
    return "(int)*x_zero" if operand(request, p.x_zero_at) is not None else "0"


@dataclass(frozen=True, slots=True)
class Ending:
    """What is made of the sums."""

    columns: tuple[tuple[str, str, str], ...]
    """C type, name and expression of what the statement needs of column j."""
    elements: tuple[tuple[str, str, str], ...]
    """C type, name and operand of what it needs from the result's place."""
    statement: str
    """Sets `y[place]` for the sum `s` at i, j."""
    offset: str = ""
    """C expression of what is added to sums of column j first, "" for nothing."""
    functions: str = ""
    """Definitions that the statement needs."""


_LEVELS = """
__device__ __forceinline__ float level_of(float x, float low, float high) {
  return fminf(fmaxf(x, low), high) + 12582912.0f; }
"""
"""The integer nearest to x, as by `rintf`, in the last bits of the result, which is 1.5 2^23 more.
It is brought into its range first, which gives the same, as bounds are integers. Conversions take
four times as long as additions; with them, large results took longer than their products."""

_Columns = list[tuple[str, str, str]]


def ending_of(request: KernelRequest, p: ByteProduct) -> tuple[Ending, dict[str, int]]:
    """Return what is made of the sums, and the operands that takes, by name and position."""
    if request.operator == "MatMulInteger":
        return Ending((), (), "y[place] = s;"), {}
    kind, offset = result(request).dtype, ""
    if request.operator in CONVOLUTIONS:
        names, factor, total = CONV_NAMES, conv_factor(request, "j"), "(float)s"
        columns = _levels(request, "", ("y_zero", names["y_zero"]), integers(request, "levels"))
        offset = "b[j]" if operand(request, names["b"]) is not None else ""
    elif request.operator == "com.microsoft.QGemm":
        names, factor = GEMM_NAMES, gemm_factor(request)
        if operand(request, names["ys"]) is None:
            value = gemm_result(request, p.rows, p.filters, "factor")
            return Ending((("float", "factor", factor),), (), f"y[place] = {value};"), names
        total, _ = gemm_total(request, p.rows, p.filters)
        columns = _levels(request, "", ("yz", names["yz"]), integers(request, "levels"))
    else:
        names, total = MATMUL_NAMES, "(float)s"
        right = required(request, p.weights_at).shape
        matrices = Matrices.of((p.rows, p.channels), right, turned=(False, False))
        factor = matmul_factor(request, matrices)
        columns = _levels(request, "", ("yz", names["yz"]), ())
    columns = [("float", "factor", factor), *columns]
    level = f"level_of({total} * factor, low, high)"
    if request.operator == RESIDUAL:
        return _residual(request, columns, level, offset)
    statement = f"y[place] = ({stored(kind)})(__float_as_int({level}) + zero);"
    return Ending(tuple(columns), (), statement, offset, _LEVELS), names


def _levels(
    request: KernelRequest, prefix: str, zero: tuple[str, int], levels: Sequence[int]
) -> _Columns:
    """Return a zero point, and bounds beside it."""
    name, at = zero
    value = f"(int)*{name}" if operand(request, at) is not None else "0"
    low, high = levels or limits(result(request).dtype)
    return [
        ("int", f"{prefix}zero", value),
        ("float", f"{prefix}low", f"(float)({int(low)} - {value})"),
        ("float", f"{prefix}high", f"(float)({int(high)} - {value})"),
    ]


_RESIDUAL_NAMES = {"residual": 9, "r_scale": 10, "r_zero": 11, "sum_scale": 12, "sum_zero": 13}
_STEP_MAX = 2.0**40
_QUOTIENT = """
__device__ __forceinline__ float quotient(float x, float step, float inverse) {
  const float q = x * inverse;
  return fmaf(fmaf(-q, step, x), inverse, q); }
"""
"""x / step, rounded as a division is, by three operations: Brisebarre, Muller, Raina, Accelerating
Correctly Rounded Floating-Point Division When the Divisor Is Known in Advance (2004)."""


def _are_moderate(request: KernelRequest, *positions: int) -> bool:
    """Return whether scales are known, and none so large or small that a quotient overflows."""
    values = [request.constants.get(at) for at in positions]
    return all(
        value is not None and bool(((value > 1 / _STEP_MAX) & (value < _STEP_MAX)).all())
        for value in values
    )


def _residual(
    request: KernelRequest, columns: _Columns, level: str, offset: str
) -> tuple[Ending, dict[str, int]]:
    """Return what adds a residual to levels, each rounded as on its own."""
    names = CONV_NAMES | _RESIDUAL_NAMES
    kind, residual = result(request).dtype, required(request, names["residual"]).dtype
    r_zero = "(int)*r_zero" if operand(request, names["r_zero"]) is not None else "0"
    # A byte in the last bits of 2^23, unsigned.
    flipped, middle = ("^ 128", 128) if residual == np.int8 else ("", 0)
    other = f"__uint_as_float(0x4b000000u | ((u8)other {flipped})) - other_zero"
    more = [
        ("float", "own_step", "*y_scale"),
        ("float", "other_step", "*r_scale"),
        ("float", "other_zero", f"(float)(8388608 + {middle} + {r_zero})"),
        ("float", "step", "*sum_scale"),
    ]
    last = ("sum_zero", names["sum_zero"])
    more += _levels(request, "last_", last, integers(request, "sum_levels"))
    total = added(f"{level} - 12582912.0f", "own_step", other, "other_step")
    real, functions = f"({total}) / step", _LEVELS
    if _are_moderate(request, *(names[each] for each in ("y_scale", "r_scale", "sum_scale"))):
        more.append(("float", "inverse", "1 / *sum_scale"))
        real, functions = f"quotient({total}, step, inverse)", _LEVELS + _QUOTIENT
    final = f"level_of({real}, last_low, last_high)"
    statement = f"y[place] = ({stored(kind)})(__float_as_int({final}) + last_zero);"
    elements = ((stored(residual), "other", "residual"),)
    return Ending((*columns, *more), elements, statement, offset, functions), names
