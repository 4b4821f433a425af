"""Convolutions and matrix products of bytes on tensor cores, with weights that are known at load.

Rows of the left matrix are pixels with all that their window sees (or rows of a matrix), columns
of the right one are filters. Tensor cores add up x w as the bytes are; zero points come in at the
end, so that sums are exact whatever the operands' types:

    sum (x - x0)(w - w0) = sum x w  -  x0 sum w  -  w0 sum x  +  depth x0 w0

sum w is packed with the weights; sum x is a product with ones, and left out where w0 is 0. What
lies outside of the image, and what fills the channels up, is x0 there.

A block of 4 warps makes 64 x 64 results, a warp 32 x 32 of them with `mma.m16n8k32`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aegis_pipe.device.cuda.kernels.each import given, launch, results
from aegis_pipe.device.cuda.kernels.operands import integer, integers, operand, required, result
from aegis_pipe.device.cuda.kernels.quantised_layers import CONV_NAMES, convolved
from aegis_pipe.device.cuda.kernels.quantised_products import (
    GEMM_NAMES,
    MATMUL_NAMES,
    Matrices,
    gemm_result,
    multiplied,
)
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import blocks_for
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant

_CAPABILITY_MIN = 80
"""Before, tensor cores take bytes in other shapes."""
_EIGHT_BITS = frozenset({np.dtype(np.int8), np.dtype(np.uint8)})
_TILE, _THREADS = 64, 128
_STEP_BYTES = 32
"""Depth of one multiplication."""
_ROW_WORDS = 12
"""Words from row to row in shared memory: 8 and 4 more, so that a warp meets every bank once."""
_CONV = "com.microsoft.QLinearConv"

_MULTIPLY = """
__device__ __forceinline__ void multiply(int* c, const u32* a, const u32* b) {{
  asm("mma.sync.aligned.m16n8k32.row.col.s32.{x}.{w}.s32 {{%0, %1, %2, %3}}, "
      "{{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); }}
"""
_WORD_OF = """
__device__ __forceinline__ u32 word_of(const u8* x, int count, u32 filler) {
  u32 word = 0;
  #pragma unroll
  for (int i = 0; i < 4; ++i) word |= (i < count ? (u32)x[i] : filler & 255u) << 8 * i;
  return word; }
"""
MULTIPLY = {(x, w): _MULTIPLY.format(x=x, w=w) for x in ("s8", "u8") for w in ("s8", "u8")}
"""c[16, 8] += a[16, 32] b[32, 8] of a warp, by the types of A and B in PTX."""


@dataclass(frozen=True, slots=True)
class _Product:
    """A convolution of channels-last images; a matrix is an image of one line."""

    batch: int
    space: tuple[int, int]
    channels: int
    filters: int
    result: tuple[int, int]
    window: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)
    weights_at: int = 3
    x_zero_at: int = 2
    w_zero_at: int = 5

    @property
    def rows(self) -> int:
        """Of the result."""
        return self.batch * math.prod(self.result)

    @property
    def taps(self) -> int:
        """Pixels of a window."""
        return math.prod(self.window)

    @property
    def filled(self) -> int:
        """Channels with those that fill them up, to whole words at least."""
        return -(-self.channels // 4) * 4

    @property
    def steps(self) -> int:
        """Multiplications one after the other."""
        return -(-self.taps * self.filled // _STEP_BYTES)

    @property
    def columns(self) -> int:
        """Filters, filled up to whole tiles."""
        return -(-self.filters // _TILE) * _TILE


def _product_of(request: KernelRequest) -> _Product | None:
    """Return what is to be multiplied, if it is for this kernel."""
    found = _convolution(request) if request.operator == _CONV else _matrices(request)
    if found is None or not found.rows or not found.filters or not found.channels:
        return None
    weights, zero = required(request, found.weights_at), operand(request, found.w_zero_at)
    if required(request).dtype not in _EIGHT_BITS or weights.dtype not in _EIGHT_BITS:
        return None
    if found.weights_at not in request.constants or found.rows >= 1 << 30:
        return None
    return found if zero is None or found.w_zero_at in request.constants else None


def _convolution(request: KernelRequest) -> _Product | None:
    data, weights, target = required(request), required(request, 3), result(request)
    if len(data.shape) != 4 or integer(request, "group") != 1:
        return None
    height, width, pads = *data.shape[1:3], integers(request, "pads")
    first, second = weights.shape[2:]

    def pair(name: str) -> tuple[int, int]:
        down, across = integers(request, name)
        return down, across

    return _Product(
        data.shape[0],
        (height, width),
        data.shape[3],
        weights.shape[0],
        (target.shape[1], target.shape[2]),
        (first, second),
        pair("strides"),
        pair("dilations"),
        (pads[0], pads[1]),
    )


def _matrices(request: KernelRequest) -> _Product | None:
    weights_at, x_zero_at, w_zero_at, singles, vectors = {
        "MatMulInteger": (1, 2, 3, (2,), (3,)),
        "QLinearMatMul": (3, 2, 5, (1, 2, 6, 7), (4, 5)),
        "com.microsoft.QGemm": (1, 3, 5, (2, 3, 7, 8), (4, 5)),
    }[request.operator]
    left, right = required(request).shape, required(request, weights_at).shape
    if len(left) < 2 or len(right) != 2:
        return None
    flipped = False
    if request.operator == "com.microsoft.QGemm":
        flipped = bool(integer(request, "transB"))
        is_whole = (operand(request, 7) is not None) == (result(request).dtype in _EIGHT_BITS)
        if integer(request, "transA") or operand(request, 2) is None or not is_whole:
            return None
    columns = right[0] if flipped else right[1]
    for at in (*singles, *vectors):
        spec = operand(request, at)
        sizes = (1, columns) if at in vectors else (1,)
        if spec is not None and (spec.element_count not in sizes or len(spec.shape) > 1):
            return None
    rows = math.prod(left[:-1])
    return _Product(
        1,
        (1, rows),
        left[-1],
        columns,
        (1, rows),
        weights_at=weights_at,
        x_zero_at=x_zero_at,
        w_zero_at=w_zero_at,
    )


def _packed(request: KernelRequest, p: _Product) -> PackedConstant:
    """Return how weights become sums by filter, then [step, filter, bytes of a step]."""
    is_conv = request.operator == _CONV
    flipped = request.operator == "com.microsoft.QGemm" and bool(integer(request, "transB"))

    def pack(array: np.ndarray) -> np.ndarray:
        # [filter, tap, channel]
        if is_conv:
            taps = np.moveaxis(array, 1, -1).reshape(p.filters, p.taps, p.channels)
        else:
            taps = (array if flipped else array.T)[:, np.newaxis]
        filled = np.zeros((p.columns, p.taps, p.filled), np.uint8)
        filled[: p.filters, :, : p.channels] = taps.view(np.uint8)
        steps = np.zeros((p.columns, p.steps * _STEP_BYTES), np.uint8)
        steps[:, : p.taps * p.filled] = filled.reshape(p.columns, -1)
        by_step = steps.reshape(p.columns, p.steps, _STEP_BYTES).swapaxes(0, 1)
        sums = np.zeros(p.columns, np.int32)
        sums[: p.filters] = taps.sum(axis=(1, 2), dtype=np.int32)
        return np.concatenate([sums.view(np.uint8), np.ascontiguousarray(by_step).reshape(-1)])

    layout = f"tensor_bytes.{'image' if is_conv else 'matrix'}.{int(flipped)}"
    return PackedConstant(layout, p.columns * (4 + p.steps * _STEP_BYTES), pack)


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    if machine.capability < _CAPABILITY_MIN:
        return None
    product = _product_of(request)
    if product is None:
        return None
    return KernelChoice(
        "conv.tensor_bytes" if request.operator == _CONV else "matmul.tensor_bytes",
        packed={product.weights_at: _packed(request, product)},
        cost=float(product.rows * product.filters * product.taps * product.channels),
    )


def _load(p: _Product) -> str:
    """Return a function of a thread's 16 bytes of a step: word `q` and the 3 behind it."""
    per_tap, count = p.filled // 4, p.taps * p.filled // 4
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


def _final(request: KernelRequest, p: _Product) -> tuple[str, dict[str, int]]:
    """Return the statement that writes the result of `s`, and the operands it needs."""
    if request.operator == _CONV:
        return f"const int a = s; const int c = j; y[place] = {convolved(request)};", CONV_NAMES
    if request.operator == "com.microsoft.QGemm":
        return f"y[place] = {gemm_result(request, p.rows, p.filters)};", GEMM_NAMES
    right = required(request, p.weights_at).shape
    matrices = Matrices.of((p.rows, p.channels), right, turned=(False, False))
    names = {} if request.operator == "MatMulInteger" else MATMUL_NAMES
    return f"const u32 z = 0; y[place] = {multiplied(request, matrices)};", names


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    p = _product_of(request)
    assert p is not None
    x_kind, w_kind = (
        "s8" if required(request, at).dtype == np.int8 else "u8" for at in (0, p.weights_at)
    )
    x_zero = "(int)*x_zero" if operand(request, p.x_zero_at) is not None else "0"
    zeros, zero_spec = request.constants.get(p.w_zero_at), operand(request, p.w_zero_at)
    has_w_zero = zeros is not None and bool(zeros.any())
    ones, add_ones, correct = "", "", ""
    if has_w_zero:
        assert zero_spec is not None
        at = "j" if zero_spec.element_count > 1 else "0"
        ones = "int line[2][4] = {}; const u32 one[2] = {0x01010101u, 0x01010101u};"
        add_ones = "multiply(line[mi], a[mi], one);"
        correct = f"- (int)w_zero[{at}] * (line[mi][r] - {p.steps * _STEP_BYTES} * x0)"
    final, names = _final(request, p)
    body = f"""
  __shared__ __align__(16) u32 left[{_TILE} * {_ROW_WORDS}], right[{_TILE} * {_ROW_WORDS}];
  const int t = threadIdx.x, lane = t % 32, group = lane / 4, quarter = lane % 4;
  const int upper = t / 32 / 2 * 32, aside = t / 32 % 2 * 32;
  const int i0 = blockIdx.x * {_TILE}, j0 = blockIdx.y * {_TILE};
  const int x0 = {x_zero};
  const u32 filler = (u32)(x0 & 255) * 0x01010101u;
  const int own = i0 + t / 2, half = t % 2 * 4;
  const long long image = own / {math.prod(p.result)};
  const int down = own / {p.result[1]} % {p.result[0]} * {p.strides[0]} - ({p.pads[0]});
  const int across = own % {p.result[1]} * {p.strides[1]} - ({p.pads[1]});
  const bool valid = own < {p.rows};
  const int* sums = (const int*)packed;
  const Pack<u32, 4>* weights = (const Pack<u32, 4>*)(packed + {4 * p.columns}) + j0 * 2 + t;
  const u8* bytes = (const u8*)x;
  int sum[2][4][4] = {{}};
  {ones}
  Pack<u32, 4> next_left = load(bytes, valid, image, down, across, half, filler);
  Pack<u32, 4> next_right = weights[0];
  for (int step = 0; step < {p.steps}; ++step) {{
    __syncthreads();
    *(Pack<u32, 4>*)(left + t / 2 * {_ROW_WORDS} + half) = next_left;
    *(Pack<u32, 4>*)(right + t / 2 * {_ROW_WORDS} + half) = next_right;
    __syncthreads();
    if (step + 1 < {p.steps}) {{
      next_left = load(bytes, valid, image, down, across, (step + 1) * 8 + half, filler);
      next_right = weights[(long long)(step + 1) * {2 * p.columns}];
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
        const int s = sum[mi][ni][r] - x0 * sums[j] {correct};
        const long long place = (long long)i * {p.filters} + j;
        {final}
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
        extra=MULTIPLY[x_kind, w_kind] + _load(p),
    )


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    CudaKernel(
        (_CONV, "QLinearMatMul", "MatMulInteger", "com.microsoft.QGemm"),
        _choose,
        _bind,
    ),
)
