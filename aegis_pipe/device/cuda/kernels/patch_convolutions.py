"""A first convolution whose windows lie side by side: patches of an image, as it comes, by weights.

Gathering the patches is where planes in float32 become rows in half precision, so that neither a
cast nor a transpose comes first. In a row they lie as filters do: channel by channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from aegis_pipe.device.cuda.kernels import library_products, planar_convolutions, products
from aegis_pipe.device.cuda.kernels.nested import bind_nested, nested_choice
from aegis_pipe.device.cuda.kernels.operands import integers, operand, required, result, text
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import (
    FLOAT32,
    HALF_FLOATS,
    blocks_for,
    kernel_source,
    stored,
)
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorSpec

_PACK = 8
"""Elements of a window's line that a thread gathers."""
_THREADS = 128
_PRODUCTS = (*library_products.KERNEL_FAMILY, *products.KERNEL_FAMILY)


def _product(request: KernelRequest) -> KernelRequest | None:
    """Return patches [rows, depth] times weights [filters, depth]; None for other convolutions."""
    data, weights, target = required(request), required(request, 1), result(request)
    filters, channels, *window = weights.shape
    if data.dtype not in HALF_FLOATS | {FLOAT32} or weights.dtype not in HALF_FLOATS:
        return None
    if len(window) != 2 or window[1] % _PACK or data.shape[3] % _PACK:
        return None
    is_plain = set(integers(request, "dilations")) == {1} and not any(integers(request, "pads"))
    if not is_plain or list(integers(request, "strides")) != window or text(request, "activation"):
        return None
    depth = channels * math.prod(window)
    bias = operand(request, 2)
    constants = {at: array for at, array in request.constants.items() if at in (1, 2)}
    if 1 in constants:
        constants[1] = constants[1].reshape(filters, depth)
    return KernelRequest(
        "Gemm",
        request.node,
        {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1},
        (
            TensorSpec(weights.dtype, (target.element_count // filters, depth)),
            TensorSpec(weights.dtype, (filters, depth)),
            *(() if bias is None else (bias,)),
        ),
        (TensorSpec(target.dtype, (target.element_count // filters, filters)),),
        constants,
    )


def _patches_bytes(product: KernelRequest) -> int:
    # Rounded, so that a library's workspace after it is aligned.
    return -(-required(product).size_bytes // 256) * 256


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    product = _product(request)
    found = None if product is None else nested_choice(machine, _PRODUCTS, product)
    if product is None or found is None:
        return None
    return replace(
        found[1],
        kernel="conv.planar_patches",
        workspace_bytes=_patches_bytes(product) + found[1].workspace_bytes,
    )


def _gather(binding: Binding) -> Enqueue:
    """Line up the pixels of every patch."""
    request = binding.request
    data, weights = required(request), required(request, 1)
    _, channels, height, width = data.shape
    _, rows, columns, _ = result(request).shape
    down, across = weights.shape[2:]
    packs = across // _PACK
    count = result(request).shape[0] * rows * columns * channels * down * packs
    body = f"""
  const unsigned i = blockIdx.x * {_THREADS}u + threadIdx.x;
  if (i >= {count}u) return;
  const unsigned j = i % {packs}u, h = i / {packs}u % {down}u;
  const unsigned c = i / {packs * down}u % {channels}u, patch = i / {packs * down * channels}u;
  const unsigned column = patch % {columns}u, row = patch / {columns}u % {rows}u;
  const unsigned image = patch / {rows * columns}u;
  const S source = *(const S*)(x + ((image * {channels}u + c) * {height}ull + row * {down}u + h)
      * {width}u + column * {across}u + j * {_PACK}u);
  P target;
  #pragma unroll
  for (int n = 0; n < {_PACK}; ++n)
    target.v[n] = To<{stored(weights.dtype)}>::of(get(source.v[n]));
  y[i] = target;"""
    source, kind = stored(data.dtype), stored(weights.dtype)
    # Eight floats are two loads: no more than sixteen bytes are aligned.
    aligned = f"struct alignas(16) S {{ {source} v[{_PACK}]; }}; typedef Pack<{kind}, {_PACK}> P;"
    code = kernel_source([f"const {source}* x", "P* y"], body, threads=_THREADS, extra=aligned)
    arguments = [binding.inputs[0], binding.workspace]
    return binding.kernel(code, arguments, grid=blocks_for(count, _THREADS), block=_THREADS)


def _bind(binding: Binding) -> Sequence[Enqueue]:
    product = _product(binding.request)
    assert product is not None
    inputs = (binding.workspace, *binding.inputs[1:])[: len(product.inputs)]
    workspace = binding.workspace + _patches_bytes(product)
    multiply = bind_nested(binding, _PRODUCTS, product, inputs, binding.outputs, workspace)
    return [_gather(binding), *multiply]


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    CudaKernel((planar_convolutions.OPERATOR,), _choose, _bind),
)
