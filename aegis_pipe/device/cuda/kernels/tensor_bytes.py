"""Products of bytes on tensor cores, of any number of channels and with any zero points.

A block of 4 warps makes 64 x 64 results, a warp 32 x 32 of them with `mma.m16n8k32`. What fills
the channels up to whole words is the data's zero point; where zero points of weights are other
than 0, sum x is a product with ones. Where neither is needed, `pipelined_bytes` is asked first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from aegis_pipe.device.cuda.kernels.byte_products import (
    CAPABILITY_MIN,
    CONVOLUTIONS,
    OPERATORS,
    ByteProduct,
    ending_of,
    has_weights_zero,
    is_turned,
    kinds_of,
    product_of,
    taps_of,
    zero_of,
)
from aegis_pipe.device.cuda.kernels.each import given, launch, results
from aegis_pipe.device.cuda.kernels.operands import operand
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import blocks_for
from aegis_pipe.device.cuda.kernels.tensor_instructions import MULTIPLY_BYTES
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant

_TILE, _THREADS = 64, 128
_STEP_BYTES = 32
"""Depth of one multiplication."""
_ROW_WORDS = 12
"""Words from row to row in shared memory: 8 and 4 more, so that a warp meets every bank once."""

_WORD_OF = """
__device__ __forceinline__ u32 word_of(const u8* x, int count, u32 filler) {
  u32 word = 0;
  #pragma unroll
  for (int i = 0; i < 4; ++i) word |= (i < count ? (u32)x[i] : filler & 255u) << 8 * i;
  return word; }
