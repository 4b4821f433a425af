"""Operators that only move bytes, and from where to where: what the plan may leave in place.

Tensors lie dense in memory, the last axis fastest. A slice of one is contiguous if nothing but axes
of length 1 comes before the axis that it cuts. Such a slice can be a view; and of a concatenation
whose operands are such slices of the result, each can be written into place by who makes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

from aegis_pipe.device.requests import integer, integers
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.memory import Part
from aegis_pipe.tensor import TensorSpec


def parts_of(
    request: KernelRequest, operands: Sequence[str], results: Sequence[str]
) -> tuple[Part, ...]:
    """Return all wanted results as parts of the first operand; nothing if one is none."""
    cut = _CUTS.get(request.operator)
    whole = request.inputs[0] if cut is not None else None
    if cut is None or whole is None or whole.dtype.hasobject:
        return ()
    wanted = [
        (results[position], _stretch(whole, starts, shape))
        for position, (starts, shape) in enumerate(cut(request))
        if results[position]
    ]
    parts = [Part(operands[0], part, offset) for part, offset in wanted if offset is not None]
    return tuple(parts) if len(parts) == len(wanted) else ()


def joins_of(
    request: KernelRequest, operands: Sequence[str], results: Sequence[str]
) -> tuple[Part, ...]:
    """Return all operands as parts of the one result; nothing if one is none."""
    whole = request.outputs[0]
    if request.operator != "Concat" or whole is None or whole.dtype.hasobject:
        return ()
    shapes = [spec.shape for spec in request.inputs if spec is not None]
    cuts = _along(integer(request, "axis"), shapes)
    offsets = [_stretch(whole, starts, shape) for starts, shape in cuts]
    return (
        tuple(
            [
                Part(results[0], operand, offset)
                for operand, offset in zip(operands, offsets, strict=True)
                if offset is not None
            ]
        )
        if None not in offsets
        else ()
    )


_Cut = tuple[Sequence[int], Sequence[int]]
"""Where on each axis a slice starts, and its shape with all axes of the whole."""


def _along(axis: int, shapes: Iterable[Sequence[int]]) -> list[_Cut]:
    """Cut one axis into consecutive stretches of these shapes."""
    shapes = list(shapes)
    starts = itertools.accumulate((shape[axis] for shape in shapes), initial=0)
    return [
        ([start if each == axis else 0 for each in range(len(shape))], shape)
        for start, shape in zip(starts, shapes, strict=False)
    ]


def _split(request: KernelRequest) -> list[_Cut]:
    axis, shape = integer(request, "axis"), _shape(request)
    sizes = integers(request, "split")
    return _along(axis, ([*shape[:axis], size, *shape[axis + 1 :]] for size in sizes))


def _slice(request: KernelRequest) -> list[_Cut]:
    result = request.outputs[0]
    steps = integers(request, "steps")
    if result is None or any(
        step != 1 and size > 1 for step, size in zip(steps, result.shape, strict=True)
    ):
        return []
    return [(integers(request, "starts"), result.shape)]


def _gather(request: KernelRequest) -> list[_Cut]:
    """Take one constant index: all of the axes after it."""
    indices, shape = request.constants.get(1), _shape(request)
    axis = integer(request, "axis")
    if indices is None or indices.size != 1 or not -shape[axis] <= indices.item() < shape[axis]:
        return []
    starts = [0] * len(shape)
    starts[axis] = int(indices.item()) % shape[axis]
    return [(starts, [*shape[:axis], 1, *shape[axis + 1 :]])]


def _shape(request: KernelRequest) -> tuple[int, ...]:
    spec = request.inputs[0]
    assert spec is not None, request.node
    return spec.shape


_CUTS: Mapping[str, Callable[[KernelRequest], list[_Cut]]] = {
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
}


def _stretch(whole: TensorSpec, starts: Sequence[int], shape: Sequence[int]) -> int | None:
    """Return where a slice begins, in bytes; None if it is not contiguous."""
    stride = whole.dtype.itemsize
    offset, is_whole = 0, True
    for length, start, size in reversed(list(zip(whole.shape, starts, shape, strict=True))):
        if not is_whole and size > 1:
            return None
        offset += start * stride
        stride *= length
        is_whole = is_whole and size == length
    return offset
