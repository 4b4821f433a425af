"""Element types of less than 16 bits: floats of 8 and 4 bits, integers of 4 and 2, a byte each.

They are read as float or int, and written from them; their names in C begin with `Tiny`, by which
`kernel_source` knows that a source needs what is here.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np


@dataclass(frozen=True, slots=True)
class _Format:
    """A small float, as its bits count upwards: zero, subnormals, normals, infinity, NaN."""

    mantissa: int
    exponent_min: int
    largest: int
    """Bits of the largest finite value."""
    sign: int
    """The bit of the sign."""
    infinity: int
    """Bits for what is too large."""
    nan: int
    has_negative_zero: bool = True


_FLOATS = {
    np.dtype(ml_dtypes.float8_e4m3fn): _Format(3, -6, 0x7E, 0x80, 0x7F, 0x7F),
    np.dtype(ml_dtypes.float8_e4m3fnuz): _Format(3, -7, 0x7F, 0x80, 0x80, 0x80, False),
    np.dtype(ml_dtypes.float8_e5m2): _Format(2, -14, 0x7B, 0x80, 0x7C, 0x7E),
    np.dtype(ml_dtypes.float8_e5m2fnuz): _Format(2, -15, 0x7F, 0x80, 0x80, 0x80, False),
    np.dtype(ml_dtypes.float4_e2m1fn): _Format(1, 0, 0x7, 0x8, 0x7, 0x8),
}
_INTEGERS = {
    np.dtype(ml_dtypes.int4): (4, True),
    np.dtype(ml_dtypes.uint4): (4, False),
    np.dtype(ml_dtypes.int2): (2, True),
    np.dtype(ml_dtypes.uint2): (2, False),
}
FLOAT8 = frozenset(dtype for dtype in _FLOATS if dtype.name.startswith("float8"))
FLOAT4 = np.dtype(ml_dtypes.float4_e2m1fn)
SMALL_INTEGERS = frozenset(_INTEGERS)
SMALL_FLOATS = frozenset(_FLOATS)
SMALL = SMALL_FLOATS | SMALL_INTEGERS
POWER_OF_TWO: np.dtype = np.dtype(ml_dtypes.float8_e8m0fnu)

PRELUDE = """
template <int M, int E, int LARGEST, int SIGN, int INFINITE, int NOT, bool ZERO> struct TinyFloat {
  u8 bits; };
template <int M, int E, int LARGEST, int SIGN, int INFINITE, int NOT, bool ZERO>
__device__ __forceinline__ float get(TinyFloat<M, E, LARGEST, SIGN, INFINITE, NOT, ZERO> x) {
  const int code = x.bits & (SIGN - 1), exponent = code >> M, part = code & ((1 << M) - 1);
  if (!ZERO && x.bits == SIGN) return QNAN();
  float r = exponent ? ldexpf((float)(part + (1 << M)), exponent - 1 + E - M)
                     : ldexpf((float)part, E - M);
  if (code > LARGEST) r = code == INFINITE && INFINITE != NOT ? INF() : QNAN();
  return x.bits & SIGN ? -r : r; }
template <int M, int E, int LARGEST, int SIGN, int INFINITE, int NOT, bool ZERO>
struct To<TinyFloat<M, E, LARGEST, SIGN, INFINITE, NOT, ZERO>> {
  typedef TinyFloat<M, E, LARGEST, SIGN, INFINITE, NOT, ZERO> T;
  static __device__ __forceinline__ T of(T x) { return x; }
  template <typename S> static __device__ __forceinline__ T of(S given) {
    const float x = (float)given; T r;
    const u32 whole = __float_as_uint(x);
    const int sign = whole >> 31 ? SIGN : 0;
    const float size = sign ? -x : x;
    if (x != x) { r.bits = (u8)(NOT == SIGN ? NOT : NOT | sign); return r; }
    int exponent = (int)((whole >> 23) & 255) - 127;
    if (exponent < E) exponent = E;
    int code = INFINITE;
    if (size < INF()) {
      // The step between codes is that of the exponent: a carry goes where it belongs.
      const float steps = rintf(ldexpf(size, M - exponent));
      const int count = ((exponent - E) << M) + (int)steps;
      code = count > LARGEST ? INFINITE : count; }
    r.bits = (u8)(code == NOT || (code == 0 && !ZERO) ? code : code | sign);
    if (code == NOT && NOT != SIGN) r.bits |= sign;
    return r; } };
template <int BITS, bool SIGNED> struct TinyInteger { u8 bits; };
template <int BITS, bool SIGNED>
__device__ __forceinline__ int get(TinyInteger<BITS, SIGNED> x) {
  const int low = x.bits & ((1 << BITS) - 1), half = 1 << (BITS - 1);
  return SIGNED ? (low ^ half) - half : low; }
template <int BITS, bool SIGNED> struct To<TinyInteger<BITS, SIGNED>> {
  typedef TinyInteger<BITS, SIGNED> T;
  static __device__ __forceinline__ T of(T x) { return x; }
  template <typename S> static __device__ __forceinline__ T of(S x) {
    T r; r.bits = (u8)((int)x & ((1 << BITS) - 1)); return r; } };
"""


def _float(form: _Format, infinity: int) -> str:
    values = (form.mantissa, form.exponent_min, form.largest, form.sign, infinity, form.nan)
    zero = str(form.has_negative_zero).lower()
    return f"TinyFloat<{', '.join(map(str, values))}, {zero}>"


def _integer(bits: int, is_signed: bool) -> str:
    return f"TinyInteger<{bits}, {str(is_signed).lower()}>"


STORED = {
    **{dtype: _float(form, form.infinity) for dtype, form in _FLOATS.items()},
    **{dtype: _integer(*form) for dtype, form in _INTEGERS.items()},
}


def saturating(dtype: np.dtype) -> str:
    """Return the C type that writes the largest value where one is too large."""
    form = _FLOATS[dtype]
    return _float(form, form.largest)
