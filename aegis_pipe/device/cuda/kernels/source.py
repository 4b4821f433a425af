"""Parts of CUDA C++ that all sources are made of: element types, loads, stores, index arithmetic.

Every shape is a constant of the source, so divisions by dimensions become multiplications. No
header is included: half and bfloat16 are converted by what `_PRELUDE` has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from aegis_pipe.device.cuda.kernels import small_types

FLOAT16 = np.dtype(np.float16)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)
BOOL = np.dtype(np.bool_)
Dtypes = frozenset[np.dtype]
HALF_FLOATS: Dtypes = frozenset({FLOAT16, BFLOAT16})
FLOATS: Dtypes = HALF_FLOATS | {FLOAT32, FLOAT64}
SIGNED: Dtypes = frozenset(np.dtype(f"i{width}") for width in (1, 2, 4, 8))
UNSIGNED: Dtypes = frozenset(np.dtype(f"u{width}") for width in (1, 2, 4, 8))
INTEGERS: Dtypes = SIGNED | UNSIGNED
NUMBERS: Dtypes = FLOATS | INTEGERS
ALL: Dtypes = NUMBERS | {BOOL}

_STORED = {
    FLOAT16: "f16",
    BFLOAT16: "bf16",
    FLOAT32: "float",
    FLOAT64: "double",
    BOOL: "bool",
    **{np.dtype(f"i{w}"): f"i{8 * w}" for w in (1, 2, 4, 8)},
    **{np.dtype(f"u{w}"): f"u{8 * w}" for w in (1, 2, 4, 8)},
    **small_types.STORED,
    # Its bits: what they mean, a cast knows.
    small_types.POWER_OF_TWO: "u8",
}

_PRELUDE = """
typedef signed char i8; typedef short i16; typedef int i32; typedef long long i64;
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32;
typedef unsigned long long u64;
struct f16 { u16 bits; }; struct bf16 { u16 bits; };
__device__ __forceinline__ float get(f16 x) {
  float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x.bits)); return r; }
__device__ __forceinline__ float get(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
template <typename T> __device__ __forceinline__ T get(T x) { return x; }
template <typename T> struct To {
  template <typename S> static __device__ __forceinline__ T of(S x) { return (T)x; } };
template <> struct To<f16> {
  template <typename S> static __device__ __forceinline__ f16 of(S x) {
    f16 r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.bits) : "f"((float)x)); return r; }
  static __device__ __forceinline__ f16 of(double x) {
    f16 r; asm("cvt.rn.f16.f64 %0, %1;" : "=h"(r.bits) : "d"(x)); return r; }
  static __device__ __forceinline__ f16 of(f16 x) { return x; } };
