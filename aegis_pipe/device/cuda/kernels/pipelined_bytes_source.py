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
    line_products,
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
    are_known: bool
    """Whether what zero and columns of the ending need are constants."""


def shared_bytes(p: ByteProduct, tiling: Tiling) -> int:
    """Return the size of the ring of tiles, and of the partial sums that follow it."""
    return max(tiling.shared_bytes(p), tiling.rows * (tiling.columns + _GAP) * 4)


def source_of(p: ByteProduct, tiling: Tiling, given: Operands) -> str:
    """Return the kernel for one tiling; a grid of (splits, columns, rows)."""
    begin, known = _weights(p, tiling) + _pixels(p, tiling), _columns(p, given)
    # What is constant is read while the kernel ahead still runs.
    prefetch, body = (begin + known, "") if given.are_known else (begin, known)
    body += _data(p, tiling) + _elements(tiling, given) + _sums(p, tiling) + _end(p, tiling, given)
    return kernel_source(
        given.parameters,
        body,
        threads=tiling.threads,
        cluster=tiling.splits,
        prefetch=prefetch,
        extra=FUNCTIONS + MULTIPLY_BYTES[given.kinds] + given.ending.functions,
    )


def _at_once(tiling: Tiling) -> int:
    """Return how many lines of a tile the threads of a block load at once."""
    return tiling.threads // 8


def _warps(tiling: Tiling) -> tuple[int, int]:
    """Return how many warps share the rows of a tile, and how many columns each has."""
    return tiling.warps[1], tiling.columns // tiling.warps[1]


