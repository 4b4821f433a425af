"""The kernel of a convolution on tensor cores.

Rows of the left matrix are pixels with all that their window sees, columns of the right one are
filters. Weights are constants, so that their first tiles are on the way before the kernel ahead
has ended. A warp multiplies 32 rows with `mma.m16n8k16`; tiles come by `cp.async`, in lines of 64
elements whose groups of eight are swapped by row, so that a warp meets every bank once.
"""

from __future__ import annotations

import math

import numpy as np

from aegis_pipe.device.cuda.kernels.source import (
    FLOAT16,
    HALF_FLOATS,
    MEET,
    kernel_source,
    stored,
)
from aegis_pipe.device.cuda.kernels.tensor_instructions import INSTRUCTIONS, line_products
from aegis_pipe.device.cuda.kernels.tensor_tilings import DEPTH, TensorConvolution, Tiling

_FUNCTIONS = """
struct alignas(16) Four { float v[4]; };
__device__ __forceinline__ Four part_of(u32 address, u32 block) {
  Four r; u32 there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(block));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
      : "=f"(r.v[0]), "=f"(r.v[1]), "=f"(r.v[2]), "=f"(r.v[3]) : "r"(there) : "memory");
  return r; }
"""


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
    per_tap = -(-p.channels // DEPTH)
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
    const int c = (first + step - tap * {per_tap}) * {DEPTH} + unit * 8;
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
    const int c = (first + step - tap * {per_tap}) * {DEPTH} + unit * 8;
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
{line_products(4, wide)}
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
        f"typedef float A;\n{INSTRUCTIONS.replace('<kind>', kind)}{_FUNCTIONS}{MEET}",
    )


def _bfloat16() -> np.dtype:
    return next(iter(HALF_FLOATS - {FLOAT16}))
