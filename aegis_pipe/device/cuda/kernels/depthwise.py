"""Depthwise convolutions, channels last: bound by memory, and faster here than in cuDNN.

A thread has one pixel of a few neighbouring channels, 16 bytes of them; sums are in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from aegis_pipe.device.cuda.kernels.operands import integer, integers, operand, required, result
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import (
    FLOAT32,
    HALF_FLOATS,
    blocks_for,
    kernel_source,
    stored,
)
from aegis_pipe.device.cuda.kernels.windows import activated, is_known_activation
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant

_THREADS = 128
_PACK_BYTES = 16


def _packed(array: np.ndarray) -> np.ndarray:
    """Bring weights [C, 1, H, W] to [H, W, C]."""
    return np.ascontiguousarray(np.moveaxis(array[:, 0], 0, -1)).reshape(-1).view(np.uint8)


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    data, weights = required(request), required(request, 1)
    if data.dtype not in HALF_FLOATS and data.dtype != FLOAT32:
        return None
    channels = data.shape[-1]
    is_depthwise = integer(request, "group") == channels == weights.shape[0]
    if not is_depthwise or len(data.shape) != 4 or 1 not in request.constants:
        return None
    if channels % (_PACK_BYTES // data.dtype.itemsize) or result(request).element_count == 0:
        return None
    if result(request).element_count >= 1 << 31 or not is_known_activation(request):
        return None
    return KernelChoice(
        "conv.depthwise",
        packed={1: PackedConstant("depthwise.channels_last", weights.size_bytes, _packed)},
        cost=float(result(request).element_count * math.prod(weights.shape[2:])),
    )


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    source, target = required(request), result(request)
    kind = stored(source.dtype)
    pack = _PACK_BYTES // source.dtype.itemsize
    _, height, width, channels = source.shape
    _, rows, columns, _ = target.shape
    kernel = required(request, 1).shape[2:]
    strides, dilations, pads = (integers(request, n) for n in ("strides", "dilations", "pads"))
    count = target.element_count // pack
    group = f"Pack<{kind}, {pack}>"
    has_bias, has_addend = (operand(request, at) is not None for at in (2, 3))
    body = f"""
  typedef float A;
  const unsigned i = blockIdx.x * {_THREADS}u + threadIdx.x;
  if (i >= {count}u) return;
  const int c = (int)(i % {channels // pack}u) * {pack};
  const unsigned pixel = i / {channels // pack}u;
  const int column = pixel % {columns}u, row = pixel / {columns}u % {rows}u;
  const {kind}* image =
      x + (long long)(pixel / {rows * columns}u) * {height * width * channels} + c;
  A sum[{pack}] = {{}};
  #pragma unroll
  for (int h = 0; h < {kernel[0]}; ++h) {{
    const int at = row * {strides[0]} + h * {dilations[0]} - {pads[0]};
    if (at < 0 || at >= {height}) continue;
    #pragma unroll
    for (int v = 0; v < {kernel[1]}; ++v) {{
      const int by = column * {strides[1]} + v * {dilations[1]} - {pads[1]};
      if (by < 0 || by >= {width}) continue;
      const {group} p = *(const {group}*)(image + (at * {width} + by) * {channels});
      const {group} q = *(const {group}*)(w + (h * {kernel[1]} + v) * {channels} + c);
      #pragma unroll
      for (int j = 0; j < {pack}; ++j) sum[j] += get(p.v[j]) * get(q.v[j]);
    }}
  }}
  {f"const {group} bias = *(const {group}*)(b + c);" if has_bias else ""}
  {f"const {group} addend = ((const {group}*)z)[i];" if has_addend else ""}
  {group} out;
  #pragma unroll
  for (int j = 0; j < {pack}; ++j) {{
    A a = sum[j];
    {"a += get(bias.v[j]);" if has_bias else ""} {"a += get(addend.v[j]);" if has_addend else ""}
    out.v[j] = To<{kind}>::of({activated(request, "float")});
  }}
  (({group}*)y)[i] = out;"""
    names = ["x", "w", *("b" for _ in range(has_bias)), *("z" for _ in range(has_addend))]
    parameters = [*(f"const {kind}* {name}" for name in names), f"{kind}* y"]
    code = kernel_source(parameters, body, threads=_THREADS)
    arguments = [*binding.given(), binding.outputs[0]]
    return [binding.kernel(code, arguments, grid=blocks_for(count, _THREADS), block=_THREADS)]


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    CudaKernel(("com.microsoft.NhwcFusedConv",), _choose, _bind),
)
