"""Where Resize reads, for the kernels of every device: taps along one axis at a time.

Interpolation is separable. Along an axis every output position is a weighted sum of a few input
positions (its taps), known at load.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aegis_pipe.device import requests
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

COORDINATES = frozenset(
    {
        *("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners"),
        *("asymmetric", "tf_half_pixel_for_nn", "tf_crop_and_resize"),
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class AxisTaps:
    """How one axis is resized."""

    axis: int
    scale: float
    positions: np.ndarray
    """int64[size, taps]: input positions of each output position."""
    weights: np.ndarray
    """float64[size, taps]."""
    outside: np.ndarray
    """Output positions that get the extrapolation value."""

    @property
    def size(self) -> int:
        """Output positions."""
        return len(self.positions)

    def is_identity(self, size: int) -> bool:
        """Return whether the axis, of `size` positions, stays as it is."""
        return self.is_copy and bool(np.array_equal(self.positions[:, 0], np.arange(size)))

    @property
    def is_copy(self) -> bool:
        """Whether each output position is one input position."""
        return len(self.positions.T) == 1


def _coordinates(request: KernelRequest, axis: int) -> np.ndarray:
    """Return where each output position lies on the input's axis, as float64[size]."""
    length = _input(request).shape[axis]
    size = _output(request).shape[axis]
    scale = requests.numbers(request, "scales")[axis]
    x = np.arange(size, dtype=np.float64)
    resized = scale * length
    mode = requests.text(request, "coordinate_transformation_mode")
    if mode == "asymmetric":
        return x / scale
    if mode == "tf_half_pixel_for_nn":
        return (x + 0.5) / scale
    if mode == "align_corners":
        return x * (0.0 if resized == 1 else (length - 1) / (resized - 1))
    if mode == "tf_crop_and_resize":
        roi = requests.numbers(request, "roi")
        start, end = roi[axis], roi[len(roi) // 2 + axis]
        if resized == 1:
            return np.full(size, (start + end) * (length - 1) / 2)
        return start * (length - 1) + x * (end - start) * (length - 1) / (resized - 1)
    centred = (x + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        return centred + length / 2 * (1 - size / resized)
    if mode == "pytorch_half_pixel" and resized == 1:
        return np.zeros(size)
    return centred


_ROUND: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(1 - np.abs(x), 0))


def _cubic(a: float, x: np.ndarray) -> np.ndarray:
    """Cubic convolution (Keys 1981); `a` is the slope at 1."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _taps(request: KernelRequest, axis: int) -> AxisTaps:
    x = _coordinates(request, axis)
    length = _input(request).shape[axis]
    scale = requests.numbers(request, "scales")[axis]
    outside = np.zeros(0, np.int64)
    if requests.text(request, "coordinate_transformation_mode") == "tf_crop_and_resize":
        (outside,) = np.nonzero((x < 0) | (x > length - 1))
    if requests.text(request, "mode") == "nearest":
        rounded = _ROUND[requests.text(request, "nearest_mode")](x).astype(np.int64)
        positions, weights = rounded[:, None], np.ones((len(x), 1))
    else:
        positions, weights = _interpolation(request, x, scale, length)
    return AxisTaps(axis, scale, np.clip(positions, 0, length - 1), weights, outside)


def _interpolation(
    request: KernelRequest, x: np.ndarray, scale: float, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions, not yet clipped to the input, and weights that add up to 1."""
    is_linear = requests.text(request, "mode") == "linear"
    cubic = functools.partial(_cubic, requests.number(request, "cubic_coeff_a"))
    curve, reach = (_triangle, 1) if is_linear else (cubic, 2)
    # Against aliasing, the curve is stretched over all the positions that shrink to one.
    stretch = min(scale, 1.0) if requests.integer(request, "antialias") else 1.0
    first = int(np.floor(-reach / stretch)) + 1
    offsets = np.arange(first, 2 - first)
    # The position left of x, so that what remains is in (0, 1].
    left = np.ceil(x) - 1
    positions = left[:, None].astype(np.int64) + offsets
    weights = curve(stretch * (offsets - (x - left)[:, None]))
    if requests.integer(request, "exclude_outside"):
        weights = np.where((positions < 0) | (positions >= length), 0.0, weights)
    weights = weights / weights.sum(axis=1, keepdims=True)
    needed = np.any(weights != 0, axis=0)
    return positions[:, needed], weights[:, needed]


def changing_axes(request: KernelRequest) -> list[AxisTaps]:
    """Return the axes that a Resize changes, shrinking ones first."""
    shape = _input(request).shape
    every = (_taps(request, axis) for axis in range(len(shape)))
    changing = [taps for taps in every if not taps.is_identity(shape[taps.axis])]
    return sorted(changing, key=lambda taps: (taps.size / shape[taps.axis], taps.axis))


def _input(request: KernelRequest) -> TensorSpec:
    spec = request.inputs[0]
    assert spec is not None
    return spec


def _output(request: KernelRequest) -> TensorSpec:
    spec = request.outputs[0]
    assert spec is not None
    return spec
