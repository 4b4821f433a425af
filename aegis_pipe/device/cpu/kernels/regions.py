"""Pools over regions of interest.

The samples of a bin lie on a grid, so averaging them is linear along rows and along columns: one
small matrix each, from the elements that the region touches to its bins. The largest is not linear:
there the four weighted corners of every sample are formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import all_float, planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.errors import KernelError
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_SAMPLES_MAX = 16 << 10
"""Samples of a region along one side."""


def _refused(request: KernelRequest, message: str) -> KernelError:
    return KernelError(
        message,
        context=f"node `{request.node}` ({request.operator})",
        hint="give regions that lie in the image",
    )


def _accepts_align(request: KernelRequest) -> bool:
    data, regions = operands.input_spec(request, 0), operands.input_spec(request, 1)
    return (
        data.dtype in (np.float32, np.float64)
        and regions.dtype == data.dtype
        and operands.text(request, "mode") in ("avg", "max")
        and 0 not in data.shape
    )


def _align_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    data = operands.input_spec(request, 0)
    _, channels, height, width = data.shape
    bins = operands.integer(request, "output_height")
    columns = operands.integer(request, "output_width")
    return (
        TensorSpec(data.dtype, (bins, height)),
        TensorSpec(data.dtype, (columns, width)),
        TensorSpec(data.dtype, (channels, bins, width)),
    )


def _samples(
    request: KernelRequest, start: float, end: float, size: int, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (lower element, upper element, how far towards it, inside or not) of each sample."""
    half_pixel = bool(operands.integer(request, "half_pixel"))
    extent = end - start if half_pixel else max(end - start, 1.0)
    ratio = operands.integer(request, "sampling_ratio")
    samples = ratio if ratio > 0 else max(math.ceil(extent / bins), 0)
    if samples * bins > _SAMPLES_MAX or not math.isfinite(start):
        raise _refused(request, f"a region reaches over {extent:.0f} elements")
    steps = (np.arange(bins * samples) + 0.5) * (extent / bins / max(samples, 1))
    position = start + steps
    adds = (position >= -1) & (position <= size)
    position = np.clip(position, 0, size - 1)
    low = np.minimum(position.astype(np.intp), size - 1)
    return low, np.minimum(low + 1, size - 1), position - low, adds


def _bin_weights(
    request: KernelRequest, start: float, end: float, size: int, weights: np.ndarray
) -> tuple[int, int]:
    """Write what each element adds to each bin; return the elements that add anything.

    `weights`[bins, size] is used as far as [bins, elements that do].
    """
    bins = len(weights)
    low, high, fraction, adds = _samples(request, start, end, size, bins)
    samples = len(low) // bins
    first, last = (int(low.min()), int(high.max()) + 1) if len(low) else (0, 1)
    share = adds / max(samples, 1)
    rows = np.repeat(np.arange(bins), samples)
    used = weights.reshape(-1)[: bins * (last - first)].reshape(bins, last - first)
    used.fill(0)
    np.add.at(used, (rows, low - first), (1 - fraction) * share)
    np.add.at(used, (rows, high - first), fraction * share)
    return first, last


def _used(weights: np.ndarray, elements: tuple[int, int]) -> np.ndarray:
    width = elements[1] - elements[0]
    return weights.reshape(-1)[: len(weights) * width].reshape(len(weights), width)


def _bind_align(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, regions, images = (operands.required(inputs, i) for i in range(3))
    result = operands.required(outputs)
    down, across, partial = scratch
    _, channels, height, width = data.shape
    scale = operands.number(request, "spatial_scale")
    offset = 0.5 if operands.integer(request, "half_pixel") else 0.0
    averages = operands.text(request, "mode") == "avg"

    def run() -> None:
        for region, image, target in zip(regions, images.tolist(), result, strict=True):
            if not 0 <= image < len(data):
                raise _refused(request, f"a region is in image {image} of {len(data)}")
            left, top, right, bottom = (float(each) * scale - offset for each in region)
            if not averages:
                vertical = _samples(request, top, bottom, height, target.shape[1])
                _write_largest(
                    data[image],
                    vertical,
                    _samples(request, left, right, width, target.shape[2]),
                    target,
                )
                continue
            rows = _bin_weights(request, top, bottom, height, down)
            columns = _bin_weights(request, left, right, width, across)
            part = data[image, :, rows[0] : rows[1], columns[0] : columns[1]]
            shape = (channels, len(down), part.shape[2])
            by_row = partial.reshape(-1)[: math.prod(shape)].reshape(shape)
            np.matmul(_used(down, rows), part, out=by_row)
            np.matmul(by_row, _used(across, columns).T, out=target)

    return run


def _write_largest(
    image: np.ndarray,
    vertical: Sequence[np.ndarray],
    horizontal: Sequence[np.ndarray],
    target: np.ndarray,
) -> None:
    """Write the largest weighted corner of all samples of each bin; a sample outside is 0."""
    channels, bins, columns = target.shape
    top, bottom, down, inside_rows = vertical
    left, right, across, inside_columns = horizontal
    inside = inside_rows[:, None] & inside_columns
    largest = np.full((channels, *inside.shape), -np.inf, image.dtype)
    for rows, row_share in ((top, 1 - down), (bottom, down)):
        for cells, share in ((left, 1 - across), (right, across)):
            weights = (row_share[:, None] * share * inside).astype(image.dtype)
            np.maximum(largest, image[:, rows[:, None], cells] * weights, out=largest)
    if largest.size == 0:
        target.fill(0)
        return
    by_bin = largest.reshape(channels, bins, len(top) // bins, columns, len(left) // columns)
    np.max(by_bin, axis=(2, 4), out=target)


def _bounds(start: int, end: int, size: int, bins: int) -> list[tuple[int, int]]:
    """Return the elements [first, last) of each bin of a region [start, end]."""
    bin_size = max(end - start + 1, 1) / bins
    return [
        (
            min(max(math.floor(index * bin_size) + start, 0), size),
            min(max(math.ceil((index + 1) * bin_size) + start, 0), size),
        )
        for index in range(bins)
    ]


def _rounded(value: float) -> int:
    """Round half away from 0, as the operator's implementations do."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def _bind_max(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, regions = operands.required(inputs, 0), operands.required(inputs, 1)
    result = operands.required(outputs)
    _, _, height, width = data.shape
    _, _, bins, columns = result.shape
    scale = operands.number(request, "spatial_scale")

    def run() -> None:
        for region, target in zip(regions, result, strict=True):
            image = int(region[0])
            if not 0 <= image < len(data):
                raise _refused(request, f"a region is in image {image} of {len(data)}")
            left, top, right, bottom = (_rounded(float(each) * scale) for each in region[1:])
            across = _bounds(left, right, width, columns)
            for row, (first, last) in enumerate(_bounds(top, bottom, height, bins)):
                for column, (start, stop) in enumerate(across):
                    part = data[image, :, first:last, start:stop]
                    if part.shape[1] and part.shape[2]:
                        np.maximum.reduce(part, axis=(1, 2), out=target[:, row, column])
                    else:
                        target[:, row, column] = 0

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "roi_align", ("RoiAlign",), _bind_align, accepts=_accepts_align, scratch=_align_scratch
    ),
    planned_kernel("max_roi_pool", ("MaxRoiPool",), _bind_max, accepts=all_float),
)
