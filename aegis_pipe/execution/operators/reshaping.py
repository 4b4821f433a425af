"""Operators that leave the bytes as they are: Reshape, Squeeze, Unsqueeze, Flatten, Identity.

Canonical form: Reshape(data), without attributes; the output's spec says the shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.tensor import TensorSpec

_AXES_ARE_OPERAND_OPSET = 13


def _infer_identity(context: OperatorContext) -> list[TensorSpec]:
    return [reading.operand(context, 0, "input")]


def _infer_reshape(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "data")
    wanted = [int(size) for size in reading.static_value(context, 1, "shape").reshape(-1)]
    shape = _resolve_zeros(context, data, wanted)
    unknown = [axis for axis, size in enumerate(shape) if size == -1]
    rest = math.prod(size for size in shape if size != -1)
    if len(unknown) == 1 and rest:
        shape[unknown[0]] = data.element_count // rest
    if not (min(shape, default=0) >= 0 and math.prod(shape) == data.element_count):
        raise reading.invalid(context, f"{data} can not be reshaped to {wanted}")
    return [reading.like(data, shape)]


def _resolve_zeros(context: OperatorContext, data: TensorSpec, wanted: Sequence[int]) -> list[int]:
    if reading.integer(context, "allowzero", 0):
        return list(wanted)
    if not all(size != 0 or axis < len(data.shape) for axis, size in enumerate(wanted)):
        raise reading.invalid(
            context, f"a 0 in {list(wanted)} copies a dimension that {data} has not"
        )
    return [data.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]


def _axes(context: OperatorContext, rank: int) -> tuple[int, ...] | None:
    """Return the axes, resolved and ascending; None if none are given."""
    if context.node.opset < _AXES_ARE_OPERAND_OPSET:
        axes: Sequence[int] = reading.integers(context, "axes", ())
        if "axes" not in context.node.attributes:
            return None
    elif reading.optional_operand(context, 1) is None:
        return None
    else:
        axes = [int(axis) for axis in reading.static_value(context, 1, "axes").reshape(-1)]
    resolved = sorted(reading.resolve_axis(context, axis, rank) for axis in axes)
    if len(set(resolved)) != len(resolved):
        raise reading.invalid(context, f"axes {axes} repeat")
    return tuple(resolved)


def _infer_squeeze(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "data")
    axes = _axes(context, len(data.shape))
    if axes is None:
        axes = tuple([axis for axis, size in enumerate(data.shape) if size == 1])
    if not all(data.shape[axis] == 1 for axis in axes):
        raise reading.invalid(context, f"axes {axes} of {data} are not all 1")
    return [reading.like(data, [size for i, size in enumerate(data.shape) if i not in axes])]


def _infer_unsqueeze(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "data")
    count = (
        len(reading.integers(context, "axes", ()))
        if context.node.opset < _AXES_ARE_OPERAND_OPSET
        else reading.static_value(context, 1, "axes").size
    )
    rank = len(data.shape) + count
    axes = _axes(context, rank) or ()
    sizes = iter(data.shape)
    return [reading.like(data, [1 if i in axes else next(sizes) for i in range(rank)])]


def _infer_flatten(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "input")
    axis = reading.integer(context, "axis", 1)
    rank = len(data.shape)
    if not (-rank <= axis <= rank):
        raise reading.invalid(context, f"axis {axis} is outside of {data}")
    axis = axis + rank if axis < 0 else axis
    return [reading.like(data, (math.prod(data.shape[:axis]), math.prod(data.shape[axis:])))]


def _lower(context: OperatorContext) -> Lowered:
    return Lowered("Reshape", {}, (0,))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("Identity", _infer_identity, _lower),
    OperatorEntry("Reshape", _infer_reshape, _lower, static_inputs=(1,)),
    OperatorEntry("Squeeze", _infer_squeeze, _lower, static_inputs=(1,)),
    OperatorEntry("Unsqueeze", _infer_unsqueeze, _lower, static_inputs=(1,)),
    OperatorEntry("Flatten", _infer_flatten, _lower),
)
