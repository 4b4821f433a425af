"""Pools. Windows are separable: reduce along one dimension after the other.

pool.max, pool.average, pool.lp   a pass for each spatial dimension, shifted views combined
                                  with one ufunc; padding is never written, taps are clipped
pool.max_indices                  tap by tap over all dimensions, keeping where the maximum was
pool.global_*                     one reduction over all of space
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import all_float, planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.cpu.kernels.windows import AxisWindows, taps, window_axes
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_INT64 = np.dtype(np.int64)


def _axes(request: KernelRequest) -> tuple[AxisWindows, ...]:
    data, result = operands.input_spec(request, 0), operands.output_spec(request)
    return window_axes(request, data.shape[2:], result.shape[2:])


def _lowest(dtype: np.dtype) -> float:
    return -math.inf if dtype.kind == "f" else int(np.iinfo(dtype).min)


def _partial_shapes(request: KernelRequest) -> list[tuple[int, ...]]:
    """Return the shapes between passes: the last dimension is reduced first."""
    shape = list(operands.input_spec(request, 0).shape)
    counts = operands.output_spec(request).shape
    partial = []
    for axis in range(len(shape) - 1, 2, -1):
        shape[axis] = counts[axis]
        partial.append(tuple(shape))
    return partial


def _separable_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    data = operands.input_spec(request, 0)
    powers = (data.shape,) if request.operator == "LpPool" else ()
    return [TensorSpec(data.dtype, shape) for shape in (*powers, *_partial_shapes(request))]


def _accepts_pool(request: KernelRequest) -> bool:
    return all_float(request) and len(operands.input_spec(request, 0).shape) >= 3


def _accepts_max(request: KernelRequest) -> bool:
    data = operands.input_spec(request, 0)
    return (_accepts_pool(request) or data.dtype.kind in "iu") and not operands.has_output(
        request, 1
    )


def _passes(
    axes: Sequence[AxisWindows], arrays: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]]:
    """Return (target, [(part of target, what to combine into it)]) a spatial dimension."""
    passes = []
    for step, (source, target) in enumerate(itertools.pairwise(arrays)):
        axis = axes[len(axes) - 1 - step]
        lead = (slice(None),) * (target.ndim - 1 - step)
        pairs = [
            (target[(*lead, windows)], source[(*lead, elements)])
            for _, (windows,), (elements,) in taps((axis,))
        ]
        passes.append((target, pairs))
    return passes


def _combine(
    ufunc: np.ufunc,
    start: float,
    passes: Sequence[tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]],
) -> None:
    for target, pairs in passes:
        # The first tap starts the target if it serves all windows, which it does without padding.
        starts = bool(pairs) and pairs[0][0].shape == target.shape
        if starts:
            np.copyto(*pairs[0])
        else:
            target.fill(start)
        for part, source in pairs[starts:]:
            ufunc(part, source, out=part)


def _bind_max(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, result = operands.required(inputs), operands.required(outputs)
    passes = _passes(_axes(request), (data, *scratch, result))
    lowest = _lowest(data.dtype)

    def run() -> None:
        _combine(np.maximum, lowest, passes)

    return run


def _bind_average(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    axes = _axes(request)
    data, result = operands.required(inputs), operands.required(outputs)
    passes = _passes(axes, (data, *scratch, result))
    divisors = _divisors(request, axes, result.dtype)

    def run() -> None:
        _combine(np.add, 0, passes)
        for divisor in divisors:
            np.divide(result, divisor, out=result)

    return run


def _divisors(
    request: KernelRequest, axes: Sequence[AxisWindows], dtype: np.dtype
) -> list[np.ndarray]:
    """Return what to divide by: one scalar if all windows are whole, else a vector a dimension."""
    pads_count = bool(operands.integer(request, "count_include_pad"))
    covered = [np.maximum(axis.covered(pads_count=pads_count), 1) for axis in axes]
    if all((counts == counts[0]).all() for counts in covered):
        return [np.asarray(math.prod(counts[0] for counts in covered), dtype)]
    return [
        counts.astype(dtype).reshape(-1, *(1,) * (len(axes) - 1 - position))
        for position, counts in enumerate(covered)
    ]


def _bind_lp(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    order = operands.integer(request, "p")
    data, result = operands.required(inputs), operands.required(outputs)
    powers = scratch[0]
    passes = _passes(_axes(request), (*scratch, result))

    def run() -> None:
        raise_to(data, order, powers)
        _combine(np.add, 0, passes)
        take_root(result, order)

    return run


def raise_to(data: np.ndarray, order: int, out: np.ndarray) -> None:
    """Write |data| ** order."""
    if order == 2:
        np.multiply(data, data, out=out)
    else:
        np.abs(data, out=out)
        np.power(out, order, out=out)


def take_root(data: np.ndarray, order: int) -> None:
    """Replace by the order-th root."""
    if order == 2:
        np.sqrt(data, out=data)
    elif order != 1:
        np.power(data, 1 / order, out=data)


def _accepts_max_indices(request: KernelRequest) -> bool:
    data = operands.input_spec(request, 0)
    return len(data.shape) >= 3 and data.dtype.kind in "fiu"


def _indices_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    result = operands.output_spec(request)
    return (TensorSpec(np.dtype(np.bool_), result.shape), TensorSpec(_INT64, result.shape))


def _bind_max_indices(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, result = operands.required(inputs), operands.required(outputs)
    indices = operands.required(outputs, 1)
    larger, places = scratch
    axes = _axes(request)
    strides = _element_strides(data.shape, operands.integer(request, "storage_order"))
    steps = [
        _index_step(data, (result, indices, larger, places), windows, sources, strides)
        for _, windows, sources in taps(axes)
    ]
    planes = np.arange(math.prod(data.shape[:2])) * math.prod(data.shape[2:])
    planes = planes.reshape(*data.shape[:2], *(1,) * len(axes))
    lowest = _lowest(data.dtype)

    def run() -> None:
        result.fill(lowest)
        indices.fill(-1)
        for step in steps:
            step()
        np.add(indices, planes, out=indices)

    return run


def _index_step(
    data: np.ndarray,
    targets: Sequence[np.ndarray],
    windows: tuple[slice, ...],
    sources: tuple[slice, ...],
    strides: Sequence[int],
) -> Callable[[], None]:
    """Return what one tap does: where it is larger, it and its place become the best."""
    every = (slice(None), slice(None))
    best, index, is_larger, place = (target[(*every, *windows)] for target in targets)
    source = data[(*every, *sources)]
    last = len(sources) - 1
    offsets = [
        (np.arange(part.start, part.stop, part.step) * strides[axis]).reshape(
            -1, *(1,) * (last - axis)
        )
        for axis, part in enumerate(sources)
    ]

    def step() -> None:
        np.greater(source, best, out=is_larger)
        np.copyto(best, source, where=is_larger)
        place.fill(0)
        for offset in offsets:
            np.add(place, offset, out=place)
        np.copyto(index, place, where=is_larger)

    return step


def _element_strides(shape: Sequence[int], storage_order: int) -> list[int]:
    """Return how far apart neighbours are counted; storage order 1 counts the first axis first."""
    spatial = shape[2:]
    if storage_order:
        return [math.prod(spatial[:axis]) for axis in range(len(spatial))]
    return [math.prod(spatial[axis + 1 :]) for axis in range(len(spatial))]


def _flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(math.prod(array.shape[:2]), -1)


def _bind_global_average(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, result = _flat(operands.required(inputs)), operands.required(outputs).reshape(-1)
    count = data.shape[1]

    def run() -> None:
        np.add.reduce(data, axis=1, out=result)
        np.divide(result, count, out=result)

    return run


def _bind_global_max(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, result = _flat(operands.required(inputs)), operands.required(outputs).reshape(-1)

    def run() -> None:
        np.maximum.reduce(data, axis=1, out=result)

    return run


def _global_lp_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    return (operands.input_spec(request, 0),)


def _bind_global_lp(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, result = operands.required(inputs), operands.required(outputs).reshape(-1)
    order = operands.integer(request, "p")
    powers = scratch[0]
    rows = _flat(powers)

    def run() -> None:
        raise_to(data, order, powers)
        np.add.reduce(rows, axis=1, out=result)
        take_root(result, order)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "pool.max", ("MaxPool",), _bind_max, accepts=_accepts_max, scratch=_separable_scratch
    ),
    planned_kernel(
        "pool.max_indices",
        ("MaxPool",),
        _bind_max_indices,
        accepts=_accepts_max_indices,
        scratch=_indices_scratch,
    ),
    planned_kernel(
        "pool.average",
        ("AveragePool",),
        _bind_average,
        accepts=_accepts_pool,
        scratch=_separable_scratch,
    ),
    planned_kernel(
        "pool.lp", ("LpPool",), _bind_lp, accepts=_accepts_pool, scratch=_separable_scratch
    ),
    planned_kernel("pool.global_average", ("GlobalAveragePool",), _bind_global_average),
    planned_kernel("pool.global_max", ("GlobalMaxPool",), _bind_global_max),
    planned_kernel(
        "pool.global_lp", ("GlobalLpPool",), _bind_global_lp, scratch=_global_lp_scratch
    ),
)
