"""Convolutions in half precision on tensor cores, for results of few elements.

Libraries' kernels leave most of a GPU idle where a result has few tiles. Here the blocks of a
cluster share a tile: each adds up a stretch of the depth, and reads its neighbours' partial sums
from their shared memory, always in the same order. No workspace, no second kernel, same bits.

Rows of the left matrix are pixels with all that their window sees, columns of the right one are
filters. Weights are constants, so that their first tiles are on the way before the kernel ahead
has ended. A warp multiplies 32 rows with `mma.m16n8k16`; tiles come by `cp.async`, in lines of 64
elements whose groups of eight are swapped by row, so that a warp meets every bank once. Which tile
and how many blocks to a cluster, or a library after all, is decided by measurement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.kernels.convolution_products import library_microseconds
from aegis_pipe.device.cuda.kernels.operands import (
    integer,
    integers,
    operand,
    required,
    result,
)
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import (
    EARLY_CAPABILITY,
    FLOAT16,
    HALF_FLOATS,
    blocks_for,
    kernel_source,
    stored,
)
from aegis_pipe.device.cuda.kernels.windows import activated, is_known_activation
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant

_DEPTH = 64
"""Elements of a line of a tile: 128 bytes."""
_GROUP = 8
"""Elements that are loaded at once."""
_WARPS = {
    (32, 64): (1, 4),
    (64, 32): (2, 2),
    (64, 64): (2, 2),
    (64, 128): (2, 2),
    (128, 64): (4, 1),
}
"""Tiles of the result, and how many warps share its rows and its columns."""
_SPLITS = (1, 2, 4, 8)
"""Blocks to a cluster; eight is what every GPU has."""
_SHARED_BYTES_MAX = 200 << 10
_AHEAD_MAX = 10
"""So many tiles are on their way at most."""
_TILES_MAX = 4
"""Results of more tiles of 64 x 64 a multiprocessor are left to the libraries."""
_TRIED_MAX = 4
_RESULT, _WEIGHTS = 4, 1
"""Positions among the operands that are measured with."""

Way = Callable[[int, Sequence[int]], None]
"""Enqueues itself on a stream, given the addresses of its operands."""

_FUNCTIONS = """
__device__ __forceinline__ u32 shared_address(const void* p) {
  u32 r; asm("{ .reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a; }" : "=r"(r) : "l"(p));
  return r; }
__device__ __forceinline__ void copy(u32 target, const void* source, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
      :: "r"(target), "l"(source), "r"(there ? 16 : 0) : "memory"); }
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void read(u32* r, u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory"); }
__device__ __forceinline__ void multiply(float* c, const u32* a, const u32* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.<kind>.<kind>.f32 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); }
struct alignas(16) Four { float v[4]; };
__device__ __forceinline__ Four part_of(u32 address, u32 block) {
  Four r; u32 there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(block));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
      : "=f"(r.v[0]), "=f"(r.v[1]), "=f"(r.v[2]), "=f"(r.v[3]) : "r"(there) : "memory");
  return r; }
