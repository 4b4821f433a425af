"""The kernel of a product of bytes on tensor cores, its tiles loaded ahead.

The depth of a convolution is all its window sees, pixel by pixel: groups of 16 channels, of which
eight are a line of a tile. As of `tensor_convolution_source`, tiles come by `cp.async`, groups are
swapped by row, and the blocks of a cluster share the depth of a tile. A warp multiplies 32 rows
with `mma.m16n8k32`. What is outside of the image is stored as the zero point. What fills the
last line up is multiplied by weights of 0, and may be anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from aegis_pipe.device.cuda.kernels.byte_products import ByteProduct, Ending
from aegis_pipe.device.cuda.kernels.source import MEET, kernel_source
from aegis_pipe.device.cuda.kernels.tensor_instructions import (
    COPIES,
    MULTIPLY_BYTES,
    SHARED,
    WAIT_FOR_COPIES,
)
from aegis_pipe.device.cuda.kernels.tensor_tilings import Tiling

GROUP = 16
"""Bytes that are copied at once: channels of a pixel."""
_GAP = 8
"""Words between rows of sums in shared memory, so that half a warp meets every bank once."""
FUNCTIONS = (
    COPIES
    + WAIT_FOR_COPIES
    + """\
__device__ __forceinline__ Pack<int, 4> part_of(u32 address, u32 block) {
  Pack<int, 4> r; u32 there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(block));
  asm volatile("ld.shared::cluster.v4.s32 {%0, %1, %2, %3}, [%4];"
      : "=r"(r.v[0]), "=r"(r.v[1]), "=r"(r.v[2]), "=r"(r.v[3]) : "r"(there) : "memory");
  return r; }
"""
    + MEET
)
"""What tests on the host have in another form."""


@dataclass(frozen=True, slots=True)
class Operands:
    """What a kernel is given, and what is made of the sums."""

    kinds: tuple[str, str]
    """Of data and weights, in PTX."""
    zero: str
    """C expression of the data's zero point."""
    ending: Ending
    result: str
    """C type of the result."""
    parameters: tuple[str, ...]
    """Declarations: `x`, `packed`, what zero and ending need, `y`."""


def shared_bytes(p: ByteProduct, tiling: Tiling) -> int:
    """Return the size of the ring of tiles, and of the partial sums that follow it."""
    return max(tiling.shared_bytes(p), tiling.rows * (tiling.columns + _GAP) * 4)


