"""Resize: interpolation is separable, so each axis that changes is one pass.

A pass makes every output position a weighted sum of a few input positions (its taps), known at
load. Shrinking axes go first, so that what lies between the passes is small.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.pointwise import INTEGERS, WIDE_FLOATS
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.cpu.kernels.tiles import TILE
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_COORDINATES = frozenset(
    {
        *("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners"),
        *("asymmetric", "tf_half_pixel_for_nn", "tf_crop_and_resize"),
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class _Axis:
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


def _accepts(request: KernelRequest) -> bool:
    mode = operands.text(request, "mode")
    coordinates = operands.text(request, "coordinate_transformation_mode")
    dtypes = WIDE_FLOATS | INTEGERS if mode == "nearest" else WIDE_FLOATS
    spec = operands.input_spec(request, 0)
    return coordinates in _COORDINATES and spec.dtype in dtypes and spec.element_count > 0


def _coordinates(request: KernelRequest, axis: int) -> np.ndarray:
    """Return where each output position lies on the input's axis, as float64[size]."""
    length = operands.input_spec(request, 0).shape[axis]
    size = operands.output_spec(request).shape[axis]
    scale = operands.numbers(request, "scales")[axis]
    x = np.arange(size, dtype=np.float64)
    resized = scale * length
    mode = operands.text(request, "coordinate_transformation_mode")
    if mode == "asymmetric":
        return x / scale
    if mode == "tf_half_pixel_for_nn":
        return (x + 0.5) / scale
    if mode == "align_corners":
        return x * (0.0 if resized == 1 else (length - 1) / (resized - 1))
    if mode == "tf_crop_and_resize":
        roi = operands.numbers(request, "roi")
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


def _taps(request: KernelRequest, axis: int) -> _Axis:
    x = _coordinates(request, axis)
    length = operands.input_spec(request, 0).shape[axis]
    scale = operands.numbers(request, "scales")[axis]
    outside = np.zeros(0, np.int64)
    if operands.text(request, "coordinate_transformation_mode") == "tf_crop_and_resize":
        (outside,) = np.nonzero((x < 0) | (x > length - 1))
    if operands.text(request, "mode") == "nearest":
        rounded = _ROUND[operands.text(request, "nearest_mode")](x).astype(np.int64)
        positions, weights = rounded[:, None], np.ones((len(x), 1))
    else:
        positions, weights = _interpolation(request, x, scale, length)
    return _Axis(axis, scale, np.clip(positions, 0, length - 1), weights, outside)


