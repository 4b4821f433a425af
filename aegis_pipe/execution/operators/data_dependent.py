"""Operators whose results are as long as the data says.

Memory is planned for the longest result there can be. The loader turns these operators, where
their operands are not known, into ones of this runtime that also give the true length:

    aegis.NonZero(X)                -> indices int64[rank, elements], length int64
    aegis.NonMaxSuppression(boxes, scores, iou_threshold?, score_threshold?)
                                    -> selected int64[most, 3], length
        `boxes_per_class`: how many at most, `center_point_box` 0 or 1
    aegis.Unique(X)                 -> values, first places?, inverse?, counts?, length
        `axis` (None: X counts as flat), `sorted` 0 or 1
    aegis.Compress(X, condition)    -> X's slices where the condition holds, length
        `axis` (None: X counts as flat)

Beyond the length everything is 0: a valid index, so that what gathers with the padding gathers
something. `bounded` says what other operators make of such tensors.
"""

from __future__ import annotations

import numpy as np

from aegis_pipe.errors import DynamicShapeError
from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.element_types import INT64
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec

_REASONS = {
    "NonZero": "how many elements are not zero",
    "Unique": "how many elements differ",
    "NonMaxSuppression": "how many boxes are kept",
}
_LENGTH = TensorSpec(INT64, ())


def _error(context: OperatorContext, reason: str) -> DynamicShapeError:
    return DynamicShapeError(
        f"the output's shape depends on {reason}, which only the data can tell",
        context=f"node `{context.node.name}` ({context.node.qualified_operator})",
        hint="export the model without this operator (cut it before post-processing, say), "
        "and do that part in a transform",
    )


def _folded(name: str, reason: str) -> OperatorEntry:
    """Return the entry of an operator of which only known operands are left."""

    def infer(context: OperatorContext) -> list[TensorSpec]:
        raise _error(context, reason)

    def lower(context: OperatorContext) -> Lowered:
        raise _error(context, reason)

    return OperatorEntry(name, infer, lower)


def _infer_nonzero(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "X")
    return [TensorSpec(INT64, (len(data.shape), data.element_count)), _LENGTH]


def _lower_nonzero(context: OperatorContext) -> Lowered:
    return Lowered("aegis.NonZero", {}, (0,))


def _boxes_per_class(context: OperatorContext) -> int:
    boxes = reading.operand(context, 0, "boxes").shape[1]
    if reading.optional_operand(context, 2) is None:
        return 0
    most = context.constants.get(2)
    # Not known before a request: as many as there are.
    return boxes if most is None else min(max(int(most.reshape(-1)[0]), 0), boxes)


def _infer_suppression(context: OperatorContext) -> list[TensorSpec]:
    boxes, scores = reading.operand(context, 0, "boxes"), reading.operand(context, 1, "scores")
    fits = len(boxes.shape) == len(scores.shape) == 3 and boxes.shape[2] == 4
    reading.require(
        fits and (boxes.shape[0], boxes.shape[1]) == (scores.shape[0], scores.shape[2]),
        context,
        f"{boxes} are not the boxes of scores {scores}",
    )
    most = scores.shape[0] * scores.shape[1] * _boxes_per_class(context)
    return [TensorSpec(INT64, (most, 3)), _LENGTH]


def _lower_suppression(context: OperatorContext) -> Lowered:
    attributes: dict[str, Attribute] = {
        "boxes_per_class": _boxes_per_class(context),
        "center_point_box": reading.integer(context, "center_point_box", 0),
    }
    positions = reading.data_positions(context, 5)
    known = 2 in context.constants
    limit = -1 if known else positions[2]
    return Lowered("aegis.NonMaxSuppression", attributes, (0, 1, *positions[3:], limit))


def _axis(context: OperatorContext, data: TensorSpec) -> int | None:
    if "axis" not in context.node.attributes:
        return None
    return reading.resolve_axis(context, reading.integer(context, "axis"), len(data.shape))


def _infer_unique(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "X")
    axis = _axis(context, data)
    size = data.element_count if axis is None else data.shape[axis]
    values = TensorSpec(data.dtype, (size,)) if axis is None else data
    return [values, *[TensorSpec(INT64, (size,))] * 3, _LENGTH]


def _lower_unique(context: OperatorContext) -> Lowered:
    attributes: dict[str, Attribute] = {
        "axis": _axis(context, reading.operand(context, 0, "X")),
        "sorted": reading.integer(context, "sorted", 1),
    }
    return Lowered("aegis.Unique", attributes, (0,))


def _infer_compress(context: OperatorContext) -> list[TensorSpec]:
    data, condition = (reading.operand(context, i, n) for i, n in enumerate(("X", "condition")))
    reading.require(
        len(condition.shape) == 1 and condition.dtype == np.bool_,
        context,
        f"condition {condition} is not a list of bools",
    )
    axis = _axis(context, data)
    size = data.element_count if axis is None else data.shape[axis]
    most = min(size, condition.shape[0])
    if axis is None:
        return [reading.like(data, (most,)), _LENGTH]
    return [reading.like(data, (*data.shape[:axis], most, *data.shape[axis + 1 :])), _LENGTH]


def _lower_compress(context: OperatorContext) -> Lowered:
    axis = _axis(context, reading.operand(context, 0, "X"))
    return Lowered("aegis.Compress", {"axis": axis}, (0, 1))


ENTRIES: tuple[OperatorEntry, ...] = (
    *(_folded(name, why) for name, why in _REASONS.items()),
    OperatorEntry("aegis.NonZero", _infer_nonzero, _lower_nonzero),
    OperatorEntry("aegis.NonMaxSuppression", _infer_suppression, _lower_suppression),
    OperatorEntry("aegis.Unique", _infer_unique, _lower_unique),
    OperatorEntry("aegis.Compress", _infer_compress, _lower_compress),
)
