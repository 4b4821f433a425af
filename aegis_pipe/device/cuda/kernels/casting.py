"""Cast between all element types; those of less than 16 bits by way of float32, as the CPU does."""

from __future__ import annotations

import numpy as np

from aegis_pipe.device.cuda.kernels import small_types
from aegis_pipe.device.cuda.kernels.operands import integer, required, result, text
from aegis_pipe.device.cuda.kernels.pointwise import Pointwise, pointwise_kernel
from aegis_pipe.device.cuda.kernels.registry import CudaKernel
from aegis_pipe.device.cuda.kernels.small_types import FLOAT8, POWER_OF_TWO, SMALL, SMALL_INTEGERS
from aegis_pipe.device.cuda.kernels.source import ALL, BOOL, FLOATS, INTEGERS, stored
from aegis_pipe.kernel import KernelRequest


def cast(request: KernelRequest) -> Pointwise | None:
    """Pick the expression of a cast."""
    source, target = required(request).dtype, result(request).dtype
    if POWER_OF_TWO in (source, target):
        return _power_of_two(request, source, target)
    if source not in ALL | SMALL or target not in ALL | SMALL:
        return None
    if target in SMALL:
        if target in SMALL_INTEGERS:
            return Pointwise("(i32){0}", ("float",), in_place=False)
        # What is written decides what becomes of a value that is too large.
        saturates = target in FLOAT8 and bool(integer(request, "saturate"))
        written = small_types.saturating(target) if saturates else stored(target)
        return Pointwise("{0}", ("float",), in_place=False, written=written)
    if target == BOOL:
        return Pointwise("{0} != 0", in_place=False)
    if source in FLOATS | small_types.SMALL_FLOATS and target in INTEGERS and target.itemsize < 4:
        # As processors do: by way of a 32-bit integer, whose low bits are kept.
        return Pointwise("(i32)({0})", in_place=False)
    return Pointwise("{0}", in_place=False)


_EXPONENTS = """
__device__ __forceinline__ u8 exponent_of(float x, u32 carry, u32 top) {
  const u32 bits = __float_as_uint(x) & 0x7fffffffu;
  // Added to the bits, a carry goes into the exponent; infinity and NaN stay what they are.
  const u32 up = (bits + carry) >> 23;
  return (u8)(bits >> 23 == 255 ? 255 : up < top ? up : top); }
__device__ __forceinline__ float power_of(u8 x) {
  return x == 255 ? QNAN() : x ? __uint_as_float((u32)x << 23) : __uint_as_float(1u << 22); }
"""
_CARRIES = {"up": 0x7FFFFF, "nearest": 0x400000, "down": 0}


def _power_of_two(request: KernelRequest, source: np.dtype, target: np.dtype) -> Pointwise | None:
    """Return what keeps a float32's exponent, which is a float8e8m0's bits, or makes one of it."""
    if source in FLOATS:
        carry = _CARRIES[text(request, "round_mode")]
        top = 254 if integer(request, "saturate") else 255
        return Pointwise(
            f"exponent_of({{0}}, {carry}u, {top}u)", ("float",), in_place=False, extra=_EXPONENTS
        )
    if target in FLOATS:
        return Pointwise("power_of({0})", in_place=False, extra=_EXPONENTS)
    return None


KERNEL_FAMILY: tuple[CudaKernel, ...] = (pointwise_kernel("Cast", cast, name="cast"),)