def _interpolation(
    request: KernelRequest, x: np.ndarray, scale: float, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions, not yet clipped to the input, and weights that add up to 1."""
    is_linear = operands.text(request, "mode") == "linear"
    cubic = functools.partial(_cubic, operands.number(request, "cubic_coeff_a"))
    curve, reach = (_triangle, 1) if is_linear else (cubic, 2)
    # Against aliasing, the curve is stretched over all the positions that shrink to one.
    stretch = min(scale, 1.0) if operands.integer(request, "antialias") else 1.0
    first = int(np.floor(-reach / stretch)) + 1
    offsets = np.arange(first, 2 - first)
    # The position left of x, so that what remains is in (0, 1].
    left = np.ceil(x) - 1
    positions = left[:, None].astype(np.int64) + offsets
    weights = curve(stretch * (offsets - (x - left)[:, None]))
    if operands.integer(request, "exclude_outside"):
        weights = np.where((positions < 0) | (positions >= length), 0.0, weights)
    weights = weights / weights.sum(axis=1, keepdims=True)
    needed = np.any(weights != 0, axis=0)
    return positions[:, needed], weights[:, needed]


def _passes(request: KernelRequest) -> list[_Axis]:
    """Return the axes that change, shrinking ones first."""
    shape = operands.input_spec(request, 0).shape
    every = (_taps(request, axis) for axis in range(len(shape)))
    changing = [taps for taps in every if not taps.is_identity(shape[taps.axis])]
    return sorted(changing, key=lambda taps: (taps.size / shape[taps.axis], taps.axis))


def _scratch(request: KernelRequest) -> list[TensorSpec]:
    """Return specs: what lies between the passes, then each pass's block of one tap."""
    spec = operands.input_spec(request, 0)
    shape = list(spec.shape)
    between, taps = [], []
    passes = _passes(request)
    if _repeats(passes, shape) is not None:
        return []
    for resized in passes:
        shape[resized.axis] = resized.size
        between.append(TensorSpec(spec.dtype, tuple(shape)))
        inner = int(np.prod(shape[resized.axis :], dtype=np.int64))
        outer = int(np.prod(shape[: resized.axis], dtype=np.int64))
        rows = 0 if resized.is_copy else min(max(TILE // inner, 1), outer)
        taps.append(TensorSpec(spec.dtype, (rows * inner,)))
    return [*between[:-1], *taps]


def _bind(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    source, result = operands.required(inputs), operands.required(outputs)
    passes = _passes(request)
    repeats = _repeats(passes, source.shape)
    if repeats is not None:
        return _bind_repeat(source, result, repeats)
    between, taps = [*scratch[: max(len(passes) - 1, 0)], result], scratch[len(passes) - 1 :]
    calls = [
        _bind_pass(resized, read, written, tap)
        for resized, read, written, tap in zip(
            passes, (source, *between), between, taps, strict=False
        )
    ]
    value = operands.number(request, "extrapolation_value")
    outside = [
        (np.moveaxis(result, resized.axis, 0), resized.outside)
        for resized in passes
        if resized.outside.size
    ]

    def run() -> None:
        for call in calls:
            call()
        for target, positions in outside:
            target[positions] = value

    return run


def _repeats(passes: Sequence[_Axis], shape: Sequence[int]) -> list[int] | None:
    """Return how often each element is repeated along every axis, if that is all there is."""
    repeats = [1] * len(shape)
    for resized in passes:
        times, rest = divmod(resized.size, shape[resized.axis])
        evenly = np.arange(resized.size) // max(times, 1)
        is_even = resized.is_copy and np.array_equal(resized.positions[:, 0], evenly)
        if rest or not is_even or resized.outside.size:
            return None
        repeats[resized.axis] = times
    return repeats


def _bind_repeat(
    source: np.ndarray, result: np.ndarray, repeats: Sequence[int]
) -> Callable[[], None]:
    """Bind: spread the last axis element by element, then copy ever larger stretches."""
    pairs = zip(source.shape, repeats, strict=True)
    target = result.reshape([size for pair in pairs for size in pair])
    firsts = (slice(None), slice(0, 1)) * source.ndim
    spread = source.reshape([size for n in source.shape for size in (n, 1)])
    copies = []
    for axis in reversed(range(source.ndim)):
        others = (*firsts[: 2 * axis + 1], slice(1, None))
        if axis == source.ndim - 1:
            parts = [target[(*firsts[:-1], slice(i, i + 1))] for i in range(repeats[axis])]
            copies += [(part, spread) for part in parts]
        elif repeats[axis] > 1:
            copies.append((target[others], target[firsts[: 2 * axis + 2]]))

    def run() -> None:
        for written, read in copies:
            np.copyto(written, read)

    return run


def _bind_pass(
    resized: _Axis, source: np.ndarray, target: np.ndarray, scratch: np.ndarray
) -> Callable[[], None]:
    axis, size = resized.axis, resized.size
    outer = int(np.prod(source.shape[:axis], dtype=np.int64))
    inner = int(np.prod(source.shape[axis + 1 :], dtype=np.int64))
    reads = source.reshape(outer, source.shape[axis], inner)
    writes = target.reshape(outer, size, inner)
    columns = [np.ascontiguousarray(column) for column in resized.positions.T]
    if resized.is_copy:
        (positions,) = columns

        def take() -> None:
            np.take(reads, positions, axis=1, out=writes, mode="clip")

        return take
    weights = [w.astype(source.dtype).reshape(-1, 1) for w in resized.weights.T]
    first, *others = zip(columns, weights, strict=True)
    tap = scratch.reshape(-1, size, inner)
    rows = len(tap)

    def interpolate() -> None:
        for start in range(0, outer, rows):
            read, written = reads[start : start + rows], writes[start : start + rows]
            part = tap[: len(read)]
            np.take(read, first[0], axis=1, out=written, mode="clip")
            np.multiply(written, first[1], out=written)
            for positions, weight in others:
                np.take(read, positions, axis=1, out=part, mode="clip")
                np.multiply(part, weight, out=part)
                np.add(written, part, out=written)

    return interpolate


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel("Resize", ("Resize",), _bind, accepts=_accepts, scratch=_scratch),
)
