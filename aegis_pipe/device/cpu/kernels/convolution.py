"""Convolutions as matrix products.

conv.pointwise   1x1, stride 1: one batched matmul on the operands as they are
conv.depthwise   one input channel a group: a sum of shifted multiplies of whole planes
conv.columns     all else: blocks of output rows at a time, whose windows are gathered into a
                 column buffer that stays in cache (im2col, Chellapilla et al. 2006), then
                 weights times columns straight into the output
conv_transpose   weights times input into a column buffer, added tap by tap into the output
conv.integer     conv.columns on integers held in float32 or float64, whichever is exact
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import activations, operands
from aegis_pipe.device.cpu.kernels.planned import (
    FLOAT32,
    all_float,
    as_bytes,
    no_packing,
    planned_kernel,
)
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.cpu.kernels.requantise import (
    IntegerResult,
    Requantised,
    exact_float,
    subtract_zero,
)
from aegis_pipe.device.cpu.kernels.windows import AxisWindows, taps, window_axes, window_view
from aegis_pipe.kernel import KernelRequest, PackedConstant
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorSpec

_COLUMN_BYTES = 2 << 20
"""Wanted size of a column buffer: about a core's second-level cache."""
_COLUMNS_MIN = 192
"""Fewer columns a block would leave the matrix product short of work."""
_DEPTHWISE_ELEMENTS = 32 << 10
"""Wanted output elements of a depthwise block, so that its taps meet in cache."""

_CONVS = ("Conv", "com.microsoft.FusedConv")
_Epilogue = Callable[[np.ndarray], None]


