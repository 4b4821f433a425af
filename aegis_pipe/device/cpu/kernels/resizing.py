"""Resize: interpolation is separable, so each axis that changes is one pass.

Shrinking axes go first, so that what lies between the passes is small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.pointwise import INTEGERS, WIDE_FLOATS
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.cpu.kernels.tiles import TILE
from aegis_pipe.device.resampling import COORDINATES, AxisTaps, changing_axes
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec


def _accepts(request: KernelRequest) -> bool:
    mode = operands.text(request, "mode")
    coordinates = operands.text(request, "coordinate_transformation_mode")
    dtypes = WIDE_FLOATS | INTEGERS if mode == "nearest" else WIDE_FLOATS
    spec = operands.input_spec(request, 0)
    return coordinates in COORDINATES and spec.dtype in dtypes and spec.element_count > 0


def _scratch(request: KernelRequest) -> list[TensorSpec]:
    """Return specs: what lies between the passes, then each pass's block of one tap."""
    spec = operands.input_spec(request, 0)
    shape = list(spec.shape)
    between, taps = [], []
    passes = changing_axes(request)
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
    passes = changing_axes(request)
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


def _repeats(passes: Sequence[AxisTaps], shape: Sequence[int]) -> list[int] | None:
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
    resized: AxisTaps, source: np.ndarray, target: np.ndarray, scratch: np.ndarray
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