def _turns(tiling: Tiling) -> tuple[int, int, int]:
    """Return rows of a tile that a block writes, those of one turn, and how many turns that is."""
    rows, at_once = tiling.rows // tiling.splits, tiling.threads * 4 // tiling.columns
    return rows, at_once, -(-rows // at_once)


def _weights(p: ByteProduct, tiling: Tiling) -> str:
    """Return where a thread stands, and the first loads of weights."""
    groups = p.taps * p.channels // GROUP
    at_once, (across, wide) = _at_once(tiling), _warps(tiling)
    return f"""
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
  for (int s = 0; s < {tiling.ahead(p)}; ++s)
    if (s < count) load_weights(s, base + s * {tiling.line_bytes});"""


def _pixels(p: ByteProduct, tiling: Tiling) -> str:
    """Return which pixels a thread loads, and which results it writes."""
    at_once = _at_once(tiling)
    rows, per_turn, _ = _turns(tiling)
    places = tiling.rows // at_once
    return f"""
  long long image[{places}]; int row[{places}], column[{places}];
  #pragma unroll
  for (int r = 0; r < {places}; ++r) {{
    const int i = i0 + line + r * {at_once};
    image[r] = (long long)(i / {math.prod(p.result)}) * {math.prod(p.space) * p.channels};
    row[r] = i < {p.rows}
        ? i / {p.result[1]} % {p.result[0]} * {p.strides[0]} - ({p.pads[0]}) : -(1 << 20);
    column[r] = i % {p.result[1]} * {p.strides[1]} - ({p.pads[1]});
  }}
  const int own = t % {tiling.columns // 4} * 4, j1 = j0 + own;
  const int first_row = split * {rows} + t / {tiling.columns // 4};
  auto is_result = [&](int turn) {{
    const int r = first_row + turn * {per_turn};
    return r < (split + 1) * {rows} && i0 + r < {p.rows} && j1 < {p.filters}; }};
  auto place_of = [&](int turn) {{
    return (long long)(i0 + first_row + turn * {per_turn}) * {p.filters} + j1; }};"""


def _columns(p: ByteProduct, given: Operands) -> str:
    """Return what is known of a thread's columns, and what is outside of the image."""
    declared = " ".join(f"{kind} {name}_of[4];" for kind, name, _ in given.ending.columns)
    values = " ".join(f"{name}_of[q] = {value};" for _, name, value in given.ending.columns)
    offset = f" - {given.ending.offset}" if given.ending.offset else ""
    return f"""
  const int x0 = {given.zero};
  const u32 filler = (u32)(x0 & 255) * 0x01010101u;
  const Pack<u32, 4> outside = {{{{filler, filler, filler, filler}}}};
  int shift[4]; {declared}
  if (j1 < {p.filters}) {{
    #pragma unroll
    for (int q = 0; q < 4; ++q) {{
      const int j = j1 + q;
      shift[q] = x0 * sums[j]{offset}; {values}
    }}
  }}"""


def _data(p: ByteProduct, tiling: Tiling) -> str:
    """Return the first loads of data."""
    per_tap, groups = p.channels // GROUP, p.taps * p.channels // GROUP
    at_once, (height, width) = _at_once(tiling), p.space
    return f"""
  const u8* bytes = (const u8*)x;
  auto load_data = [&](int step, u32 place) {{
    const int group = (first + step) * 8 + unit;
    {f"if (group >= {groups}) return;" if groups % 8 else ""}
    const int tap = group / {per_tap}, c = (group - tap * {per_tap}) * {GROUP};
    const int down = tap / {p.window[1]} * {p.dilations[0]};
    const int along = tap % {p.window[1]} * {p.dilations[1]};
    #pragma unroll
    for (int r = 0; r < {tiling.rows // at_once}; ++r) {{
      const int h = row[r] + down, v = column[r] + along;
      const u32 target = place + mine + r * {at_once * 128};
      if ((unsigned)h < {height}u && (unsigned)v < {width}u)
        copy(target, bytes + image[r] + (h * {width} + v) * {p.channels} + c, true);
      else
        *(Pack<u32, 4>*)(memory + (target - base)) = outside;
    }} }};
  #pragma unroll
  for (int s = 0; s < {tiling.ahead(p)}; ++s) {{
    if (s < count) load_data(s, base + s * {tiling.line_bytes});
    commit();
  }}"""


def _elements(tiling: Tiling, given: Operands) -> str:
    """Return the loads of what belongs to a thread's results."""
    _, _, turns = _turns(tiling)
    return "".join(
        f"""
  Pack<{kind}, 4> {name}_of[{turns}];
  #pragma unroll
  for (int turn = 0; turn < {turns}; ++turn)
    if (is_result(turn)) {name}_of[turn] = *(const Pack<{kind}, 4>*)({operand} + place_of(turn));"""
        for kind, name, operand in given.ending.elements
    )


def _sums(p: ByteProduct, tiling: Tiling) -> str:
    """Return the products of a block's stretch of the depth."""
    _, wide = _warps(tiling)
    ahead, steps = tiling.ahead(p), tiling.steps(p)
    lines = min(steps, ahead + 1)
    # Of a single line only as much as there is.
    multiplied = 4 if p.steps > 1 else -(-p.taps * p.channels // 32)
    refill = f"""if (step + {ahead} < count) {{
      const u32 place = base + (step + {ahead}) % {lines} * {tiling.line_bytes};
      load_weights(step + {ahead}, place);
      load_data(step + {ahead}, place);
    }}"""
    return f"""
  int sum[2][{wide // 8}][4] = {{}};
  for (int step = 0; step < count; ++step) {{
    wait_for_copies<{ahead - 1}>();
    __syncthreads();
    {refill if steps > ahead else ""}
    commit();
    const u32 left = base + step % {lines} * {tiling.line_bytes};
    const u32 right = left + {tiling.rows * 128};
{line_products(multiplied, wide)}
  }}
  wait_for_copies<0>();
  __syncthreads();"""


def _end(p: ByteProduct, tiling: Tiling, given: Operands) -> str:
    """Return how the blocks of a cluster add up their sums, and what is made of these."""
    _, wide = _warps(tiling)
    _, per_turn, turns = _turns(tiling)
    parts = tiling.columns + _GAP
    columns = " ".join(
        f"const {kind} {name} = {name}_of[place];" for kind, name, _ in given.ending.columns
    )
    elements = " ".join(
        f"const {kind} {name} = {name}_of[turn].v[place];"
        for kind, name, _ in given.ending.elements
    )
    own_sum, barrier, last = "*(const Pack<int, 4>*)(part + from)", "__syncthreads();", ""
    if tiling.splits > 1:
        own_sum, barrier, last = "part_of(base + from * 4, s)", "meet();", "meet();"
    return f"""
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
        {columns} {elements}
        {given.ending.statement}
      }}
    }}
    *(Pack<{given.result}, 4>*)(y + place_of(turn)) = four;
  }}
  {last}"""
