"""Elementwise arithmetic, comparison, logic and selection."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.pointwise import (
    BOOL,
    FLOAT64,
    FLOATS,
    INTEGERS,
    NUMBERS,
    SIGNED,
    UNSIGNED,
    Define,
    Dtypes,
    Pointwise,
    as_mask,
    integer_range,
    pointwise_kernel,
)
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.cpu.kernels.scratch import anything_numeric, kernel_with_scratch
from aegis_pipe.device.cpu.kernels.tiles import tile_size, tile_views
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_BOOL = frozenset({BOOL})


def _one_pass(ufunc: np.ufunc, dtypes: Dtypes) -> Define:
    function = Pointwise(ufunc, whole=True)
    return lambda request: function if operands.input_spec(request, 0).dtype in dtypes else None


_UFUNCS: Mapping[str, tuple[np.ufunc, Dtypes]] = {
    "Add": (np.add, NUMBERS),
    "Sub": (np.subtract, NUMBERS),
    "Mul": (np.multiply, NUMBERS),
    "And": (np.logical_and, _BOOL),
    "Or": (np.logical_or, _BOOL),
    "Xor": (np.logical_xor, _BOOL),
    "Equal": (np.equal, NUMBERS | _BOOL),
    "Greater": (np.greater, NUMBERS),
    "Less": (np.less, NUMBERS),
    "GreaterOrEqual": (np.greater_equal, NUMBERS),
    "LessOrEqual": (np.less_equal, NUMBERS),
    "BitwiseAnd": (np.bitwise_and, INTEGERS),
    "BitwiseOr": (np.bitwise_or, INTEGERS),
    "BitwiseXor": (np.bitwise_xor, INTEGERS),
}


def _divide_truncating(a: np.ndarray, b: np.ndarray, out: np.ndarray, exact: np.ndarray) -> None:
    # Less its remainder, which has its sign, the dividend divides exactly.
    np.fmod(a, b, out=exact)
    np.subtract(a, exact, out=exact)
    np.floor_divide(exact, b, out=out)


def _define_div(request: KernelRequest) -> Pointwise | None:
    dtype = operands.input_spec(request, 0).dtype
    if dtype in FLOATS:
        return Pointwise(np.divide, whole=True)
    if dtype in UNSIGNED:
        return Pointwise(np.floor_divide, whole=True)
    return Pointwise(_divide_truncating, scratch=1) if dtype in SIGNED else None


def _define_mod(request: KernelRequest) -> Pointwise | None:
    if operands.input_spec(request, 0).dtype not in NUMBERS:
        return None
    return Pointwise(np.fmod if operands.integer(request, "fmod") else np.mod, whole=True)


def _define_shift(request: KernelRequest) -> Pointwise | None:
    if operands.input_spec(request, 0).dtype not in INTEGERS:
        return None
    # NumPy shifts by too much, or by a negative amount, as ONNX does: only sign bits are left.
    is_left = operands.text(request, "direction") == "LEFT"
    return Pointwise(np.left_shift if is_left else np.right_shift, whole=True)


def _cube(x: np.ndarray, _exponent: np.ndarray, out: np.ndarray, square: np.ndarray) -> None:
    np.multiply(x, x, out=square)
    np.multiply(x, square, out=out)


_POWERS: Mapping[float, Pointwise] = {
    0.5: Pointwise(lambda x, _exponent, out: np.sqrt(x, out=out), whole=True, in_place=(0,)),
    2.0: Pointwise(lambda x, _exponent, out: np.multiply(x, x, out=out), whole=True, in_place=(0,)),
    3.0: Pointwise(_cube, scratch=1, in_place=(0,)),
}
"""Exponents that need no logarithm."""


def _define_pow(request: KernelRequest) -> Pointwise | None:
    base, exponent = operands.input_spec(request, 0), operands.input_spec(request, 1)
    if base.dtype not in NUMBERS or exponent.dtype not in NUMBERS:
        return None
    constant = request.constants.get(1)
    if base.dtype in FLOATS:
        is_known = constant is not None and constant.size == 1 and base.dtype == exponent.dtype
        special = (
            _POWERS.get(float(constant.reshape(()))) if constant is not None and is_known else None
        )
        if special is not None and operands.output_spec(request).shape == base.shape:
            return special
        is_same = base.dtype == exponent.dtype
        wide = FLOAT64 if FLOAT64 in (base.dtype, exponent.dtype) else np.dtype(np.float32)
        return Pointwise(np.power, whole=is_same, dtype=None if is_same else wide)
    if exponent.dtype in FLOATS:
        return Pointwise(np.power, dtype=FLOAT64)
    wide = np.dtype(np.uint64 if base.dtype.itemsize == 8 and base.dtype in UNSIGNED else np.int64)
    return Pointwise(_power_of_integers, scratch=2, dtype=wide)


def _power_of_integers(
    base: np.ndarray, exponent: np.ndarray, out: np.ndarray, s: np.ndarray, t: np.ndarray
) -> None:
    # The inverse of an integer rounds to 0, but for 1 and -1, which are their own inverses.
    is_fraction = np.not_equal(np.absolute(base, out=t), 1, out=as_mask(s))
    np.less(exponent, 0, out=is_fraction, where=is_fraction)
    np.power(base, np.absolute(exponent, out=t), out=t)
    np.copyto(t, 0, where=is_fraction)
    np.copyto(out, t)


def _chain(ufunc: np.ufunc, *arrays: np.ndarray) -> None:
    first, second, *others, out = arrays
    ufunc(first, second, out=out)
    for other in others:
        ufunc(out, other, out=out)


def _mean(*arrays: np.ndarray) -> None:
    _chain(np.add, *arrays)
    np.divide(arrays[-1], len(arrays) - 1, out=arrays[-1])


def _define_variadic(compute: Callable[..., None], dtypes: Dtypes) -> Define:
    def define(request: KernelRequest) -> Pointwise | None:
        is_known = operands.input_spec(request, 0).dtype in dtypes
        return Pointwise(compute) if is_known else None

    return define


_VARIADIC: Mapping[str, tuple[Callable[..., None], Dtypes]] = {
    "Max": (functools.partial(_chain, np.maximum), NUMBERS),
    "Min": (functools.partial(_chain, np.minimum), NUMBERS),
    "Sum": (functools.partial(_chain, np.add), FLOATS),
    "Mean": (_mean, FLOATS),
}


def _prelu(x: np.ndarray, slope: np.ndarray, out: np.ndarray, negative: np.ndarray) -> None:
    np.minimum(x, 0, out=negative)
    np.multiply(negative, slope, out=negative)
    np.maximum(x, 0, out=out)
    np.add(out, negative, out=out)


def _define_prelu(request: KernelRequest) -> Pointwise | None:
    dtype = operands.input_spec(request, 0).dtype
    return Pointwise(_prelu, scratch=1, in_place=(0,)) if dtype in NUMBERS else None


def _bound(request: KernelRequest, name: str, position: int) -> int | float | None:
    """Return a bound known at load, widest if there is none; None if it is an operand."""
    value = request.attributes[name]
    if operands.has_input(request, position):
        return None
    dtype = operands.input_spec(request, 0).dtype
    low, high = (-math.inf, math.inf) if dtype in FLOATS else integer_range(dtype)
    assert value is None or isinstance(value, int | float), name
    return max(low, min(high, value)) if value is not None else low if name == "min" else high


def _define_clip(request: KernelRequest) -> Pointwise | None:
    if operands.input_spec(request, 0).dtype not in NUMBERS:
        return None
    low, high = _bound(request, "min", 1), _bound(request, "max", 2)

    def clip(x: np.ndarray, *bounds_and_out: np.ndarray) -> None:
        *given, out = bounds_and_out
        bounds = iter(given)
        least, most = (next(bounds) if known is None else known for known in (low, high))
        x.clip(least, most, out=out)

    return Pointwise(clip, whole=True, in_place=(0,))


_SELECTED_WIDTHS = (1, 2, 4, 8)


def _accepts_where(request: KernelRequest) -> bool:
    has_width = operands.output_spec(request).dtype.itemsize in _SELECTED_WIDTHS
    return has_width and anything_numeric(request)


def _where_scratch(request: KernelRequest) -> list[TensorSpec]:
    result = operands.output_spec(request)
    bits = np.dtype(f"u{result.dtype.itemsize}")
    return [TensorSpec(bits, (tile_size(result.shape),)) for _ in range(2)]


def _bind_where(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    """Bind y ^ ((x ^ y) & mask): without branches, and the bits of NaN are nothing special."""
    condition, *values = (operands.required(inputs, i) for i in range(3))
    result = operands.required(outputs)
    views = [array.view(scratch[0].dtype) for array in (*values, result)]
    steps = [
        (*tile, *(array[: tile[-1].size].reshape(tile[-1].shape) for array in scratch))
        for tile in tile_views(result.shape, [condition, *views])
    ]

    def run() -> None:
        for is_chosen, chosen, otherwise, written, mask, changed in steps:
            np.copyto(mask, is_chosen)
            np.negative(mask, out=mask)
            np.bitwise_xor(chosen, otherwise, out=changed)
            np.bitwise_and(changed, mask, out=changed)
            np.bitwise_xor(otherwise, changed, out=written)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    *(pointwise_kernel(name, _one_pass(*ufunc)) for name, ufunc in _UFUNCS.items()),
    *(pointwise_kernel(name, _define_variadic(*v)) for name, v in _VARIADIC.items()),
    pointwise_kernel("Div", _define_div),
    pointwise_kernel("Mod", _define_mod),
    pointwise_kernel("Pow", _define_pow),
    pointwise_kernel("BitShift", _define_shift),
    pointwise_kernel("PRelu", _define_prelu),
    pointwise_kernel("Clip", _define_clip),
    kernel_with_scratch(
        "Where",
        _bind_where,
        accepts=_accepts_where,
        scratch=_where_scratch,
        in_place=((1, 0), (2, 0)),
    ),
)
