"""Compiled gathers (`c/indexing.c`): elements of any dtype of fixed width.

native.gather           Gather and GatherND: rows of bytes
native.gather_elements  one element for each index

Indices that only a run knows are checked by the kernel; its call raises what it noted.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import native, operands
from aegis_pipe.device.cpu.kernels.indexing import check_indices, index_outside
from aegis_pipe.device.cpu.kernels.native import INTEGER, POINTER, NativeCall
from aegis_pipe.device.cpu.kernels.planned import elements_moved
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.errors import AegisError
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.record import record

_RANK = 6
"""`RANK` of `c/indexing.c`."""
_INDICES = frozenset({"int32", "int64"})


class _Gathering(ctypes.Structure):
    """`gathering` of `c/indexing.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "indices", "y", "refused", "sizes", "steps")),
        *((name, INTEGER) for name in ("outer", "outer_step", "outer_indices")),
        *((name, INTEGER) for name in ("count", "depth", "row", "is_narrow")),
    )


class _ElementGathering(ctypes.Structure):
    """`element_gathering` of `c/indexing.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "indices", "y", "refused")),
        *((name, INTEGER * _RANK) for name in ("shape", "steps")),
        *((name, INTEGER) for name in ("size", "axis_step", "item", "is_narrow")),
    )


@record(eq=True)
class _Rows:
    """What a gather of rows does: each tuple of indices means `row` elements."""

    outer: int
    count: int
    indexed: tuple[int, ...]
    """Sizes of the dimensions that a tuple counts in."""
    row: int
    has_indices_each: bool
    """Whether each of `outer` has index tuples of its own."""


def _rows(request: KernelRequest) -> _Rows:
    data, indices = operands.input_spec(request, 0).shape, operands.input_spec(request, 1).shape
    if request.operator == "Gather":
        axis = operands.integer(request, "axis")
        outer, row = math.prod(data[:axis]), math.prod(data[axis + 1 :])
        return _Rows(outer, math.prod(indices), data[axis : axis + 1], row, False)
    batch = operands.integer(request, "batch_dims")
    end = batch + indices[-1]
    outer, count = math.prod(data[:batch]), math.prod(indices[batch:-1])
    return _Rows(outer, count, data[batch:end], math.prod(data[end:]), True)


def _accepts(request: KernelRequest) -> bool:
    data, indices = operands.input_spec(request, 0), operands.input_spec(request, 1)
    counts = (data, indices, operands.output_spec(request))
    return (
        native.LIBRARY is not None
        and not data.dtype.hasobject
        and indices.dtype.name in _INDICES
        and all(spec.element_count > 0 for spec in counts)
    )


def _choose(request: KernelRequest) -> KernelChoice | None:
    if not _accepts(request):
        return None
    return KernelChoice(kernel="native.gather", cost=elements_moved(request))


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    x, indices = operands.required(inputs), operands.required(inputs, 1)
    y, rows = operands.required(outputs), _rows(request)
    row_bytes = rows.row * x.itemsize
    depth = len(rows.indexed)
    sizes = np.array(rows.indexed, np.int64)
    steps = np.array([row_bytes * math.prod(rows.indexed[d + 1 :]) for d in range(depth)], np.int64)
    refused = (INTEGER * depth)()
    arguments = _Gathering(
        *map(native.address, (x, indices, y)),
        ctypes.addressof(refused),
        *map(native.address, (sizes, steps)),
        *(rows.outer, math.prod(rows.indexed) * row_bytes, rows.count * rows.has_indices_each),
        *(rows.count, depth, row_bytes, indices.dtype == np.int32),
    )
    kept = (x, indices, y, refused, sizes, steps)
    return _call(request, "aegis_gather", arguments, kept, rows.indexed, refused)


def _call(
    request: KernelRequest,
    function: str,
    arguments: ctypes.Structure,
    kept: Sequence[object],
    sizes: Sequence[int],
    refused: ctypes.Array[ctypes.c_int64],
) -> NativeCall:
    """Return the call; constant indices are checked now, others whenever it has run."""
    call = native.call(function, arguments, kept)
    if 1 in request.constants:
        indices = request.constants[1].reshape(-1, len(sizes))
        for axis, size in enumerate(sizes):
            check_indices(request, indices[:, axis], size)
        return call

    def noted() -> AegisError | None:
        for index, size in zip(refused, sizes, strict=True):
            if index:
                ctypes.memset(refused, 0, ctypes.sizeof(refused))
                return index_outside(request, index, size)
        return None

    call.may_refuse(refused, noted)
    return call


def _steps(request: KernelRequest) -> list[tuple[int, int]] | None:
    """Return the indices' dimensions with their steps in the data, neighbours merged.

    A step is 0 along the axis. None if there are more than `_RANK`.
    """
    axis = operands.integer(request, "axis")
    data, indices = operands.input_spec(request, 0).shape, operands.input_spec(request, 1).shape
    merged: list[tuple[int, int]] = []
    for dimension, size in enumerate(indices):
        step = 0 if dimension == axis else math.prod(data[dimension + 1 :])
        if size == 1:
            continue
        if merged and step and merged[-1][1] == step * size:
            size *= merged.pop()[0]
        merged.append((size, step))
    return None if len(merged) > _RANK else [(1, 0)] * (_RANK - len(merged)) + merged


def _choose_elements(request: KernelRequest) -> KernelChoice | None:
    if not _accepts(request) or _steps(request) is None:
        return None
    return KernelChoice(kernel="native.gather_elements", cost=elements_moved(request))


def _bind_elements(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    x, indices, y = (
        *(operands.required(inputs, i) for i in (0, 1)),
        operands.required(outputs),
    )
    axis, walked = operands.integer(request, "axis"), _steps(request)
    assert walked is not None, request.node
    shape, steps = zip(*walked, strict=True)
    refused = (INTEGER * 1)()
    arguments = _ElementGathering(
        *map(native.address, (x, indices, y)),
        ctypes.addressof(refused),
        *((INTEGER * _RANK)(*values) for values in (shape, steps)),
        *(x.shape[axis], math.prod(x.shape[axis + 1 :]), x.itemsize, indices.dtype == np.int32),
    )
    kept = (x, indices, y, refused)
    return _call(request, "aegis_gather_elements", arguments, kept, x.shape[axis:][:1], refused)


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel(("Gather", "GatherND"), _choose, _bind, shares_work=True),
    CpuKernel(("GatherElements",), _choose_elements, _bind_elements, shares_work=True),
)
