"""Convolutions with one input channel a group: a sum of shifted multiplies of whole planes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.convolution_columns import Convolution, convolution_of, one_tap
from aegis_pipe.device.cpu.kernels.windows import AxisWindows, taps
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorSpec

_DEPTHWISE_ELEMENTS = 32 << 10
"""Wanted output elements of a depthwise block, so that its taps meet in cache."""


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


def depthwise_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    """Return the phases of a block of channels, their sums as rows, and one tap's products."""
    shape = convolution_of(request)
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


def depthwise_block(
    shape: Convolution,
    data: np.ndarray,
    weights: np.ndarray,
    result: np.ndarray,
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    """Return the call for some channels of one image.

    `data` [channels, spatial...], `weights` [channels, maps, kernel...], `result` [channels, maps,
    spatial...]; `scratch` as `depthwise_scratch` has it, its planes filled with zeros.
    """
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
        (rows[phase][:, :, offset : offset + phases.length], one_tap(weights, index)[:, :, None])
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