@record(eq=True)
class _Convolution:
    """Sizes of a convolution; a group has `depth` input channels and `maps` output channels."""

    batch: int
    groups: int
    depth: int
    maps: int
    axes: tuple[AxisWindows, ...]

    @property
    def kernel_elements(self) -> int:
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
        return any(axis.is_padded for axis in self.axes)

    @property
    def padded_shape(self) -> tuple[int, ...]:
        return (self.groups, self.depth, *(axis.padded for axis in self.axes))

    def block_rows(self, itemsize: int) -> int:
        """Places of the first spatial dimension that share one column buffer."""
        column_bytes = self.groups * self.depth * self.kernel_elements * itemsize
        columns = max(_COLUMN_BYTES // max(column_bytes, 1), _COLUMNS_MIN)
        rows = max(1, columns // max(self.row_positions, 1))
        blocks = -(-self.axes[0].count // rows)
        return -(-self.axes[0].count // max(blocks, 1))

    def column_shape(self, itemsize: int) -> tuple[int, ...]:
        rows = self.block_rows(itemsize)
        return (
            self.groups,
            self.depth,
            *(axis.kernel for axis in self.axes),
            rows,
            *(axis.count for axis in self.axes[1:]),
        )


def _convolution(request: KernelRequest, weights_at: int = 1) -> _Convolution:
    data = operands.input_spec(request, 0).shape
    weights = operands.input_spec(request, weights_at).shape
    groups = operands.integer(request, "group")
    result = operands.output_spec(request).shape
    axes = window_axes(request, data[2:], result[2:])
    return _Convolution(data[0], groups, weights[1], weights[0] // groups, axes)


def _multiply_adds(request: KernelRequest) -> float:
    weights_at = 3 if request.operator == "QLinearConv" else 1
    weights = operands.input_spec(request, weights_at)
    transposed = request.operator == "ConvTranspose"
    windows = operands.input_spec(request, 0) if transposed else operands.output_spec(request)
    spatial = math.prod(windows.shape[2:])
    return float(windows.shape[0] * spatial * weights.element_count)


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
        for axis in _convolution(request).axes
    )


def _accepts_depthwise(request: KernelRequest) -> bool:
    return _accepts(request) and _convolution(request).depth == 1 < _convolution(request).groups


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
    shape = _convolution(request)
    weights = operands.required(inputs, 1).reshape(shape.groups, shape.maps, shape.depth)
    data = operands.required(inputs).reshape(shape.batch, shape.groups, shape.depth, -1)
    result = operands.required(outputs).reshape(shape.batch, shape.groups, shape.maps, -1)
    finish = _epilogue(request, inputs, slice(None), slice(None))

    def run() -> None:
        np.matmul(weights, data, out=result)
        finish(result)

    return run


@record(eq=True)
class _Phases:
    """Padded planes of a depthwise convolution, split by position modulo stride.

    Within its phase, every tap meets the windows at one flat offset, so that planes are combined as
    long contiguous rows. What rows hold between the ends of windows is computed and dropped.
    """

    shape: tuple[int, ...]
    """Spatial dimensions of a phase."""
    copies: tuple[tuple[int, tuple[slice, ...], tuple[slice, ...]], ...]
    """(phase, part of it, part of the input)."""
    taps: tuple[tuple[tuple[int, ...], int, int], ...]
    """(tap, its phase, its flat offset there)."""
    length: int
    """Flat positions from the first window to the last."""

    @classmethod
    def of(cls, axes: Sequence[AxisWindows]) -> _Phases:
        shape = tuple(
            axis.count + (axis.kernel - 1) * axis.dilation // axis.stride for axis in axes
        )
        flat = [math.prod(shape[position + 1 :]) for position in range(len(shape))]
        phase_axes = [
            AxisWindows(axis.stride, axis.stride, 1, axis.begin, axis.end, axis.source, size)
            for axis, size in zip(axes, shape, strict=True)
        ]
        tap_phases = []
        for index in itertools.product(*(range(axis.kernel) for axis in axes)):
            places = [i * axis.dilation for i, axis in zip(index, axes, strict=True)]
            phase = _ravel([p % axis.stride for p, axis in zip(places, axes, strict=True)], axes)
            offset = sum(
                p // axis.stride * step for p, axis, step in zip(places, axes, flat, strict=True)
            )
            tap_phases.append((index, phase, offset))
        used = {phase for _, phase, _ in tap_phases}
        copies = [
            (phase, inside, sources)
            for index, inside, sources in taps(phase_axes)
            if (phase := _ravel(index, axes)) in used
        ]
        length = 1 + sum((axis.count - 1) * step for axis, step in zip(axes, flat, strict=True))
        return cls(shape, tuple(copies), tuple(tap_phases), length)


def _ravel(index: Sequence[int], axes: Sequence[AxisWindows]) -> int:
    """Return the number of a phase."""
    number = 0
    for position, axis in zip(index, axes, strict=True):
        number = number * axis.stride + position
    return number


def _depthwise_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    """Return the phases of a block of channels, their sums as rows, and one tap's products."""
    shape = _convolution(request)
    phases = _Phases.of(shape.axes)
    dtype = operands.input_spec(request, 0).dtype
    rows = shape.axes[0].count * math.prod(phases.shape[1:])
    block = min(shape.groups, max(1, _DEPTHWISE_ELEMENTS // max(1, shape.maps * rows)))
    phase_count = math.prod(axis.stride for axis in shape.axes)
    return (
        TensorSpec(dtype, (phase_count, block, *phases.shape)),
        TensorSpec(dtype, (block, shape.maps, rows)),
        TensorSpec(dtype, (block, shape.maps, phases.length)),
    )


def _bind_depthwise(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    shape = _convolution(request)
    planes = scratch[0]
    data, weights = operands.required(inputs), operands.required(inputs, 1)
    weights = weights.reshape(shape.groups, shape.maps, *weights.shape[2:])
    result = operands.required(outputs)
    split = result.reshape(shape.batch, shape.groups, shape.maps, *result.shape[2:])
    flat = result.reshape(shape.batch, shape.groups, shape.maps, -1)
    blocks = [
        _depthwise_block(
            shape, data[image, channels], weights[channels], split[image, channels], scratch
        )
        for image in range(shape.batch)
        for channels in _slices(shape.groups, planes.shape[1])
    ]
    finish = _epilogue(request, inputs, slice(None), slice(None))

    def run() -> None:
        planes.fill(0)
        for block in blocks:
            block()
        finish(flat)

    return run


def _depthwise_block(
    shape: _Convolution,
    data: np.ndarray,
    weights: np.ndarray,
    result: np.ndarray,
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    phases = _Phases.of(shape.axes)
    planes, sums, products = (
        scratch[0][:, : data.shape[0]],
        scratch[1][: data.shape[0]],
        scratch[2][: data.shape[0]],
    )
    copies = [
        (planes[phase][(slice(None), *inside)], data[(slice(None), *sources)])
        for phase, inside, sources in phases.copies
    ]
    rows = [plane.reshape(plane.shape[0], 1, -1) for plane in planes]
    factors = [
        (
            rows[phase][:, :, offset : offset + phases.length],
            _one_tap(weights, index)[:, :, None],
        )
        for index, phase, offset in phases.taps
    ]
    total = sums[:, :, : phases.length]
    windows = sums.reshape(*sums.shape[:2], shape.axes[0].count, *phases.shape[1:])
    every = (slice(None), slice(None))
    windows = windows[(*every, *(slice(axis.count) for axis in shape.axes))]

    def run() -> None:
        for target, source in copies:
            np.copyto(target, source)
        np.multiply(*factors[0], out=total)
        for row, weight in factors[1:]:
            np.multiply(row, weight, out=products)
            np.add(total, products, out=total)
        np.copyto(result, windows)

    return run


def _slices(count: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


def _one_tap(weights: np.ndarray, index: tuple[int, ...]) -> np.ndarray:
    """Return one tap of [groups, maps, kernel..., rest...]."""
    for position in index:
        weights = weights[:, :, position]
    return weights


def _columns_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    return _column_specs(_convolution(request), operands.input_spec(request, 0).dtype)


def _column_specs(shape: _Convolution, dtype: np.dtype) -> tuple[TensorSpec, TensorSpec]:
    """Return specs of one image with its padding, and of the column buffer."""
    padded = shape.padded_shape if shape.is_padded else (0,)
    return TensorSpec(dtype, padded), TensorSpec(dtype, shape.column_shape(dtype.itemsize))


def _column_blocks(
    shape: _Convolution, image: np.ndarray, column: np.ndarray
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
    for rows in _slices(shape.axes[0].count, step):
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


def _interior(shape: _Convolution, padded: np.ndarray) -> np.ndarray:
    inside = (slice(axis.begin, axis.begin + axis.source) for axis in shape.axes)
    return padded[(slice(None), slice(None), *inside)]


def _bind_columns(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    shape = _convolution(request)
    padded, column = scratch
    data = operands.required(inputs)
    data = data.reshape(shape.batch, shape.groups, shape.depth, *data.shape[2:])
    weights = operands.required(inputs, 1).reshape(shape.groups, shape.maps, -1)
    result = operands.required(outputs).reshape(
        shape.batch, shape.groups, shape.maps, shape.positions
    )
    interior = _interior(shape, padded) if shape.is_padded else None
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
            for windows, target, matrices, positions in _column_blocks(shape, source, column)
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


def _accepts_transpose(request: KernelRequest) -> bool:
    return all_float(request) and len(operands.input_spec(request, 0).shape) >= 3


def _transposed(request: KernelRequest) -> _Convolution:
    """Return the convolution whose gradient this is: its windows are the input's elements."""
    data = operands.input_spec(request, 0).shape
    weights = operands.input_spec(request, 1).shape
    groups = operands.integer(request, "group")
    axes = window_axes(request, operands.output_spec(request).shape[2:], data[2:])
    return _Convolution(data[0], groups, weights[1], weights[0] // groups, axes)


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
        for rows in _slices(shape.axes[0].count, scratch[0].shape[2 + len(shape.axes)]):
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
    shape: _Convolution, column: np.ndarray, rows: slice, result: np.ndarray
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
        (result[(*both, *sources)], _one_tap(block, index)[(*both, *served)])
        for index, served, sources in taps((axis, *shape.axes[1:]))
    ]
    return block.reshape(shape.groups, -1, height * shape.row_positions), additions


def _quantised_positions(request: KernelRequest) -> tuple[int, int, int]:
    """Return the positions of weights, data zero point and weights zero point."""
    return (3, 2, 5) if request.operator == "QLinearConv" else (1, 2, 3)


def _centred_constant(request: KernelRequest) -> np.ndarray | None:
    """Return weights minus zero point, exactly, or None if they are not known at load."""
    weights_at, _, zero_at = _quantised_positions(request)
    weights, zero = request.constants.get(weights_at), request.constants.get(zero_at)
    if weights is None or (zero is None and operands.has_input(request, zero_at)):
        return None
    return _centred(weights, zero)


def _centred(weights: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
    centred = weights.astype(np.int32)
    return centred if zero is None else centred - _per_map(zero.astype(np.int32), weights.ndim)


def _per_map(values: np.ndarray, rank: int) -> np.ndarray:
    """Reshape a scalar or one value an output channel so that it broadcasts to the weights."""
    return values.reshape(-1, *(1,) * (rank - 1))


def _integer_dtype(request: KernelRequest) -> np.dtype:
    weights = operands.input_spec(request, _quantised_positions(request)[0])
    centred = _centred_constant(request)
    rows = None if centred is None else centred.reshape(centred.shape[0], -1)
    return exact_float(math.prod(weights.shape[1:]), rows)


def _accepts_integer(request: KernelRequest) -> bool:
    weights_at, _, _ = _quantised_positions(request)
    data = operands.input_spec(request, 0)
    return (
        data.dtype.itemsize == operands.input_spec(request, weights_at).dtype.itemsize == 1
        and data.dtype.kind in "iu"
        and len(data.shape) >= 3
        and min(operands.integers(request, "pads")) >= 0
    )


def _packs_weights(request: KernelRequest) -> bool:
    weights_at, _, zero_at = _quantised_positions(request)
    zero_known = zero_at in request.constants or not operands.has_input(request, zero_at)
    return weights_at in request.constants and zero_known


def _pack_integer(request: KernelRequest) -> Mapping[int, PackedConstant]:
    if not _packs_weights(request):
        return no_packing(request)
    weights_at, _, zero_at = _quantised_positions(request)
    dtype = _integer_dtype(request)
    zero = request.constants.get(zero_at)
    size_bytes = operands.input_spec(request, weights_at).element_count * dtype.itemsize
    layout = f"centred-{dtype.name}-{'' if zero is None else zero.tobytes().hex()}"

    def pack(weights: np.ndarray) -> np.ndarray:
        return as_bytes(_centred(weights, zero).astype(dtype))

    return {weights_at: PackedConstant(layout, size_bytes, pack)}


def _integer_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    weights_at, _, _ = _quantised_positions(request)
    shape = _convolution(request, weights_at)
    dtype = _integer_dtype(request)
    column = shape.column_shape(dtype.itemsize)
    rows = column[2 + len(shape.axes)]
    sums = (shape.groups, shape.maps, rows * shape.row_positions)
    loose = (0,) if _packs_weights(request) else operands.input_spec(request, weights_at).shape
    return (
        TensorSpec(dtype, shape.padded_shape),
        TensorSpec(dtype, column),
        TensorSpec(dtype, sums),
        TensorSpec(dtype, loose),
        TensorSpec(FLOAT32, _multiplier_shape(request)),
    )


def _bind_integer(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    weights_at, zero_at, weights_zero_at = _quantised_positions(request)
    shape = _convolution(request, weights_at)
    padded, column, sums, loose, multiplier = scratch
    interior = _interior(shape, padded)
    data = operands.required(inputs)
    data = data.reshape(shape.batch, shape.groups, shape.depth, *data.shape[2:])
    zero = operands.optional(inputs, zero_at)
    raw_weights = operands.required(inputs, weights_at)
    weights_zero = operands.optional(inputs, weights_zero_at)
    if weights_zero is not None:
        weights_zero = _per_map(weights_zero, raw_weights.ndim)
    is_packed = _packs_weights(request)
    centred = raw_weights.view(loose.dtype) if is_packed else loose
    weights = centred.reshape(shape.groups, shape.maps, -1)
    result = operands.required(outputs).reshape(
        shape.batch, shape.groups, shape.maps, shape.positions
    )
    writer = _result_writer(request, inputs, multiplier, shape.groups)
    flat_sums = sums.reshape(-1)
    blocks = []
    for windows, target, matrices, positions in _column_blocks(shape, padded, column):
        block_shape = (shape.groups, shape.maps, matrices.shape[2])
        block_sums = flat_sums[: math.prod(block_shape)].reshape(block_shape)
        blocks.append((windows, target, matrices, block_sums, positions))

    def run() -> None:
        writer.prepare()
        padded.fill(0)
        if not is_packed:
            subtract_zero(raw_weights, weights_zero, loose)
        for image in range(shape.batch):
            subtract_zero(data[image], zero, interior)
            for windows, target, matrices, block_sums, positions in blocks:
                np.copyto(target, windows)
                np.matmul(weights, matrices, out=block_sums)
                writer.finish(block_sums, result[image, :, :, positions])

    return run


def _multiplier_shape(request: KernelRequest) -> tuple[int, ...]:
    if request.operator == "ConvInteger":
        return (0,)
    groups = operands.integer(request, "group")
    scales = operands.input_spec(request, 4).element_count
    return (groups, scales // groups, 1) if scales > 1 else (1, 1, 1)


def _result_writer(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    multiplier: np.ndarray,
    groups: int,
) -> IntegerResult:
    if request.operator == "ConvInteger":
        return IntegerResult()
    bias = operands.optional(inputs, 8)
    return Requantised(
        multiplier=multiplier,
        scales=(
            operands.required(inputs, 1).reshape(()),
            operands.required(inputs, 4).reshape(multiplier.shape),
            operands.required(inputs, 6).reshape(()),
        ),
        zero=operands.required(inputs, 7).reshape(()),
        bias=None if bias is None else bias.reshape(groups, -1, 1),
        levels=operands.integers(request, "levels") if "levels" in request.attributes else (),
    )


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "conv.pointwise",
        _CONVS,
        _bind_pointwise,
        accepts=_accepts_pointwise,
        cost=_multiply_adds,
    ),
    planned_kernel(
        "conv.depthwise",
        _CONVS,
        _bind_depthwise,
        accepts=_accepts_depthwise,
        scratch=_depthwise_scratch,
        cost=_multiply_adds,
    ),
    planned_kernel(
        "conv.columns",
        _CONVS,
        _bind_columns,
        accepts=_accepts,
        scratch=_columns_scratch,
        cost=_multiply_adds,
    ),
    planned_kernel(
        "conv_transpose",
        ("ConvTranspose",),
        _bind_transpose,
        accepts=_accepts_transpose,
        scratch=_transpose_scratch,
        cost=_multiply_adds,
    ),
    planned_kernel(
        "conv.integer",
        ("ConvInteger", "QLinearConv"),
        _bind_integer,
        accepts=_accepts_integer,
        scratch=_integer_scratch,
        packed=_pack_integer,
        cost=_multiply_adds,
    ),
)
