"""Sampling of images between their elements.

Along each axis a point meets a few elements, each with a weight: one (nearest), two (linear) or
four (cubic). A sample is the sum over all combinations; each is one gather for all channels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_INDEX = np.dtype(np.intp)
_BOOL = np.dtype(np.bool_)
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_TAPS = {"nearest": 1, "linear": 2, "cubic": 4}
_FARTHEST = 1 << 22
"""Points are cut off this many elements from the image; float32 still tells its neighbours."""
_CUBIC_A = -0.75
_BLOCK_POINTS = 4 << 10


def _cubic_weight(distance: np.ndarray, out: np.ndarray, *, is_near: bool) -> None:
    """Write Keys' cubic convolution kernel (1981), up to 1 from the point or from 1 to 2."""
    a = _CUBIC_A
    inner = (a + 2, -(a + 3), 0.0, 1.0)
    outer = (a, -5 * a, 8 * a, -4 * a)
    first, *others = inner if is_near else outer
    np.multiply(distance, first, out=out)
    for coefficient in others[:-1]:
        np.add(out, coefficient, out=out)
        np.multiply(out, distance, out=out)
    np.add(out, others[-1], out=out)


class Sampler:
    """Samples an image of `sizes` at up to `points` points at once."""

    def __init__(
        self,
        mode: str,
        padding: str,
        align: bool,
        sizes: tuple[int, ...],
        arrays: Sequence[np.ndarray],
    ) -> None:
        self._mode, self._padding, self._align = mode, padding, align
        self._sizes = sizes
        self._indices, self._weights, self._fraction, self._valid, self._index, self._weight = (
            arrays
        )

    @staticmethod
    def scratch(mode: str, rank: int, points: int, dtype: np.dtype) -> list[TensorSpec]:
        """Return the arrays that a sampler works with."""
        taps = _TAPS[mode]
        return [
            TensorSpec(_INDEX, (rank, taps, points)),
            TensorSpec(dtype, (rank, taps, points)),
            TensorSpec(dtype, (points,)),
            TensorSpec(_BOOL, (points,)),
            TensorSpec(_INDEX, (points,)),
            TensorSpec(dtype, (points,)),
        ]

    def locate(self, axis: int, position: np.ndarray) -> None:
        """Find which elements points meet along an axis; `position`[points] is destroyed."""
        count = len(position)
        taps = _TAPS[self._mode]
        fraction = self._fraction[:count]
        np.fmax(position, -_FARTHEST, out=position)
        np.fmin(position, _FARTHEST, out=position)
        if self._mode == "nearest":
            np.rint(position, out=fraction)
        else:
            np.floor(position, out=fraction)
        first = self._indices[axis, 0, :count]
        np.copyto(first, fraction, casting="unsafe")
        np.subtract(position, fraction, out=fraction)
        self._weigh(axis, fraction)
        np.subtract(first, 1 if taps == 4 else 0, out=first)
        for tap in range(1, taps):
            np.add(first, tap, out=self._indices[axis, tap, :count])
        for tap in range(taps):
            self._pad(axis, tap, count)

    def _weigh(self, axis: int, fraction: np.ndarray) -> None:
        weights = self._weights[axis, :, : len(fraction)]
        if self._mode == "nearest":
            weights[0].fill(1)
        elif self._mode == "linear":
            np.subtract(1, fraction, out=weights[0])
            np.copyto(weights[1], fraction)
        else:
            spare = self._weight[: len(fraction)]
            for tap in range(4):
                # Distances fraction + 1, fraction, 1 - fraction, 2 - fraction.
                (np.add if tap < 2 else np.subtract)((1, 0, 1, 2)[tap], fraction, out=spare)
                _cubic_weight(spare, weights[tap], is_near=tap in (1, 2))

    def _pad(self, axis: int, tap: int, count: int) -> None:
        """Bring the indices of a tap into the image, or its weights to 0."""
        index, size = self._indices[axis, tap, :count], self._sizes[axis]
        if self._padding == "zeros":
            valid = self._valid[:count]
            for compare, bound in ((np.less, 0), (np.greater_equal, size)):
                compare(index, bound, out=valid)
                np.copyto(self._weights[axis, tap, :count], 0, where=valid)
        elif self._padding == "reflection":
            # About the outermost elements, or about their outer edges.
            period = max(2 * (size - 1), 1) if self._align else 2 * size
            np.remainder(index, period, out=index)
            mirrored = self._index[:count]
            np.subtract(period if self._align else period - 1, index, out=mirrored)
            np.minimum(index, mirrored, out=index)
        np.clip(index, 0, size - 1, out=index)

    def sample(self, image: np.ndarray, gathered: np.ndarray, out: np.ndarray) -> None:
        """Write the samples of image[C, elements] to out[C, points]; `gathered` is as `out`."""
        count = out.shape[1]
        index, weight = self._index[:count], self._weight[:count]
        out.fill(0)
        for taps in itertools.product(range(_TAPS[self._mode]), repeat=len(self._sizes)):
            index.fill(0)
            weight.fill(1)
            for axis, tap in enumerate(taps):
                np.multiply(index, self._sizes[axis], out=index)
                np.add(index, self._indices[axis, tap, :count], out=index)
                np.multiply(weight, self._weights[axis, tap, :count], out=weight)
            np.take(image, index, axis=1, out=gathered, mode="clip")
            np.multiply(gathered, weight, out=gathered)
            np.add(out, gathered, out=out)


