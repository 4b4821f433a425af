"""What convolutions share: their sizes, and column buffers that stay in cache (im2col).

Blocks of output rows at a time, whose windows are gathered into a column buffer (Chellapilla et al.
2006).
"""

from __future__ import annotations

import math

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.windows import AxisWindows, window_axes, window_view
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorSpec

_COLUMN_BYTES = 2 << 20
"""Wanted size of a column buffer: about a core's second-level cache."""
_COLUMNS_MIN = 192
"""Fewer columns a block would leave the matrix product short of work."""


@record(eq=True)
class Convolution:
    """Sizes of a convolution; a group has `depth` input channels and `maps` output channels."""

    batch: int
    groups: int
    depth: int
    maps: int
    axes: tuple[AxisWindows, ...]

    @property
    def kernel_elements(self) -> int:
        """Elements of one input channel that a window has."""
        return math.prod(axis.kernel for axis in self.axes)

    @property
    def positions(self) -> int:
        """Windows of one image."""
        return math.prod(axis.count for axis in self.axes)

    @property
    def row_positions(self) -> int:
        """Windows of one image at one place of the first spatial dimension."""
        return math.prod(axis.count for axis in self.axes[1:])

    @property
    def is_padded(self) -> bool:
        """Whether windows reach beyond the image."""
        return any(axis.is_padded for axis in self.axes)

    @property
    def padded_shape(self) -> tuple[int, ...]:
        """[groups, depth, spatial...] of one image with its padding."""
        return (self.groups, self.depth, *(axis.padded for axis in self.axes))

    def block_rows(self, itemsize: int) -> int:
        """Places of the first spatial dimension that share one column buffer."""
        column_bytes = self.groups * self.depth * self.kernel_elements * itemsize
        columns = max(_COLUMN_BYTES // max(column_bytes, 1), _COLUMNS_MIN)
        rows = max(1, columns // max(self.row_positions, 1))
        blocks = -(-self.axes[0].count // rows)
        return -(-self.axes[0].count // max(blocks, 1))

    def column_shape(self, itemsize: int) -> tuple[int, ...]:
        """Return the column buffer's [groups, depth, kernel..., rows, positions of a row...]."""
        rows = self.block_rows(itemsize)
        return (
            self.groups,
            self.depth,
            *(axis.kernel for axis in self.axes),
            rows,
            *(axis.count for axis in self.axes[1:]),
        )


def convolution_of(request: KernelRequest, weights_at: int = 1) -> Convolution:
    """Return a request's sizes; its weights are operand `weights_at`."""
    data = operands.input_spec(request, 0).shape
    weights = operands.input_spec(request, weights_at).shape
    groups = operands.integer(request, "group")
    result = operands.output_spec(request).shape
    axes = window_axes(request, data[2:], result[2:])
    return Convolution(data[0], groups, weights[1], weights[0] // groups, axes)


def multiply_adds(request: KernelRequest) -> float:
    """Return how many products are summed: the cost of a convolution."""
    weights_at = 3 if request.operator == "QLinearConv" else 1
    weights = operands.input_spec(request, weights_at)
    transposed = request.operator == "ConvTranspose"
    windows = operands.input_spec(request, 0) if transposed else operands.output_spec(request)
    spatial = math.prod(windows.shape[2:])
    return float(windows.shape[0] * spatial * weights.element_count)


def slices(count: int, step: int) -> list[slice]:
    """Cut `count` elements into slices of `step`; the last may be shorter."""
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


def one_tap(weights: np.ndarray, index: tuple[int, ...]) -> np.ndarray:
    """Return one tap of [groups, maps, kernel..., rest...]."""
    for position in index:
        weights = weights[:, :, position]
    return weights


def column_specs(shape: Convolution, dtype: np.dtype) -> tuple[TensorSpec, TensorSpec]:
    """Return specs of one image with its padding, and of the column buffer."""
    padded = shape.padded_shape if shape.is_padded else (0,)
    return TensorSpec(dtype, padded), TensorSpec(dtype, shape.column_shape(dtype.itemsize))


def column_blocks(
    shape: Convolution, image: np.ndarray, column: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, slice]]:
    """Cut an image [groups, depth, padded spatial...] into blocks of output rows.

    Returns (windows, their place in the column buffer, that place as matrices
    [groups, depth * kernel, positions], the output positions) for each.
    """
    windows = window_view(image, shape.axes)
    rows_axis = 2 + len(shape.axes)
    lead = (slice(None),) * rows_axis
    step = column.shape[rows_axis]
    flat = column.reshape(-1)
    blocks = []
    for rows in slices(shape.axes[0].count, step):
        block = windows[(*lead, rows)]
        # A short last block is laid out densely at the start of the buffer.
        target = flat[: block.size].reshape(block.shape)
        matrices = target.reshape(
            shape.groups,
            shape.depth * shape.kernel_elements,
            (rows.stop - rows.start) * shape.row_positions,
        )
        positions = slice(rows.start * shape.row_positions, rows.stop * shape.row_positions)
        blocks.append((block, target, matrices, positions))
    return blocks


def interior_of(shape: Convolution, padded: np.ndarray) -> np.ndarray:
    """Return the part of a padded image, [groups, depth, spatial...], that is the image."""
    inside = (slice(axis.begin, axis.begin + axis.source) for axis in shape.axes)
    return padded[(slice(None), slice(None), *inside)]