__device__ __forceinline__ void meet() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
"""


@dataclass(frozen=True, slots=True)
class TensorConvolution:
    """A convolution of channels-last images."""

    dtype: str
    batch: int
    space: tuple[int, ...]
    channels: int
    filters: int
    result: tuple[int, ...]
    window: tuple[int, ...] = (1, 1)
    strides: tuple[int, ...] = (1, 1)
    dilations: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    bias: bool = False
    residual: bool = False
    activation: str = "a"
    """C expression of the sum `a`."""

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
        """Lines of the depth."""
        return self.taps * -(-self.channels // _DEPTH)

    @property
    def is_dense(self) -> bool:
        """Whether rows of the left matrix are the pixels as they lie."""
        return self.taps == 1 and set(self.strides) == {1} and not any(self.pads)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is shared out."""

    rows: int
    columns: int
    splits: int

    @property
    def warps(self) -> tuple[int, int]:
        """Down and across a tile."""
        return _WARPS[self.rows, self.columns]

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * math.prod(self.warps)

    @property
    def line_bytes(self) -> int:
        """A step's tiles of both matrices."""
        return (self.rows + self.columns) * _DEPTH * 2

    def grid(self, p: TensorConvolution) -> tuple[int, int, int]:
        """Blocks; those of a cluster are side by side."""
        return (
            self.splits,
            blocks_for(p.filters, self.columns),
            blocks_for(p.rows, self.rows),
        )

    def steps(self, p: TensorConvolution) -> int:
        """Return how many steps a block has at most."""
        return -(-p.steps // self.splits)

    def ahead(self, p: TensorConvolution) -> int:
        """Return how many steps are loaded before the first is multiplied."""
        fit = _SHARED_BYTES_MAX // self.line_bytes
        steps = self.steps(p)
        return steps if steps <= min(fit, _AHEAD_MAX) else min(fit - 1, _AHEAD_MAX, 6)

    def shared_bytes(self, p: TensorConvolution) -> int:
        """Return the size of the ring of tiles, and of the partial sums that follow it."""
        lines = min(self.steps(p), self.ahead(p) + 1)
        return max(lines * self.line_bytes, self.rows * (self.columns + 4) * 4)

    def cost(self, p: TensorConvolution, multiprocessors: int) -> float:
        """Return a rough time in ns, to leave out what can not be fastest.

        Of ResNet-50's convolutions of one image, of which six tilings each were measured on an
        H100, it has the fastest among the first four for all but one.
        """
        waves = -(-math.prod(self.grid(p)) // multiprocessors)
        at_once = max(1, min(_SHARED_BYTES_MAX // self.shared_bytes(p), 1024 // self.threads))
        moved = self.steps(p) * self.line_bytes / 30
        multiplied = self.steps(p) * self.rows * self.columns * _DEPTH / 1000
        meeting = (800 + 120 * self.splits) * (self.splits > 1)
        return waves * max(moved, multiplied) + 200 * -(-waves // at_once) + meeting


def tilings(p: TensorConvolution, multiprocessors: int) -> list[Tiling]:
    """Return what is worth trying, best first; nothing for large results."""
    if blocks_for(p.rows, 64) * blocks_for(p.filters, 64) > _TILES_MAX * multiprocessors:
        return []
    found = [
        Tiling(*tile, splits)
        for tile, splits in product(_WARPS, _SPLITS)
        if splits <= p.steps and (tile[0] <= 64 or p.rows > 64)
    ]
    found = [each for each in found if each.shared_bytes(p) <= _SHARED_BYTES_MAX]
    return sorted(found, key=lambda each: each.cost(p, multiprocessors))[:_TRIED_MAX]


def _convolution_of(request: KernelRequest) -> TensorConvolution | None:
    """Return what is to be computed, if it is for this kernel."""
    data, weights, target = required(request), required(request, 1), result(request)
    if data.dtype not in HALF_FLOATS or 1 not in request.constants or len(data.shape) != 4:
        return None
    if integer(request, "group") != 1 or not is_known_activation(request):
        return None
    if not 0 < target.element_count < 1 << 30 or not data.element_count:
        return None
    found = TensorConvolution(
        data.dtype.name,
        data.shape[0],
        data.shape[1:3],
        data.shape[3],
        weights.shape[0],
        target.shape[1:3],
        weights.shape[2:],
        integers(request, "strides"),
        integers(request, "dilations"),
        integers(request, "pads"),
        operand(request, 2) is not None,
        operand(request, 3) is not None,
        activated(request, "float"),
    )
    step = _DEPTH if found.taps > 1 else _GROUP
    return None if found.channels % step or found.filters % 4 else found


def _packed(request: KernelRequest) -> PackedConstant:
    """Return how weights [M, C, window...] become [M, window..., C]."""
    weights = required(request, 1)

    def pack(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(array, 1, -1)).reshape(-1).view(np.uint8)

    return PackedConstant(f"channels_last.{weights.shape[1]}", weights.size_bytes, pack)


def source_of(p: TensorConvolution, tiling: Tiling) -> str:
    """Return the kernel for one tiling; a grid of (splits, columns, rows)."""
    kind = "f16" if p.dtype == FLOAT16.name else "bf16"
    across = tiling.warps[1]
    wide = tiling.columns // across
    ahead, steps = tiling.ahead(p), tiling.steps(p)
    refill = steps > ahead
    lines = min(steps, ahead + 1)
    depth = p.taps * p.channels
    at_once = tiling.threads // 8
    parts = tiling.columns + 4
    per_block = tiling.rows * tiling.columns // 4 // tiling.splits
    per_tap = -(-p.channels // _DEPTH)
    height, width = p.space
    prefetch = f"""
  extern __shared__ __align__(128) u8 memory[];
  const int t = threadIdx.x, lane = t % 32;
  const int upper = t / 32 / {across} * 32, aside = t / 32 % {across} * {wide};
  const int split = blockIdx.x, j0 = blockIdx.y * {tiling.columns}, i0 = blockIdx.z * {tiling.rows};
  const int first = split * {p.steps} / {tiling.splits};
  const int count = (split + 1) * {p.steps} / {tiling.splits} - first;
  const int unit = t % 8, line = t / 8;
  const u32 base = shared_address(memory);
  const u32 mine = line * 128 + ((unit ^ (line & 7)) << 4);
  auto load_weights = [&](int step, u32 place) {{
    const int tap = (first + step) / {per_tap};
    const int c = (first + step - tap * {per_tap}) * {_DEPTH} + unit * 8;
    #pragma unroll
    for (int r = 0; r < {tiling.columns // at_once}; ++r) {{
      const int j = j0 + line + r * {at_once};
      const bool there = j < {p.filters} && c < {p.channels};
      copy(place + {tiling.rows * 128} + mine + r * {at_once * 128},
           w + (there ? (long long)j * {depth} + tap * {p.channels} + c : 0), there);
    }} }};
  #pragma unroll
  for (int s = 0; s < {ahead}; ++s)
    if (s < count) load_weights(s, base + s * {tiling.line_bytes});"""
    pixels = f"""
      const int i = i0 + line + r * {at_once};
      image[r] = (long long)(i / {math.prod(p.result)}) * {height * width * p.channels};
      row[r] = i < {p.rows}
          ? i / {p.result[1]} % {p.result[0]} * {p.strides[0]} - {p.pads[0]} : -(1 << 20);
      column[r] = i % {p.result[1]} * {p.strides[1]} - {p.pads[1]};"""
    where = f"""
      const int h = row[r] + tap / {p.window[1]} * {p.dilations[0]};
      const int v = column[r] + tap % {p.window[1]} * {p.dilations[1]};
      const bool there = (unsigned)h < {height}u && (unsigned)v < {width}u && c < {p.channels};
      const long long from = image[r] + (h * {width} + v) * {p.channels} + c;"""
    places = tiling.rows // at_once
    if p.is_dense:
        pixels = ""
        where = f"""
      const int i = i0 + line + r * {at_once};
      const bool there = i < {p.rows} && c < {p.channels};
      const long long from = (long long)i * {p.channels} + c;"""
    operands = [*(["b"] if p.bias else []), *(["z"] if p.residual else [])]
    own_sum = "*(const Four*)(memory + from)" if tiling.splits == 1 else "part_of(base + from, s)"
    barrier = "__syncthreads();" if tiling.splits == 1 else "meet();"
    body = f"""
  long long image[{places}]; int row[{places}], column[{places}];
  #pragma unroll
  for (int r = 0; r < {places}; ++r) {{{pixels}
  }}
  auto load_pixels = [&](int step, u32 place) {{
    const int tap = (first + step) / {per_tap};
    const int c = (first + step - tap * {per_tap}) * {_DEPTH} + unit * 8;
    #pragma unroll
    for (int r = 0; r < {places}; ++r) {{{where}
      copy(place + mine + r * {at_once * 128}, x + (there ? from : 0), there);
    }} }};
  #pragma unroll
  for (int s = 0; s < {ahead}; ++s) {{
    if (s < count) load_pixels(s, base + s * {tiling.line_bytes});
    commit();
  }}
  float sum[2][{wide // 8}][4] = {{}};
  for (int step = 0; step < count; ++step) {{
    asm volatile("cp.async.wait_group {ahead - 1};" ::: "memory");
    __syncthreads();
    {
        f'''if (step + {ahead} < count) {{
      const u32 place = base + (step + {ahead}) % {lines} * {tiling.line_bytes};
      load_weights(step + {ahead}, place);
      load_pixels(step + {ahead}, place);
    }}'''
        if refill
        else ""
    }
    commit();
    const u32 left = base + step % {lines} * {tiling.line_bytes};
    const u32 right = left + {tiling.rows * 128};
    #pragma unroll
    for (int k = 0; k < 4; ++k) {{
      u32 a[2][4], f[{wide // 16}][4];
      #pragma unroll
      for (int m = 0; m < 2; ++m) {{
        const int r = upper + m * 16 + lane % 16;
        read(a[m], left + r * 128 + (((k * 2 + lane / 16) ^ (r & 7)) << 4));
      }}
      #pragma unroll
      for (int n = 0; n < {wide // 16}; ++n) {{
        const int r = aside + n * 16 + lane / 16 * 8 + lane % 8;
        read(f[n], right + r * 128 + (((k * 2 + lane / 8 % 2) ^ (r & 7)) << 4));
      }}
      #pragma unroll
      for (int m = 0; m < 2; ++m)
        #pragma unroll
        for (int n = 0; n < {wide // 8}; ++n) multiply(sum[m][n], a[m], f[n / 2] + n % 2 * 2);
    }}
  }}
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  float* part = (float*)memory;
  #pragma unroll
  for (int m = 0; m < 2; ++m)
    #pragma unroll
    for (int n = 0; n < {wide // 8}; ++n)
      #pragma unroll
      for (int h = 0; h < 2; ++h) {{
        const int r = upper + m * 16 + h * 8 + lane / 4, c = aside + n * 8 + lane % 4 * 2;
        part[r * {parts} + c] = sum[m][n][2 * h];
        part[r * {parts} + c + 1] = sum[m][n][2 * h + 1];
      }}
  {barrier}
  for (int e = t; e < {per_block}; e += {tiling.threads}) {{
    const int at = split * {per_block} + e;
    const int r = at / {tiling.columns // 4}, c = at % {tiling.columns // 4} * 4;
    const int i = i0 + r, j = j0 + c;
    if (i >= {p.rows} || j >= {p.filters}) continue;
    const u32 from = (r * {parts} + c) * 4;
    float all[4] = {{}};
    #pragma unroll
    for (int s = 0; s < {tiling.splits}; ++s) {{
      const Four some = {own_sum};
      #pragma unroll
      for (int q = 0; q < 4; ++q) all[q] += some.v[q];
    }}
    const long long place = (long long)i * {p.filters} + j;
    {"const Pack<T, 4> bias = *(const Pack<T, 4>*)(b + j);" if p.bias else ""}
    {"const Pack<T, 4> other = *(const Pack<T, 4>*)(z + place);" if p.residual else ""}
    Pack<T, 4> out;
    #pragma unroll
    for (int q = 0; q < 4; ++q) {{
      float a = all[q];
      {"a += get(bias.v[q]);" if p.bias else ""} {"a += get(other.v[q]);" if p.residual else ""}
      out.v[q] = To<T>::of({p.activation});
    }}
    *(Pack<T, 4>*)(y + place) = out;
  }}
  {"meet();" if tiling.splits > 1 else ""}"""
    return kernel_source(
        [f"const T* {name}" for name in ("x", "w", *operands)] + ["T* y"],
        body,
        threads=tiling.threads,
        cluster=tiling.splits,
        prefetch=prefetch,
        extra=f"typedef {stored(np.dtype(FLOAT16) if kind == 'f16' else _bfloat16())} T; "
        f"typedef float A;\n{_FUNCTIONS.replace('<kind>', kind)}",
    )


def _bfloat16() -> np.dtype:
    return next(iter(HALF_FLOATS - {FLOAT16}))


def _sizes(p: TensorConvolution) -> list[int]:
    """Return the bytes of X, W, bias, residual and Y."""
    y = 2 * p.rows * p.filters
    return [
        2 * p.batch * math.prod(p.space) * p.channels,
        2 * p.filters * p.taps * p.channels,
        2 * p.filters,
        y if p.residual else 0,
        y,
    ]


def _way(machine: Machine, p: TensorConvolution, tiling: Tiling) -> Way:
    shared_bytes = tiling.shared_bytes(p)
    function = machine.compiler.function(source_of(p, tiling), shared_bytes)

    def enqueue(stream: int, addresses: Sequence[int]) -> None:
        wanted = (True, True, p.bias, p.residual, True)
        given = [each for each, is_used in zip(addresses, wanted, strict=True) if is_used]
        driver.launch(
            function,
            tiling.grid(p),
            (tiling.threads, 1, 1),
            shared_bytes,
            stream,
            driver.Arguments(given),
            early=True,
        )

    return enqueue


def _fastest(machine: Machine, p: TensorConvolution) -> tuple[Tiling, float] | None:
    """Return the fastest tiling and its microseconds, measured one behind the other.

    That is how convolutions stand in a model, and what beginning early is worth depends on it.
    """
    assert machine.tuner is not None
    found = tilings(p, machine.multiprocessors)
    if not found:
        return None
    what = _what(p, found)
    known = machine.tuner.remembered(what, "own kernels")
    if known is None:
        ways = (_way(machine, p, tiling) for tiling in found)
        best = machine.tuner.fastest(ways, _sizes(p), result=_RESULT, weights=_WEIGHTS)
        assert best is not None, "sums are added up in one order"
        known = {"tiling": best[0], "microseconds": best[1]}
        machine.tuner.remember(what, "own kernels", known)
    return found[int(str(known["tiling"]))], float(str(known["microseconds"]))


def _what(p: TensorConvolution, found: Sequence[Tiling]) -> str:
    """Return what a choice is remembered by."""
    return f"{p} of {found}"


def _offered(request: KernelRequest, machine: Machine) -> TensorConvolution | None:
    """Return what is to be computed if there is a library to be faster than, and a way to tell."""
    if machine.capability < EARLY_CAPABILITY or machine.tuner is None or machine.cudnn is None:
        return None
    return _convolution_of(request)


def _sources(request: KernelRequest, machine: Machine) -> list[str]:
    """Return the kernels that choosing will measure; none if it was chosen before."""
    p = _offered(request, machine)
    if p is None:
        return []
    assert machine.tuner is not None
    found = tilings(p, machine.multiprocessors)
    if machine.tuner.remembered(_what(p, found), "own kernels") is not None:
        return []
    return [source_of(p, tiling) for tiling in found]


def _chosen(request: KernelRequest, machine: Machine) -> tuple[TensorConvolution, Tiling] | None:
    """Return how it is done where that is faster than what the libraries have."""
    p = _offered(request, machine)
    found = None if p is None else _fastest(machine, p)
    if p is None or found is None:
        return None
    theirs = library_microseconds(request, machine)
    return None if theirs is not None and theirs <= found[1] else (p, found[0])


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    found = _chosen(request, machine)
    if found is None:
        return None
    p = found[0]
    return KernelChoice(
        "conv.tensor",
        packed={1: _packed(request)},
        cost=float(p.rows * p.filters * p.taps * p.channels),
    )


def _bind(binding: Binding) -> Sequence[Enqueue]:
    found = _chosen(binding.request, binding.machine)
    assert found is not None
    p, tiling = found
    return [
        binding.kernel(
            source_of(p, tiling),
            [*binding.given(), binding.outputs[0]],
            grid=tiling.grid(p),
            block=tiling.threads,
            shared_bytes=tiling.shared_bytes(p),
        )
    ]


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    CudaKernel(("com.microsoft.NhwcFusedConv",), _choose, _bind, _sources),
)
