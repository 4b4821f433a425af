"""Convolutions as matrix products.

conv.pointwise   1x1, stride 1: one batched matmul on the operands as they are
conv.depthwise   one input channel a group: a sum of shifted multiplies of whole planes
conv.columns     all else: blocks of output rows at a time, whose windows are gathered into a
                 column buffer, then weights times columns straight into the output
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import activations, operands
from aegis_pipe.device.cpu.kernels.convolution_columns import (
    column_blocks,
    column_specs,
    convolution_of,
    interior_of,
    multiply_adds,
    slices,
)
from aegis_pipe.device.cpu.kernels.depthwise_convolution import depthwise_block, depthwise_scratch
from aegis_pipe.device.cpu.kernels.planned import all_float, planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_CONVS = ("Conv", "com.microsoft.FusedConv")
_Epilogue = Callable[[np.ndarray], None]


def _accepts(request: KernelRequest) -> bool:
    spatial_rank = len(operands.input_spec(request, 0).shape) - 2
    return (
        all_float(request)
        and spatial_rank >= 1
        and min(operands.integers(request, "pads")) >= 0
        and activations.known(str(request.attributes.get("activation", "")))
    )


def _accepts_pointwise(request: KernelRequest) -> bool:
    return _accepts(request) and all(
        axis.kernel == axis.stride == 1 and not axis.is_padded
        for axis in convolution_of(request).axes
    )


def _accepts_depthwise(request: KernelRequest) -> bool:
    return _accepts(request) and convolution_of(request).depth == 1 < convolution_of(request).groups


def _epilogue(
    request: KernelRequest, inputs: Sequence[np.ndarray | None], image: int | slice, rows: slice
) -> _Epilogue:
    """Return what is left to do to output [groups, maps, rows of this image...] once summed."""
    steps: list[_Epilogue] = []
    groups = operands.integer(request, "group")
    bias = operands.optional(inputs, 2)
    residual = operands.optional(inputs, 3)
    if bias is not None:
        column = bias.reshape(groups, -1, 1)
        steps.append(lambda block: _add(block, column))
    if residual is not None:
        shape = operands.output_spec(request).shape
        planes = residual.reshape(shape[0], groups, -1, math.prod(shape[2:]))[image, :, :, rows]
        steps.append(lambda block: _add(block, planes))
    if request.operator == "com.microsoft.FusedConv":
        parameters = operands.numbers(request, "activation_params")
        activate = activations.activation(operands.text(request, "activation"), parameters)
        if activate:
            steps.append(activate)

    def apply(block: np.ndarray) -> None:
        for step in steps:
            step(block)

    return apply


def _add(block: np.ndarray, other: np.ndarray) -> None:
    np.add(block, other, out=block)


def _bind_pointwise(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    shape = convolution_of(request)
    weights = operands.required(inputs, 1).reshape(shape.groups, shape.maps, shape.depth)
    data = operands.required(inputs).reshape(shape.batch, shape.groups, shape.depth, -1)
    result = operands.required(outputs).reshape(shape.batch, shape.groups, shape.maps, -1)
    finish = _epilogue(request, inputs, slice(None), slice(None))

    def run() -> None:
        np.matmul(weights, data, out=result)
        finish(result)

    return run


def _bind_depthwise(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    shape = convolution_of(request)
    planes = scratch[0]
    data, weights = operands.required(inputs), operands.required(inputs, 1)
    weights = weights.reshape(shape.groups, shape.maps, *weights.shape[2:])
    result = operands.required(outputs)
    split = result.reshape(shape.batch, shape.groups, shape.maps, *result.shape[2:])
    flat = result.reshape(shape.batch, shape.groups, shape.maps, -1)
    blocks = [
        depthwise_block(
            shape, data[image, channels], weights[channels], split[image, channels], scratch
        )
        for image in range(shape.batch)
        for channels in slices(shape.groups, planes.shape[1])
    ]
    finish = _epilogue(request, inputs, slice(None), slice(None))

    def run() -> None:
        planes.fill(0)
        for block in blocks:
            block()
        finish(flat)

    return run


def _columns_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    return column_specs(convolution_of(request), operands.input_spec(request, 0).dtype)


def _bind_columns(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    shape = convolution_of(request)
    padded, column = scratch
    data = operands.required(inputs)
    data = data.reshape(shape.batch, shape.groups, shape.depth, *data.shape[2:])
    weights = operands.required(inputs, 1).reshape(shape.groups, shape.maps, -1)
    result = operands.required(outputs).reshape(
        shape.batch, shape.groups, shape.maps, shape.positions
    )
    interior = interior_of(shape, padded) if shape.is_padded else None
    images = []
    for image in range(shape.batch):
        source = padded if shape.is_padded else data[image]
        steps = [
            (
                windows,
                target,
                matrices,
                result[image, :, :, positions],
                _epilogue(request, inputs, image, positions),
            )
            for windows, target, matrices, positions in column_blocks(shape, source, column)
        ]
        images.append((data[image], steps))

    def run() -> None:
        if interior is not None:
            padded.fill(0)
        for image, steps in images:
            if interior is not None:
                np.copyto(interior, image)
            for windows, target, matrices, total, finish in steps:
                np.copyto(target, windows)
                np.matmul(weights, matrices, out=total)
                finish(total)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "conv.pointwise", _CONVS, _bind_pointwise, accepts=_accepts_pointwise, cost=multiply_adds
    ),
    planned_kernel(
        "conv.depthwise",
        _CONVS,
        _bind_depthwise,
        accepts=_accepts_depthwise,
        scratch=depthwise_scratch,
        cost=multiply_adds,
    ),
    planned_kernel(
        "conv.columns",
        _CONVS,
        _bind_columns,
        accepts=_accepts,
        scratch=_columns_scratch,
        cost=multiply_adds,
    ),
)