template <> struct To<bf16> {
  template <typename S> static __device__ __forceinline__ bf16 of(S x) {
    u32 b = __float_as_uint((float)x); bf16 r;
    r.bits = (b & 0x7fffffffu) > 0x7f800000u ? (u16)((b >> 16) | 64u)
                                             : (u16)((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
    return r; }
  static __device__ __forceinline__ bf16 of(bf16 x) { return x; } };
template <typename T, int N> struct alignas(sizeof(T) * N) Pack { T v[N]; };
__device__ __forceinline__ float INF() { return __int_as_float(0x7f800000); }
__device__ __forceinline__ float QNAN() { return __int_as_float(0x7fffffff); }
template <typename A, typename B> struct Same { static const bool value = false; };
template <typename A> struct Same<A, A> { static const bool value = true; };
__device__ __forceinline__ void let_the_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_kernels() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_kernels_before() {
  wait_for_kernels(); let_the_next_begin(); }
"""

WAITS = "\n  wait_for_kernels_before();\n"
"""In a kernel that may be started while the one before it still runs (programmatic dependent
launch): from here on that has ended, and all it wrote is to be seen. Only now may the next one be
started, so that of a chain no more than two run at once."""
WAITS_ALONE = "\n  wait_for_kernels();\n"
"""The same, but the next one is not started before the kernel calls `let_the_next_begin`, or ends:
a next one whose blocks lie badly beside this one's is slower for having begun early."""

MEET = """
__device__ __forceinline__ void meet() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
"""
"""All threads of a cluster wait for each other, and see what the others wrote before that."""

PRODUCT = """
__device__ __forceinline__ float product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double product(double a, double b) { return __dmul_rn(a, b); }
"""
"""A product that is rounded before anything is added to it, as on the CPU. For what is held against
a limit or rounded to a place, where the compiler's contraction would at times choose another."""

EARLY_CAPABILITY = 90
"""The least that starts kernels early."""


def stored(dtype: np.dtype) -> str:
    """Return the C type that elements have in memory."""
    return _STORED[dtype]


def computed(dtype: np.dtype) -> str:
    """Return the C type that `get` of an element has: float for half precision and less."""
    if dtype in small_types.SMALL_INTEGERS:
        return "int"
    return "float" if dtype in HALF_FLOATS | small_types.SMALL_FLOATS else _STORED[dtype]


def kernel_source(
    parameters: Sequence[str],
    body: str,
    *,
    threads: int,
    extra: str = "",
    blocks: int = 0,
    cluster: int = 1,
    prefetch: str = "",
    starts_next: bool = True,
) -> str:
    """Return a whole source with a kernel named `k`.

    `blocks`: how many have to fit a multiprocessor at once; 0 leaves it to the compiler, which
    may save registers until some are spilled. `cluster`: so many blocks side by side may read each
    other's shared memory. `prefetch`: statements ahead of the body that run before the kernel ahead
    has ended, and so may read constants only. `starts_next`: whether the next kernel may begin as
    soon as the one ahead has ended.
    """
    bounds = f"__launch_bounds__({f'{threads}, {blocks}' if blocks else threads})"
    if cluster > 1:
        bounds += f" __cluster_dims__({cluster}, 1, 1)"
    code = (
        f'extern "C" __global__ void {bounds} k({", ".join(parameters)}) {{'
        f"{prefetch}{WAITS if starts_next else WAITS_ALONE}{body}\n}}\n"
    )
    small = small_types.PRELUDE if "Tiny" in code else ""
    return f"{_PRELUDE}{small}{extra}\n{code}"


def does_wait(source: str) -> bool:
    """Return whether the kernel of a source may be started before the one ahead has ended."""
    return WAITS in source or WAITS_ALONE in source


def literal(value: float, ctype: str) -> str:
    """Return a number as a constant of a C type."""
    if ctype in ("float", "double"):
        if math.isnan(value):
            return f"(({ctype})QNAN())"
        if math.isinf(value):
            return f"(({ctype}){'-' if value < 0 else ''}INF())"
        if ctype == "float":
            return f"{float(np.float32(value))!r}f"
        return repr(float(value))
    if ctype in ("i64", "i32", "i16", "i8"):
        # The least one has no literal of its own.
        return f"(({ctype})({int(value) + 1}LL - 1))" if value < 0 else f"(({ctype}){int(value)}LL)"
    return f"(({ctype}){int(value)}ULL)"


def table(name: str, values: np.ndarray, ctype: str) -> str:
    """Return the definition of a constant array; an empty one has one element.

    Infinity and NaN have no literal that an array of the device could be made of: an array with
    one of them is an array of bits, and its name stands for what reads them.
    """
    flat = values.reshape(-1)
    if ctype in ("float", "double") and not np.isfinite(flat.astype(np.float64)).all():
        kind = np.float32 if ctype == "float" else np.float64
        bits = flat.astype(kind).view(np.uint32 if ctype == "float" else np.int64)
        stored_as, read = ("u32", "__uint_as_float")
        if ctype == "double":
            stored_as, read = ("i64", "__longlong_as_double")
        return (
            table(f"{name}_BITS", bits, stored_as)
            + f"struct {name}_READER {{ __device__ __forceinline__ {ctype} operator[](long long i) "
            f"const {{ return {read}({name}_BITS[i]); }} }};\n#define {name} {name}_READER()\n"
        )
    listed = ", ".join(literal(each, ctype) for each in flat.tolist()) or "0"
    return f"static __device__ const {ctype} {name}[] = {{{listed}}};\n"


@dataclass(frozen=True, slots=True)
class Walk:
    """How operands are read while a result is written in order: sizes, and strides per operand.

    Adjacent dimensions that all operands walk through in one go are one dimension here.
    """

    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    """In elements, per operand; 0 where it is broadcast."""

    @classmethod
    def of(cls, sizes: Sequence[int], strides: Sequence[Sequence[int]]) -> Walk:
        """Merge what can be merged."""
        kept: list[tuple[int, tuple[int, ...]]] = []
        for axis, size in enumerate(sizes):
            steps = tuple(each[axis] for each in strides)
            if size == 1:
                continue
            if kept and all(
                outer == step * size for outer, step in zip(kept[-1][1], steps, strict=True)
            ):
                kept[-1] = (kept[-1][0] * size, steps)
            else:
                kept.append((size, steps))
        if not kept:
            kept = [(1, tuple(0 for _ in strides))]
        return cls(
            tuple(size for size, _ in kept),
            tuple(tuple(steps[i] for _, steps in kept) for i in range(len(strides))),
        )

    def offset(self, operand: int, index: str) -> str:
        """Return a C expression: where an operand's element is for the result's `index`."""
        terms = []
        inner = 1
        for axis in range(len(self.sizes) - 1, -1, -1):
            size, stride = self.sizes[axis], self.strides[operand][axis]
            if stride:
                coordinate = f"({index})" if inner == 1 else f"(({index}) / {inner}u)"
                if axis:
                    coordinate = f"({coordinate} % {size}u)"
                terms.append(f"(long long){coordinate} * {stride}")
            inner *= size
        return " + ".join(terms) or "0"


def dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return row-major strides in elements."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def broadcast_strides(shape: Sequence[int], result: Sequence[int]) -> tuple[int, ...]:
    """Return strides with which an operand is read along the dimensions of the result."""
    padded = (1,) * (len(result) - len(shape)) + tuple(shape)
    return tuple(
        0 if size == 1 else stride
        for size, stride in zip(padded, dense_strides(padded), strict=True)
    )


def index_type(count: int) -> str:
    """Return the type that counts so many elements."""
    return "u32" if count < 1 << 31 else "u64"


def blocks_for(count: int, threads: int) -> int:
    """Return how many blocks cover so many items."""
    return max(1, -(-count // threads))
