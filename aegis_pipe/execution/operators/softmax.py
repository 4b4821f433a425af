"""Softmax, LogSoftmax and Hardmax.

Canonical form: `axes`, ascending and adjacent, over which together the result is normalised. Since
opset 13 that is one axis; before, all axes from the attribute's on were flattened into one.
"""

from __future__ import annotations

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.tensor import TensorSpec

_SINGLE_AXIS_OPSET = 13


def _infer(context: OperatorContext) -> list[TensorSpec]:
    return [reading.operand(context, 0, "input")]


def _lower(context: OperatorContext) -> Lowered:
    rank = len(reading.operand(context, 0, "input").shape)
    is_single = context.node.opset >= _SINGLE_AXIS_OPSET
    axis = reading.integer(context, "axis", -1 if is_single else 1)
    # The flattening form allows an axis after the last: rows of one element.
    if not is_single and axis == rank:
        return Lowered(context.node.operator, {"axes": ()}, (0,))
    first = reading.resolve_axis(context, axis, rank)
    axes = (first,)[:rank] if is_single else tuple(range(first, rank))
    return Lowered(context.node.operator, {"axes": axes}, (0,))


ENTRIES: tuple[OperatorEntry, ...] = tuple(
    [OperatorEntry(name, _infer, _lower) for name in ("Softmax", "LogSoftmax", "Hardmax")]
)
