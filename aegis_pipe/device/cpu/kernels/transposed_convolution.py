"""Transposed convolutions.

conv_transpose   weights times input into a column buffer, added tap by tap into the output
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.convolution_columns import (
    Convolution,
    multiply_adds,
    one_tap,
    slices,
)
from aegis_pipe.device.cpu.kernels.planned import all_float, planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.cpu.kernels.windows import AxisWindows, taps, window_axes
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec


def _accepts_transpose(request: KernelRequest) -> bool:
    return all_float(request) and len(operands.input_spec(request, 0).shape) >= 3


def _transposed(request: KernelRequest) -> Convolution:
    """Return the convolution whose gradient this is: its windows are the input's elements."""
    data = operands.input_spec(request, 0).shape
    weights = operands.input_spec(request, 1).shape
    groups = operands.integer(request, "group")
    axes = window_axes(request, operands.output_spec(request).shape[2:], data[2:])
    return Convolution(data[0], groups, weights[1], weights[0] // groups, axes)


def _transpose_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    dtype = operands.input_spec(request, 0).dtype
    return (TensorSpec(dtype, _transposed(request).column_shape(dtype.itemsize)),)


def _bind_transpose(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    shape = _transposed(request)
    data = operands.required(inputs).reshape(shape.batch, shape.groups, shape.maps, shape.positions)
    weights = operands.required(inputs, 1).reshape(shape.groups, shape.maps, -1)
    weights = weights.transpose(0, 2, 1)
    result = operands.required(outputs)
    spatial = result.shape[2:]
    result = result.reshape(shape.batch, shape.groups, shape.depth, *spatial)
    bias = operands.optional(inputs, 2)
    start = 0 if bias is None else bias.reshape(shape.groups, shape.depth, *(1 for _ in spatial))
    steps = []
    for image in range(shape.batch):
        for rows in slices(shape.axes[0].count, scratch[0].shape[2 + len(shape.axes)]):
            positions = slice(rows.start * shape.row_positions, rows.stop * shape.row_positions)
            matrices, additions = _scatter(shape, scratch[0], rows, result[image])
            steps.append((data[image, :, :, positions], matrices, additions))

    def run() -> None:
        np.copyto(result, start)
        for source, matrices, additions in steps:
            np.matmul(weights, source, out=matrices)
            for total, tap in additions:
                np.add(total, tap, out=total)

    return run


def _scatter(
    shape: Convolution, column: np.ndarray, rows: slice, result: np.ndarray
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Return the column buffer of these rows as matrices, and (target, taps) to add."""
    height = rows.stop - rows.start
    dense = (*column.shape[: 2 + len(shape.axes)], height, *column.shape[3 + len(shape.axes) :])
    block = column.reshape(-1)[: math.prod(dense)].reshape(dense)
    first_axis = shape.axes[0]
    axis = AxisWindows(
        first_axis.kernel,
        first_axis.stride,
        first_axis.dilation,
        first_axis.begin - rows.start * first_axis.stride,
        first_axis.end,
        first_axis.source,
        height,
    )
    both = (slice(None), slice(None))
    additions = [
        (result[(*both, *sources)], one_tap(block, index)[(*both, *served)])
        for index, served, sources in taps((axis, *shape.axes[1:]))
    ]
    return block.reshape(shape.groups, -1, height * shape.row_positions), additions


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "conv_transpose",
        ("ConvTranspose",),
        _bind_transpose,
        accepts=_accepts_transpose,
        scratch=_transpose_scratch,
        cost=multiply_adds,
    ),
)