def source_of(p: ByteProduct, tiling: Tiling, given: Operands) -> str:
    """Return the kernel for one tiling; a grid of (splits, columns, rows)."""
    across = tiling.warps[1]
    wide = tiling.columns // across
    ahead = tiling.ahead(p)
    refill = tiling.steps(p) > ahead
    lines = min(tiling.steps(p), ahead + 1)
    per_tap, groups = p.channels // GROUP, p.taps * p.channels // GROUP
    at_once = tiling.threads // 8
    places = tiling.rows // at_once
    parts = tiling.columns + _GAP
    fours = tiling.columns // 4
    rows_each = tiling.rows // tiling.splits
    # Lines of one step need not be whole.
    multiplied = 4 if p.steps > 1 else -(-groups // 2)
    declared = " ".join(f"{kind} {name}_of[4];" for kind, name, _ in given.ending.columns)
    set_columns = " ".join(f"{name}_of[q] = {value};" for _, name, value in given.ending.columns)
    get_columns = " ".join(
        f"const {kind} {name} = {name}_of[place];" for kind, name, _ in given.ending.columns
    )
    per_turn = tiling.threads // fours
    turns = -(-rows_each // per_turn)
    load_elements = "\n".join(
        f"""Pack<{kind}, 4> {name}_of[{turns}];
  #pragma unroll
  for (int turn = 0; turn < {turns}; ++turn)
    if (is_result(turn)) {name}_of[turn] = *(const Pack<{kind}, 4>*)({operand} + place_of(turn));"""
        for kind, name, operand in given.ending.elements
    )
    get_elements = " ".join(
        f"const {kind} {name} = {name}_of[turn].v[place];"
        for kind, name, _ in given.ending.elements
    )
    height, width = p.space
    prefetch = f"""
  {SHARED}
  const int t = threadIdx.x, lane = t % 32;
  const int upper = t / 32 / {across} * 32, aside = t / 32 % {across} * {wide};
  const int split = blockIdx.x, j0 = blockIdx.y * {tiling.columns}, i0 = blockIdx.z * {tiling.rows};
  const int first = split * {p.steps} / {tiling.splits};
  const int count = (split + 1) * {p.steps} / {tiling.splits} - first;
  const int unit = t % 8, line = t / 8;
  const u32 base = shared_address(memory);
  const u32 mine = line * 128 + ((unit ^ (line & 7)) << 4);
  const int* sums = (const int*)packed;
  const u8* w = packed + {4 * p.filters};
  auto load_weights = [&](int step, u32 place) {{
    const int group = (first + step) * 8 + unit;
    #pragma unroll
    for (int r = 0; r < {tiling.columns // at_once}; ++r) {{
      const int j = j0 + line + r * {at_once};
      const bool there = j < {p.filters} && group < {groups};
      copy(place + {tiling.rows * 128} + mine + r * {at_once * 128},
           w + (there ? ((long long)j * {groups} + group) * {GROUP} : 0), there);
    }} }};
  #pragma unroll
  for (int s = 0; s < {ahead}; ++s)
    if (s < count) load_weights(s, base + s * {tiling.line_bytes});"""
    own_sum = "*(const Pack<int, 4>*)(part + from)"
    barrier, last = "__syncthreads();", ""
    if tiling.splits > 1:
        own_sum, barrier, last = "part_of(base + from * 4, s)", "meet();", "meet();"
    body = f"""
  const int x0 = {given.zero};
  const u32 filler = (u32)(x0 & 255) * 0x01010101u;
  const Pack<u32, 4> outside = {{{{filler, filler, filler, filler}}}};
  const u8* bytes = (const u8*)x;
  long long image[{places}]; int row[{places}], column[{places}];
  #pragma unroll
  for (int r = 0; r < {places}; ++r) {{
    const int i = i0 + line + r * {at_once};
    image[r] = (long long)(i / {math.prod(p.result)}) * {height * width * p.channels};
    row[r] = i < {p.rows}
        ? i / {p.result[1]} % {p.result[0]} * {p.strides[0]} - ({p.pads[0]}) : -(1 << 20);
    column[r] = i % {p.result[1]} * {p.strides[1]} - ({p.pads[1]});
  }}
  auto load_data = [&](int step, u32 place) {{
    const int group = (first + step) * 8 + unit;
    {f"if (group >= {groups}) return;" if groups % 8 else ""}
    const int tap = group / {per_tap}, c = (group - tap * {per_tap}) * {GROUP};
    const int down = tap / {p.window[1]} * {p.dilations[0]};
    const int along = tap % {p.window[1]} * {p.dilations[1]};
    #pragma unroll
    for (int r = 0; r < {places}; ++r) {{
      const int h = row[r] + down, v = column[r] + along;
      const u32 target = place + mine + r * {at_once * 128};
      if ((unsigned)h < {height}u && (unsigned)v < {width}u)
        copy(target, bytes + image[r] + (h * {width} + v) * {p.channels} + c, true);
      else
        *(Pack<u32, 4>*)(memory + (target - base)) = outside;
    }} }};
  #pragma unroll
  for (int s = 0; s < {ahead}; ++s) {{
    if (s < count) load_data(s, base + s * {tiling.line_bytes});
    commit();
  }}
  const int own = t % {fours} * 4, j1 = j0 + own;
  const int first_row = split * {rows_each} + t / {fours};
  auto is_result = [&](int turn) {{
    const int r = first_row + turn * {per_turn};
    return r < (split + 1) * {rows_each} && i0 + r < {p.rows} && j1 < {p.filters}; }};
  auto place_of = [&](int turn) {{
    return (long long)(i0 + first_row + turn * {per_turn}) * {p.filters} + j1; }};
  int shift[4]; {declared}
  if (j1 < {p.filters}) {{
    #pragma unroll
    for (int q = 0; q < 4; ++q) {{
      const int j = j1 + q;
      shift[q] = x0 * sums[j]; {set_columns}
    }}
  }}
  {load_elements}
  int sum[2][{wide // 8}][4] = {{}};
  for (int step = 0; step < count; ++step) {{
    wait_for_copies<{ahead - 1}>();
    __syncthreads();
    {
        f'''if (step + {ahead} < count) {{
      const u32 place = base + (step + {ahead}) % {lines} * {tiling.line_bytes};
      load_weights(step + {ahead}, place);
      load_data(step + {ahead}, place);
    }}'''
        if refill
        else ""
    }
    commit();
    const u32 left = base + step % {lines} * {tiling.line_bytes};
    const u32 right = left + {tiling.rows * 128};
    #pragma unroll
    for (int k = 0; k < {multiplied}; ++k) {{
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
  wait_for_copies<0>();
  __syncthreads();
  int* part = (int*)memory;
  #pragma unroll
  for (int m = 0; m < 2; ++m)
    #pragma unroll
    for (int n = 0; n < {wide // 8}; ++n)
      #pragma unroll
      for (int h = 0; h < 2; ++h) {{
        const int r = upper + m * 16 + h * 8 + lane / 4, c = aside + n * 8 + lane % 4 * 2;
        *(Pack<int, 2>*)(part + r * {parts} + c) =
            Pack<int, 2>{{{{sum[m][n][2 * h], sum[m][n][2 * h + 1]}}}};
      }}
  {barrier}
  #pragma unroll
  for (int turn = 0; turn < {turns}; ++turn) {{
    const int r = first_row + turn * {per_turn}, i = i0 + r;
    if (!is_result(turn)) break;
    const u32 from = r * {parts} + own;
    int all[4] = {{}};
    #pragma unroll
    for (int s = 0; s < {tiling.splits}; ++s) {{
      const Pack<int, 4> some = {own_sum};
      #pragma unroll
      for (int q = 0; q < 4; ++q) all[q] += some.v[q];
    }}
    Pack<{given.result}, 4> four;
    {{
      {given.result}* const y = four.v;
      #pragma unroll
      for (int place = 0; place < 4; ++place) {{
        const int j = j1 + place, s = all[place] - shift[place];
        {get_columns} {get_elements}
        {given.ending.statement}
      }}
    }}
    *(Pack<{given.result}, 4>*)(y + place_of(turn)) = four;
  }}
  {last}"""
    return kernel_source(
        given.parameters,
        body,
        threads=tiling.threads,
        cluster=tiling.splits,
        prefetch=prefetch,
        extra=FUNCTIONS + MULTIPLY_BYTES[given.kinds] + given.ending.functions,
    )