def _accepts_grid(request: KernelRequest) -> bool:
    data, grid = operands.input_spec(request, 0), operands.input_spec(request, 1)
    return data.dtype in _FLOATS and grid.dtype == data.dtype and 0 not in data.shape


def _grid_points(request: KernelRequest) -> tuple[int, int]:
    """Return (points of an image, points that are sampled at once)."""
    points = math.prod(operands.output_spec(request).shape[2:])
    return points, max(1, min(points, _BLOCK_POINTS))


def _grid_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    data = operands.input_spec(request, 0)
    _, block = _grid_points(request)
    channels = TensorSpec(data.dtype, (data.shape[1], block))
    sampler = Sampler.scratch(
        operands.text(request, "mode"), len(data.shape) - 2, block, data.dtype
    )
    return (TensorSpec(data.dtype, (block,)), channels, channels, *sampler)


def _flat(array: np.ndarray, channels: int, count: int) -> np.ndarray:
    """Return the first elements of a scratch array as [channels, count]."""
    return array.reshape(-1)[: channels * count].reshape(channels, count)


def _bind_grid(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, grid = operands.required(inputs, 0), operands.required(inputs, 1)
    batch, channels, *sizes = data.shape
    rank = len(sizes)
    points, block = _grid_points(request)
    position, gathered, sampled, *arrays = scratch
    align = bool(operands.integer(request, "align_corners"))
    sampler = Sampler(
        operands.text(request, "mode"),
        operands.text(request, "padding_mode"),
        align,
        tuple(sizes),
        arrays,
    )
    images = data.reshape(batch, channels, -1)
    listed = grid.reshape(batch, points, rank)
    result = operands.required(outputs).reshape(batch, channels, points)
    blocks = [slice(first, min(first + block, points)) for first in range(0, points, block)]

    def run() -> None:
        for image, coordinates, target in zip(images, listed, result, strict=True):
            for chosen in blocks:
                count = chosen.stop - chosen.start
                place = position[:count]
                for axis, size in enumerate(sizes):
                    # -1 and 1 are the outermost elements, or their outer edges.
                    np.add(coordinates[chosen, rank - 1 - axis], 1, out=place)
                    np.multiply(place, (size - 1 if align else size) / 2, out=place)
                    if not align:
                        np.subtract(place, 0.5, out=place)
                    sampler.locate(axis, place)
                out = _flat(sampled, channels, count)
                sampler.sample(image, _flat(gathered, channels, count), out)
                np.copyto(target[:, chosen], out)

    return run


def _affine_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    result = operands.output_spec(request)
    return (TensorSpec(result.dtype, result.shape[1:-1]),)


def _bind_affine(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    theta, result = operands.required(inputs), operands.required(outputs)
    product = scratch[0]
    sizes = product.shape
    align = bool(operands.integer(request, "align_corners"))
    coordinates = []
    for axis, size in enumerate(sizes):
        # The outermost elements are at -1 and 1, or their outer edges are; a single one is at 0.
        steps = np.arange(size) * 2 - (size - 1)
        along = steps / (max(size - 1, 1) if align else size)
        coordinates.append(along.astype(result.dtype).reshape(-1, *(1,) * (len(sizes) - 1 - axis)))

    def run() -> None:
        for matrix, grid in zip(theta, result, strict=True):
            for row, factors in enumerate(matrix):
                target = grid[..., row]
                np.copyto(target, factors[-1])
                for along, factor in zip(reversed(coordinates), factors, strict=False):
                    np.multiply(along, factor, out=product)
                    np.add(target, product, out=target)

    return run


def _accepts_deform(request: KernelRequest) -> bool:
    dtypes = {spec.dtype for spec in request.inputs if spec}
    return (
        dtypes <= set(_FLOATS)
        and len(dtypes) == 1
        and 0 not in operands.input_spec(request, 0).shape
    )


def _deform_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    data, result = operands.input_spec(request, 0), operands.output_spec(request)
    points = math.prod(result.shape[2:])
    channels = data.shape[1]
    taps = math.prod(operands.integers(request, "kernel_shape"))
    part = channels // operands.integer(request, "offset_group")
    return (
        TensorSpec(data.dtype, (channels, taps, points)),
        TensorSpec(data.dtype, (part, points)),
        TensorSpec(data.dtype, (part, points)),
        TensorSpec(data.dtype, (points,)),
        *Sampler.scratch("linear", 2, points, data.dtype),
    )


def _deform_cost(request: KernelRequest) -> float:
    weights = operands.input_spec(request, 1)
    return float(operands.output_spec(request).element_count * math.prod(weights.shape[1:]))


def _bind_deform(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, weights = operands.required(inputs, 0), operands.required(inputs, 1)
    columns, gathered, sampled, position, *arrays = scratch
    batch, channels, *sizes = data.shape
    group, parts = operands.integer(request, "group"), operands.integer(request, "offset_group")
    result = operands.required(outputs)
    points, taps = columns.shape[2], columns.shape[1]
    spatial = result.shape[2:]
    offsets = operands.required(inputs, 2).reshape(batch, parts, taps, 2, *spatial)
    bias, mask = operands.optional(inputs, 3), operands.optional(inputs, 4)
    masks = None if mask is None else mask.reshape(batch, parts, taps, points)
    sampler = Sampler("linear", "zeros", False, tuple(sizes), arrays)
    images = data.reshape(batch, parts, channels // parts, -1)
    by_part = columns.reshape(parts, channels // parts, taps, points)
    factor = weights.reshape(group, weights.shape[0] // group, -1)
    grouped = columns.reshape(group, -1, points)
    targets = result.reshape(batch, group, factor.shape[1], points)
    starts = _tap_starts(request, spatial)
    shaped = position.reshape(spatial)

    def run() -> None:
        for image in range(batch):
            for part, tap in itertools.product(range(parts), range(taps)):
                for axis in range(2):
                    np.add(offsets[image, part, tap, axis], starts[tap][axis], out=shaped)
                    sampler.locate(axis, position)
                sampler.sample(images[image, part], gathered, sampled)
                if masks is not None:
                    np.multiply(sampled, masks[image, part, tap], out=sampled)
                np.copyto(by_part[part, :, tap], sampled)
            np.matmul(factor, grouped, out=targets[image])
        if bias is not None:
            np.add(result, bias[:, None, None], out=result)

    return run


def _tap_starts(
    request: KernelRequest, spatial: tuple[int, ...]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return, for each tap, where it meets the image without offset: rows [H, 1], columns [W]."""
    kernel = operands.integers(request, "kernel_shape")
    dilations, pads = operands.integers(request, "dilations"), operands.integers(request, "pads")
    first = [
        np.arange(count) * stride - pad
        for count, stride, pad in zip(
            spatial, operands.integers(request, "strides"), pads, strict=False
        )
    ]
    return [
        (first[0][:, None] + row * dilations[0], first[1] + column * dilations[1])
        for row, column in itertools.product(*map(range, kernel))
    ]


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "grid_sample", ("GridSample",), _bind_grid, accepts=_accepts_grid, scratch=_grid_scratch
    ),
    planned_kernel("affine_grid", ("AffineGrid",), _bind_affine, scratch=_affine_scratch),
    planned_kernel(
        "deform_conv",
        ("DeformConv",),
        _bind_deform,
        accepts=_accepts_deform,
        scratch=_deform_scratch,
        cost=_deform_cost,
    ),
)
