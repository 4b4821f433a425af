"""Convolutions that are matrix products: windows of one pixel, or side by side (patches).

Channels last, such a convolution multiplies rows of pixels, or of patches gathered first, by a
matrix of weights; bias, residual and Relu go into the product's epilogue. Taken where it was
measured to be faster than cuDNN's best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.cublaslt import MatrixProduct
from aegis_pipe.device.cuda.cudnn_convolution import Convolution
from aegis_pipe.device.cuda.kernels.library_convolutions import (
    convolution_of,
    cudnn_microseconds,
)
from aegis_pipe.device.cuda.kernels.library_products import planned_product
from aegis_pipe.device.cuda.kernels.operands import required, result
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import blocks_for, kernel_source, stored
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant

_ALIGNMENT_BYTES = 16
_THREADS = 256


@dataclass(frozen=True, slots=True)
class ConvolutionProduct:
    """A convolution as a product."""

    product: MatrixProduct
    are_patches: bool
    """Whether pixels have to be gathered first."""


def as_product(request: KernelRequest, c: Convolution) -> ConvolutionProduct | None:
    """Return the product of what `convolution_of` gives for a request, if it is one."""
    if c.groups != 1 or c.activation not in ("", "relu"):
        return None
    if any((*c.pads_before, *c.pads_after)) or set(c.dilations) != {1} or c.strides != c.window:
        return None
    channels = required(request).shape[-1]
    depth, row = channels * math.prod(c.window), channels * c.window[1]
    step = _ALIGNMENT_BYTES // required(request).dtype.itemsize
    if row % step or depth % step or c.filters % step or channels * c.spatial[1] % step:
        return None
    product = MatrixProduct(
        m=c.batch * math.prod(c.result),
        n=c.filters,
        k=depth,
        dtype=c.dtype,
        w_transposed=True,
        bias=c.bias,
        residual=c.residual,
        activation=c.activation,
        tf32=c.tf32,
    )
    return ConvolutionProduct(product, math.prod(c.window) > 1)


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    if machine.cublaslt is None or machine.cudnn is None:
        return None
    convolution = convolution_of(request)
    found = None if convolution is None else as_product(request, convolution)
    if convolution is None or found is None:
        return None
    planned = planned_product(machine, found.product)
    if planned is None:
        return None
    microseconds = planned.microseconds
    if found.are_patches:
        microseconds += _gather_microseconds(request, machine)
    other = cudnn_microseconds(machine, convolution)
    if other is not None and other <= microseconds:
        return None
    return KernelChoice(
        "conv.patches" if found.are_patches else "conv.pixels",
        workspace_bytes=_patches_bytes(found) + planned.algorithm.workspace_bytes,
        packed={1: packed_channels_last(request)},
        cost=float(result(request).element_count * math.prod(required(request, 1).shape[1:])),
    )


def library_microseconds(request: KernelRequest, machine: Machine) -> float | None:
    """Return what was measured of the libraries' best way; None if they have none."""
    convolution = convolution_of(request)
    if convolution is None:
        return None
    found = as_product(request, convolution)
    planned = None if found is None else planned_product(machine, found.product)
    times = [cudnn_microseconds(machine, convolution)]
    if found is not None and planned is not None:
        gathering = _gather_microseconds(request, machine) if found.are_patches else 0.0
        times.append(planned.microseconds + gathering)
    return min((each for each in times if each is not None), default=None)


def packed_channels_last(request: KernelRequest) -> PackedConstant:
    """Return how weights [M, C, window...] become [M, window..., C]."""
    weights = required(request, 1)

    def pack(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(array, 1, -1)).reshape(-1).view(np.uint8)

    return PackedConstant(f"channels_last.{weights.shape[1]}", weights.size_bytes, pack)


def _patches_bytes(found: ConvolutionProduct) -> int:
    if not found.are_patches:
        return 0
    item = 4 if found.product.dtype == "float32" else 2
    # Rounded, so that the library's own workspace after it is aligned.
    return -(-item * found.product.m * found.product.k // 256) * 256


def _gather(request: KernelRequest) -> tuple[str, int]:
    """Return the source that lines up the pixels of every patch, and how many blocks it takes."""
    convolution = convolution_of(request)
    assert convolution is not None
    spec = required(request)
    kind, pack = stored(spec.dtype), _ALIGNMENT_BYTES // spec.dtype.itemsize
    (height, width), (rows, columns) = convolution.spatial, convolution.result
    across = convolution.window[1] * spec.shape[-1] // pack
    line = width * spec.shape[-1] // pack
    down = convolution.window[0]
    count = convolution.batch * rows * columns * down * across
    body = f"""
  const unsigned i = blockIdx.x * {_THREADS}u + threadIdx.x;
  if (i >= {count}u) return;
  const unsigned j = i % {across}u, h = i / {across}u % {down}u;
  const unsigned patch = i / {across * down}u;
  const unsigned column = patch % {columns}u, row = patch / {columns}u % {rows}u;
  const unsigned image = patch / {rows * columns}u;
  y[i] = x[(image * {height}u + row * {down}u + h) * {line}u + column * {across}u + j];"""
    code = kernel_source(
        ["const P* x", "P* y"], body, threads=_THREADS, extra=f"typedef Pack<{kind}, {pack}> P;"
    )
    return code, blocks_for(count, _THREADS)


def _gather_microseconds(request: KernelRequest, machine: Machine) -> float:
    """Measure the gathering, once a machine."""
    assert machine.tuner is not None
    code, blocks = _gather(request)
    known = machine.tuner.remembered(code, "own kernels")
    if known is None:
        function = machine.compiler.function(code)

        def way(stream: int, addresses: Sequence[int]) -> None:
            arguments = driver.Arguments(addresses)
            driver.launch(function, (blocks, 1, 1), (_THREADS, 1, 1), 0, stream, arguments)

        sizes = [required(request).size_bytes, blocks * _THREADS * _ALIGNMENT_BYTES]
        found = machine.tuner.fastest([way], sizes, result=1)
        assert found is not None, "copying gives the same bits every time"
        known = {"microseconds": found[1]}
        machine.tuner.remember(code, "own kernels", known)
    return float(str(known["microseconds"]))


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    convolution = convolution_of(request)
    found = None if convolution is None else as_product(request, convolution)
    assert found is not None
    planned = planned_product(binding.machine, found.product)
    assert planned is not None
    x, w, y = binding.inputs[0], binding.inputs[1], binding.outputs[0]
    assert x is not None
    assert w is not None
    assert y is not None
    bias, residual = ([*binding.inputs[2:], None, None])[:2]
    binding.reads_unwaited(1, 2, 3)
    rows = binding.workspace if found.are_patches else x

    def enqueue(stream: int) -> None:
        planned.plan.enqueue(
            planned.algorithm,
            stream,
            x=rows,
            w=w,
            y=y,
            bias=bias or 0,
            residual=residual or 0,
            workspace=binding.workspace + _patches_bytes(found),
        )

    if not found.are_patches:
        return [enqueue]
    code, blocks = _gather(request)
    gather = binding.kernel(code, [x, binding.workspace], grid=blocks, block=_THREADS)
    return [gather, enqueue]


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    CudaKernel(("com.microsoft.NhwcFusedConv",), _choose, _bind),
)
