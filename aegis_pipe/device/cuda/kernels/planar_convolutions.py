"""The first convolution of a model: few channels, one plane each, as images come.

Reads planes in float32 or half precision and writes pixels with their channels side by side, so
that neither a cast nor a transpose comes first. A block has 8 x 16 pixels of the result: it brings
the part of the image below them to shared memory, four channels to a pixel, and multiplies it with
`mma.m16n8k16`, whose sixteen deep are four pixels side by side. Weights are constants and are on
their way before the kernel ahead has ended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aegis_pipe.device.cuda.kernels.operands import integer, integers, operand, required, result
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import (
    FLOAT16,
    FLOAT32,
    HALF_FLOATS,
    blocks_for,
    kernel_source,
    stored,
)
from aegis_pipe.device.cuda.kernels.windows import activated, is_known_activation
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant

OPERATOR = "aegis.PlanarConv"
CAPABILITY_MIN = 80
_ROWS, _COLUMNS = 8, 16
"""Pixels of a block; a warp has two rows, and all filters or half of them."""
_FILTERS_MAX = 32
"""Of a warp, if that leaves it whole packs."""
_CHANNELS = 4
"""Of a pixel in shared memory; those there are not are zero."""
_SHARED_BYTES_MAX = 46 << 10

MULTIPLY = """
__device__ __forceinline__ void multiply(float* c, const u32* a, const u32* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.<kind>.<kind>.f32 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); }
"""
"""c[16, 8] += a[16, 16] b[16, 8] of a warp."""

_NARROW = "if (there) *(u32*)(y + pixel * <filters> + (first + n) * 8 + quarter * 2) = two[0];"
_WIDE = """
        // Four lanes have two channels each of four eights: turn that into one eight each.
        #pragma unroll
        for (int aside = 1; aside < 4; aside *= 2)
          #pragma unroll
          for (int k = 0; k < 4; ++k)
            if (!(k & aside)) {
              const bool is_upper = quarter & aside;
              const u32 other = __shfl_xor_sync(~0u, is_upper ? two[k] : two[k + aside], aside);
              if (is_upper) two[k] = other; else two[k + aside] = other;
            }
        if (there)
          *(uint4*)(y + pixel * <filters> + (first + n + quarter) * 8)
              = make_uint4(two[0], two[1], two[2], two[3]);"""
"""How a lane writes what it has of a pixel."""


@dataclass(frozen=True, slots=True)
class _Planar:
    batch: int
    channels: int
    space: tuple[int, ...]
    filters: int
    result: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]

    @property
    def warps(self) -> tuple[int, int]:
        """Of a block: down its rows and across the filters."""
        return _ROWS // 2, 2 if self.filters % (2 * _FILTERS_MAX) == 0 else 1

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * math.prod(self.warps)

    @property
    def wide(self) -> int:
        """Pixels of a window's line, in fours."""
        return -(-self.window[1] // 4) * 4

    @property
    def depth(self) -> int:
        """Elements of a filter as it is packed."""
        return self.window[0] * self.wide * _CHANNELS

    @property
    def line(self) -> int:
        """Elements from filter to filter in shared memory: a warp meets every bank once."""
        return self.depth + 8

    @property
    def patch(self) -> tuple[int, int]:
        """Pixels of the image below a block's."""
        return (
            (_ROWS - 1) * self.strides[0] + self.window[0],
            (_COLUMNS - 1) * self.strides[1] + self.wide,
        )

    @property
    def shared_bytes(self) -> int:
        """Of patch and filters."""
        return 2 * (math.prod(self.patch) * _CHANNELS + self.filters * self.line)


def _planar_of(request: KernelRequest) -> _Planar | None:
    data, weights, target = required(request), required(request, 1), result(request)
    if data.dtype not in HALF_FLOATS | {FLOAT32} or weights.dtype not in HALF_FLOATS:
        return None
    if target.dtype != weights.dtype or data.dtype not in (FLOAT32, weights.dtype):
        return None
    if len(data.shape) != 4 or 1 not in request.constants or integer(request, "group") != 1:
        return None
    if set(integers(request, "dilations")) != {1} or not target.element_count:
        return None
    if operand(request, 3) is not None or not is_known_activation(request):
        return None
    batch, channels, *space = data.shape
    found = _Planar(
        batch,
        channels,
        tuple(space),
        weights.shape[0],
        target.shape[1:3],
        weights.shape[2:],
        integers(request, "strides"),
        integers(request, "pads"),
    )
    fits = found.shared_bytes <= _SHARED_BYTES_MAX and channels <= _CHANNELS
    return found if fits and found.filters % 8 == 0 and batch < 1 << 16 else None


def _packed(request: KernelRequest, p: _Planar) -> PackedConstant:
    """Return how weights [M, C, H, W] become [M, H, W in fours, 4], filled up with zeros."""
    dtype = required(request, 1).dtype

    def pack(array: np.ndarray) -> np.ndarray:
        packed = np.zeros((p.filters, p.window[0], p.wide, _CHANNELS), dtype)
        packed[:, :, : p.window[1], : p.channels] = np.moveaxis(array, 1, -1)
        return packed.reshape(-1).view(np.uint8)

    return PackedConstant("planar", 2 * p.filters * p.depth, pack)


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    p = _planar_of(request)
    if machine.capability < CAPABILITY_MIN or p is None:
        return None
    return KernelChoice(
        "conv.planar",
        packed={1: _packed(request, p)},
        cost=float(result(request).element_count * p.channels * math.prod(p.window)),
    )


def _source(request: KernelRequest, p: _Planar) -> str:
    kind = stored(required(request, 1).dtype)
    source = stored(required(request).dtype)
    height, width = p.space
    rows, columns = p.patch
    has_bias = operand(request, 2) is not None
    threads, (_, across) = p.threads, p.warps
    tiles = p.filters // 8 // across
    packs = p.filters * p.depth // 8
    brought, read = blocks_for(packs, threads), blocks_for(p.channels * rows * columns, threads)
    store = f"""
      #pragma unroll
      for (int n = 0; n < {tiles}; n += {4 if tiles % 4 == 0 else 1}) {{
        u32 two[{4 if tiles % 4 == 0 else 1}];
        #pragma unroll
        for (int k = 0; k < {4 if tiles % 4 == 0 else 1}; ++k) {{
          const int c = (first + n + k) * 8 + quarter * 2;
          Pack<T, 2> out;
          #pragma unroll
          for (int q = 0; q < 2; ++q) {{
            float a = sum[m][n + k][r * 2 + q];
            {"a += get(b[c + q]);" if has_bias else ""}
            out.v[q] = To<T>::of({activated(request, "float")});
          }}
          two[k] = *(const u32*)&out;
        }}
        {_WIDE if tiles % 4 == 0 else _NARROW}
      }}""".replace("<filters>", str(p.filters))
    prefetch = f"""
  __shared__ __align__(16) T weights[{p.filters * p.line}];
  __shared__ __align__(16) T patch[{rows * columns * _CHANNELS}];
  const int t = threadIdx.x, lane = t % 32, group = lane / 4, quarter = lane % 4;
  Pack<T, 8> brought[{brought}];
  #pragma unroll
  for (int r = 0; r < {brought}; ++r)
    if (t + r * {threads} < {packs}) brought[r] = ((const Pack<T, 8>*)w)[t + r * {threads}];"""
    body = f"""
  const int down = blockIdx.y * {_ROWS}, across = blockIdx.x * {_COLUMNS};
  const int top = down * {p.strides[0]} - {p.pads[0]}, left = across * {p.strides[1]} - {p.pads[1]};
  const long long image = (long long)blockIdx.z * {p.channels * height * width};
  // All of it is on its way before the first is needed.
  T pixel[{read}];
  #pragma unroll
  for (int r = 0; r < {read}; ++r) {{
    const int e = t + r * {threads}, c = e / {rows * columns}, place = e % {rows * columns};
    const int h = top + place / {columns}, v = left + place % {columns};
    const bool there = c < {p.channels} && (unsigned)h < {height}u && (unsigned)v < {width}u;
    pixel[r] = To<T>::of(
        there ? get(x[image + (c * {height} + h) * {width} + v]) : 0.0f);
  }}
  #pragma unroll
  for (int r = 0; r < {brought}; ++r) {{
    const int e = t + r * {threads};
    if (e < {packs})
      *(Pack<T, 8>*)(weights + e / {p.depth // 8} * {p.line} + e % {p.depth // 8} * 8) = brought[r];
  }}
  #pragma unroll
  for (int r = 0; r < {read}; ++r) {{
    const int e = t + r * {threads}, c = e / {rows * columns}, place = e % {rows * columns};
    if (c < {p.channels}) patch[place * {_CHANNELS} + c] = pixel[r];
  }}
  for (int e = t; e < {rows * columns}; e += {threads})
    for (int c = {p.channels}; c < {_CHANNELS}; ++c) patch[e * {_CHANNELS} + c] = To<T>::of(0.0f);
  __syncthreads();
  const u32* pixels = (const u32*)patch;
  const u32* filters = (const u32*)weights;
  const int row = t / 32 / {across} * 2, first = t / 32 % {across} * {tiles};
  float sum[2][{tiles}][4] = {{}};
  #pragma unroll 1
  for (int h = 0; h < {p.window[0]}; ++h)
    #pragma unroll
    for (int v = 0; v < {p.wide}; v += 4) {{
      u32 a[2][4];
      #pragma unroll
      for (int m = 0; m < 2; ++m)
        #pragma unroll
        for (int r = 0; r < 4; ++r) {{
          // Of what lies beside the window nothing may come in, not even times zero.
          const int aside = v + r / 2 * 2 + quarter / 2;
          const int column = (group + r % 2 * 8) * {p.strides[1]} + aside;
          const u32 word = pixels[(((row + m) * {p.strides[0]} + h) * {columns} + column) * 2
                                  + quarter % 2];
          a[m][r] = aside < {p.window[1]} ? word : 0;
        }}
      #pragma unroll
      for (int n = 0; n < {tiles}; ++n) {{
        const u32* f = filters + ((first + n) * 8 + group) * {p.line // 2}
                       + (h * {p.wide} + v) * 2 + quarter;
        const u32 b[2] = {{f[0], f[4]}};
        #pragma unroll
        for (int m = 0; m < 2; ++m) multiply(sum[m][n], a[m], b);
      }}
    }}
  #pragma unroll
  for (int m = 0; m < 2; ++m)
    #pragma unroll
    for (int r = 0; r < 2; ++r) {{
      const int i = down + row + m, j = across + group + r * 8;
      const bool there = i < {p.result[0]} && j < {p.result[1]};
      const long long pixel = ((long long)blockIdx.z * {p.result[0]} + i) * {p.result[1]} + j;
      {store}
    }}"""
    names = ["const T* w", *(["const T* b"] if has_bias else [])]
    half = "f16" if required(request, 1).dtype == FLOAT16 else "bf16"
    return kernel_source(
        [f"const {source}* x", *names, "T* y"],
        body,
        threads=threads,
        prefetch=prefetch,
        extra=f"typedef {kind} T; typedef float A;\n{MULTIPLY.replace('<kind>', half)}",
    )


def _bind(binding: Binding) -> Sequence[Enqueue]:
    p = _planar_of(binding.request)
    assert p is not None
    grid = (blocks_for(p.result[1], _COLUMNS), blocks_for(p.result[0], _ROWS), p.batch)
    arguments = [*binding.given(), binding.outputs[0]]
    code = _source(binding.request, p)
    return [binding.kernel(code, arguments, grid=grid, block=p.threads)]


def _prepare(requests: Sequence[KernelRequest], machine: Machine) -> None:
    """Have the kernels compiled, which takes as long as several others."""
    found = [(request, _planar_of(request)) for request in requests]
    machine.compiler.prepare([_source(request, p) for request, p in found if p is not None])


KERNEL_FAMILY: tuple[CudaKernel, ...] = (CudaKernel((OPERATOR,), _choose, _bind, _prepare),)
