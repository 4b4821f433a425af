"""Compiled QuantizeLinear and DequantizeLinear (`c/rescaling.c`).

native.bytes.quantise, native.bytes.dequantise    levels of 8 bits
native.quantise_shorts, native.dequantise_shorts  of 16 bits
native.dequantise_words                           of int32

Reals are floats of 32 or 16 bits; scales are for the tensor, along an axis, or for blocks of one.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import ml_dtypes
import numpy as np

from aegis_pipe.device.cpu.kernels import byte_units, native, operands
from aegis_pipe.device.cpu.kernels.native import FLOAT, INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.planned import elements_moved
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest

_REALS = {
    np.dtype(np.float32): 0,
    np.dtype(np.float16): 1,
    np.dtype(ml_dtypes.bfloat16): 2,
}
"""Numbers of the enumeration in `c/halves.h`."""
_SIXTEEN_BITS = (np.dtype(np.int16), np.dtype(np.uint16))


class _Rescaling(ctypes.Structure):
    """`rescaling` of `c/rescaling.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "y", "scale", "zero")),
        *((name, INTEGER) for name in ("outer", "axis", "block", "inner", "repeats", "each")),
        *((name, INTEGER) for name in ("level_size", "is_signed", "real", "scale_real")),
        *((name, FLOAT) for name in ("low", "high")),
    )


@dataclass(frozen=True, slots=True)
class _Layout:
    """The tensor as [outer, axis, inner], as `c/rescaling.c` says."""

    outer: int
    axis: int
    block: int
    inner: int
    repeats: bool
    each: bool


def _layout(request: KernelRequest) -> _Layout:
    shape = operands.input_spec(request, 0).shape
    block_size = operands.integer(request, "block_size")
    if operands.input_spec(request, 1).element_count == 1 and not block_size:
        return _Layout(1, 1, 1, math.prod(shape), repeats=True, each=False)
    axis = operands.integer(request, "axis") % len(shape)
    before, size, inner = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    if block_size:
        return _Layout(before, size, block_size, inner, repeats=False, each=inner > 1)
    if inner == 1:
        # Rows, all on the same scales.
        return _Layout(1, before, before, size, repeats=True, each=True)
    return _Layout(before, size, 1, inner, repeats=True, each=False)


def _kernel_name(request: KernelRequest, levels: np.dtype) -> str | None:
    is_quantise = request.operator == "QuantizeLinear"
    if levels in byte_units.EIGHT_BITS:
        return "bytes.quantise" if is_quantise else "bytes.dequantise"
    if levels in _SIXTEEN_BITS:
        return "quantise_shorts" if is_quantise else "dequantise_shorts"
    return "dequantise_words" if levels == np.int32 and not is_quantise else None


def _choose(request: KernelRequest) -> KernelChoice | None:
    is_quantise = request.operator == "QuantizeLinear"
    source, result = operands.input_spec(request, 0), operands.output_spec(request)
    levels, real = (result, source) if is_quantise else (source, result)
    name = _kernel_name(request, levels.dtype)
    if native.LIBRARY is None or name is None or not levels.element_count:
        return None
    if not {real.dtype, operands.input_spec(request, 1).dtype} <= _REALS.keys():
        return None
    if request.attributes.get("precision", "") not in ("", "float32"):
        return None
    return KernelChoice(kernel=f"native.{name}", cost=elements_moved(request))


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    x, y = operands.required(inputs), operands.required(outputs)
    scale = operands.required(inputs, 1)
    is_quantise = request.operator == "QuantizeLinear"
    levels, real = (y, x) if is_quantise else (x, y)
    limits = np.iinfo(levels.dtype)
    arguments = _Rescaling(
        *map(native.address, (x, y, scale, operands.optional(inputs, 2))),
        *astuple(_layout(request)),
        *(levels.itemsize, limits.min < 0, _REALS[real.dtype], _REALS[scale.dtype]),
        *(limits.min, limits.max),
    )
    function = "aegis_quantise" if is_quantise else "aegis_dequantise"
    return native.call(function, arguments, (*inputs, *outputs))


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel(("QuantizeLinear", "DequantizeLinear"), _choose, _bind, shares_work=True),
)
