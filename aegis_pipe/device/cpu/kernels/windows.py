"""Geometry of sliding windows: which taps meet which elements."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.lib.stride_tricks import as_strided

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.record import record


@record(eq=True)
class AxisWindows:
    """Windows along one spatial dimension; `source` elements, `count` windows."""

    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int
    source: int
    count: int

    @property
    def padded(self) -> int:
        """Elements that all windows together reach over, padding included."""
        return max((self.count - 1) * self.stride + self.extent, self.begin + self.source)

    @property
    def extent(self) -> int:
        """Elements from a window's first tap to its last."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def is_padded(self) -> bool:
        """Whether some tap falls outside of the source."""
        return self.begin > 0 or (self.count - 1) * self.stride + self.extent > self.source

    def tap(self, index: int) -> tuple[slice, slice]:
        """Return (windows whose tap is inside, the source elements it meets)."""
        offset = index * self.dilation - self.begin
        first = max(0, -(offset // self.stride))
        last = min(self.count, (self.source - 1 - offset) // self.stride + 1)
        if last <= first:
            return slice(0, 0), slice(0, 0)
        start = first * self.stride + offset
        stop = (last - 1) * self.stride + offset + 1
        return slice(first, last), slice(start, stop, self.stride)

    def covered(self, *, pads_count: bool) -> np.ndarray:
        """Return how many taps of each window count: float64[count]."""
        starts = np.arange(self.count)[:, None] * self.stride - self.begin
        taps = starts + np.arange(self.kernel) * self.dilation
        low, high = (-self.begin, self.source + self.end) if pads_count else (0, self.source)
        return np.asarray(((taps >= low) & (taps < high)).sum(axis=1), dtype=np.float64)


def window_axes(
    request: KernelRequest, source: Sequence[int], count: Sequence[int]
) -> tuple[AxisWindows, ...]:
    """Return the request's windows from `source` to `count` spatial dimensions."""
    pads = operands.integers(request, "pads")
    rank = len(source)
    return tuple(
        [
            AxisWindows(*each)
            for each in zip(
                operands.integers(request, "kernel_shape"),
                operands.integers(request, "strides"),
                operands.integers(request, "dilations"),
                pads[:rank],
                pads[rank:],
                source,
                count,
                strict=True,
            )
        ]
    )


def taps(
    axes: Sequence[AxisWindows],
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]]:
    """Yield (tap index, windows it serves, elements it meets) for taps that meet any element."""
    for index in itertools.product(*(range(axis.kernel) for axis in axes)):
        pairs = [axis.tap(i) for axis, i in zip(axes, index, strict=True)]
        windows = tuple([window for window, _ in pairs])
        if all(window.stop > window.start for window in windows):
            yield index, windows, tuple([source for _, source in pairs])


def window_view(padded: np.ndarray, axes: Sequence[AxisWindows]) -> np.ndarray:
    """Return a view [lead..., kernel..., count...] of [lead..., padded spatial...]."""
    lead = padded.ndim - len(axes)
    strides = padded.strides[lead:]
    kernel_strides = tuple([s * axis.dilation for s, axis in zip(strides, axes, strict=True)])
    count_strides = tuple([s * axis.stride for s, axis in zip(strides, axes, strict=True)])
    shape = (
        *padded.shape[:lead],
        *(axis.kernel for axis in axes),
        *(axis.count for axis in axes),
    )
    return as_strided(padded, shape, (*padded.strides[:lead], *kernel_strides, *count_strides))