"""


def _filled(p: ByteProduct) -> int:
    """Return the channels with those that fill them up, to whole words at least."""
    return -(-p.channels // 4) * 4


def _steps(p: ByteProduct) -> int:
    """Return how many multiplications there are, one after the other."""
    return -(-p.taps * _filled(p) // _STEP_BYTES)


def _columns(p: ByteProduct) -> int:
    """Return the filters, filled up to whole tiles."""
    return -(-p.filters // _TILE) * _TILE


def _packed(request: KernelRequest, p: ByteProduct) -> PackedConstant:
    """Return how weights become sums by filter, then [step, filter, bytes of a step]."""
    is_image = request.operator in CONVOLUTIONS

    def pack(array: np.ndarray) -> np.ndarray:
        taps = taps_of(request, p, array)
        filled = np.zeros((_columns(p), p.taps, _filled(p)), np.uint8)
        filled[: p.filters, :, : p.channels] = taps.view(np.uint8)
        steps = np.zeros((_columns(p), _steps(p) * _STEP_BYTES), np.uint8)
        steps[:, : p.taps * _filled(p)] = filled.reshape(_columns(p), -1)
        by_step = steps.reshape(_columns(p), _steps(p), _STEP_BYTES).swapaxes(0, 1)
        sums = np.zeros(_columns(p), np.int32)
        sums[: p.filters] = taps.sum(axis=(1, 2), dtype=np.int32)
        return np.concatenate([sums.view(np.uint8), np.ascontiguousarray(by_step).reshape(-1)])

    layout = f"tensor_bytes.{'image' if is_image else 'matrix'}.{int(is_turned(request))}"
    return PackedConstant(layout, _columns(p) * (4 + _steps(p) * _STEP_BYTES), pack)


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    if machine.capability < CAPABILITY_MIN:
        return None
    product = product_of(request)
    if product is None:
        return None
    return KernelChoice(
        "conv.tensor_bytes" if request.operator in CONVOLUTIONS else "matmul.tensor_bytes",
        packed={product.weights_at: _packed(request, product)},
        cost=float(product.rows * product.filters * product.taps * product.channels),
    )


def _load(p: ByteProduct) -> str:
    """Return a function of a thread's 16 bytes of a step: word `q` and the 3 behind it."""
    per_tap, count = _filled(p) // 4, p.taps * _filled(p) // 4
    # Whole loads where 4 words never leave a tap.
    width = 4 if p.channels % 16 == 0 else 1
    read, some = f"*(const Pack<u32, {width}>*)(x + at)", ""
    if p.channels % 4:
        read = f"Pack<u32, 1>{{{{word_of(x + at, {p.channels} - c, filler)}}}}"
        some = _WORD_OF
    return f"""{some}
__device__ __forceinline__ Pack<u32, 4> load(const u8* x, bool valid, long long image, int down,
                                             int across, int q, u32 filler) {{
  Pack<u32, 4> all;
  #pragma unroll
  for (int i = 0; i < 4; i += {width}) {{
    const int tap = (q + i) / {per_tap}, c = (q + i) % {per_tap} * 4;
    const int row = down + tap / {p.window[1]} * {p.dilations[0]};
    const int column = across + tap % {p.window[1]} * {p.dilations[1]};
    Pack<u32, {width}> words;
    #pragma unroll
    for (int j = 0; j < {width}; ++j) words.v[j] = filler;
    if (valid && q + i < {count} && row >= 0 && row < {p.space[0]} && column >= 0
        && column < {p.space[1]}) {{
      const long long pixel = (image * {p.space[0]} + row) * {p.space[1]} + column;
      const long long at = pixel * {p.channels} + c;
      words = {read};
    }}
    #pragma unroll
    for (int j = 0; j < {width}; ++j) all.v[i + j] = words.v[j];
  }}
  return all; }}
"""


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    p = product_of(request)
    assert p is not None
    zero_spec, has_w_zero = operand(request, p.w_zero_at), has_weights_zero(request, p)
    ones, add_ones, correct = "", "", ""
    if has_w_zero:
        assert zero_spec is not None
        at = "j" if zero_spec.element_count > 1 else "0"
        ones = "int line[2][4] = {}; const u32 one[2] = {0x01010101u, 0x01010101u};"
        add_ones = "multiply(line[mi], a[mi], one);"
        correct = f"- (int)w_zero[{at}] * (line[mi][r] - {_steps(p) * _STEP_BYTES} * x0)"
    ending, names = ending_of(request, p)
    offset = f"+ {ending.offset}" if ending.offset else ""
    needed = (*ending.columns, *((k, n, f"{given}[place]") for k, n, given in ending.elements))
    read = " ".join(f"const {kind} {name} = {value};" for kind, name, value in needed)
    body = f"""
  __shared__ __align__(16) u32 left[{_TILE} * {_ROW_WORDS}], right[{_TILE} * {_ROW_WORDS}];
  const int t = threadIdx.x, lane = t % 32, group = lane / 4, quarter = lane % 4;
  const int upper = t / 32 / 2 * 32, aside = t / 32 % 2 * 32;
  const int i0 = blockIdx.x * {_TILE}, j0 = blockIdx.y * {_TILE};
  const int x0 = {zero_of(request, p)};
  const u32 filler = (u32)(x0 & 255) * 0x01010101u;
  const int own = i0 + t / 2, half = t % 2 * 4;
  const long long image = own / {math.prod(p.result)};
  const int down = own / {p.result[1]} % {p.result[0]} * {p.strides[0]} - ({p.pads[0]});
  const int across = own % {p.result[1]} * {p.strides[1]} - ({p.pads[1]});
  const bool valid = own < {p.rows};
  const int* sums = (const int*)packed;
  const Pack<u32, 4>* weights = (const Pack<u32, 4>*)(packed + {4 * _columns(p)}) + j0 * 2 + t;
  const u8* bytes = (const u8*)x;
  int sum[2][4][4] = {{}};
  {ones}
  Pack<u32, 4> next_left = load(bytes, valid, image, down, across, half, filler);
  Pack<u32, 4> next_right = weights[0];
  for (int step = 0; step < {_steps(p)}; ++step) {{
    __syncthreads();
    *(Pack<u32, 4>*)(left + t / 2 * {_ROW_WORDS} + half) = next_left;
    *(Pack<u32, 4>*)(right + t / 2 * {_ROW_WORDS} + half) = next_right;
    __syncthreads();
    if (step + 1 < {_steps(p)}) {{
      next_left = load(bytes, valid, image, down, across, (step + 1) * 8 + half, filler);
      next_right = weights[(long long)(step + 1) * {2 * _columns(p)}];
    }}
    u32 a[2][4], b[4][2];
    #pragma unroll
    for (int mi = 0; mi < 2; ++mi)
      #pragma unroll
      for (int r = 0; r < 4; ++r)
        a[mi][r] = left[(upper + mi * 16 + r % 2 * 8 + group) * {_ROW_WORDS} + r / 2 * 4 + quarter];
    #pragma unroll
    for (int ni = 0; ni < 4; ++ni)
      #pragma unroll
      for (int r = 0; r < 2; ++r)
        b[ni][r] = right[(aside + ni * 8 + group) * {_ROW_WORDS} + r * 4 + quarter];
    #pragma unroll
    for (int mi = 0; mi < 2; ++mi) {{
      #pragma unroll
      for (int ni = 0; ni < 4; ++ni) multiply(sum[mi][ni], a[mi], b[ni]);
      {add_ones}
    }}
  }}
  #pragma unroll
  for (int mi = 0; mi < 2; ++mi)
    #pragma unroll
    for (int ni = 0; ni < 4; ++ni)
      #pragma unroll
      for (int r = 0; r < 4; ++r) {{
        const int i = i0 + upper + mi * 16 + r / 2 * 8 + group;
        const int j = j0 + aside + ni * 8 + quarter * 2 + r % 2;
        if (i >= {p.rows} || j >= {p.filters}) continue;
        const int s = sum[mi][ni][r] - x0 * sums[j] {offset} {correct};
        const long long place = (long long)i * {p.filters} + j;
        {read}
        {ending.statement}
      }}"""
    operands = {"x": 0, "x_zero": p.x_zero_at, **names}
    if has_w_zero:
        operands["w_zero"] = p.w_zero_at
    packed = binding.inputs[p.weights_at]
    assert packed is not None
    parameters = [
        *given(binding, operands),
        ("const u8* packed", packed),
        *results(binding, {"y": 0}),
    ]
    grid = (blocks_for(p.rows, _TILE), blocks_for(p.filters, _TILE), 1)
    return launch(
        binding,
        body,
        parameters,
        grid=grid,
        threads=_THREADS,
        extra=MULTIPLY_BYTES[kinds_of(request, p)] + ending.functions + _load(p),
    )


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    CudaKernel(
        OPERATORS,
        _choose,
        _bind,
    ),
)
