"""Losses of classifiers, C classes in dimension 1.

Canonical form:

    NegativeLogLikelihoodLoss(log_prob[N, C, ...], labels[N, ...], weights[C]?) -> loss
    SoftmaxCrossEntropyLoss(scores[N, C, ...], labels[N, ...], weights[C]?) -> loss?, log_prob?
        `reduction` none, sum or mean (weighted); `ignores`: whether labels may be `ignore_index`,
        which then adds nothing
"""

from __future__ import annotations

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec


def _reduction(context: OperatorContext) -> str:
    reduction = reading.text(context, "reduction", "mean")
    known = reduction in ("none", "sum", "mean")
    reading.require(known, context, f"reduction `{reduction}` is unknown")
    return reduction


def _infer(context: OperatorContext) -> list[TensorSpec]:
    scores, labels = reading.operand(context, 0, "input"), reading.operand(context, 1, "target")
    fits = len(scores.shape) > 1 and labels.shape == (scores.shape[0], *scores.shape[2:])
    reading.require(fits, context, f"labels {labels} do not fit scores {scores}")
    shape = labels.shape if _reduction(context) == "none" else ()
    return [reading.like(scores, shape), scores][: len(context.node.outputs)]


def _lower(context: OperatorContext) -> Lowered:
    ignored = context.node.attributes.get("ignore_index")
    attributes: dict[str, Attribute] = {
        "reduction": _reduction(context),
        "ignores": int(ignored is not None),
        "ignore_index": reading.integer(context, "ignore_index", 0),
    }
    return Lowered(context.node.operator, attributes, reading.data_positions(context, 3))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("NegativeLogLikelihoodLoss", _infer, _lower),
    OperatorEntry("SoftmaxCrossEntropyLoss", _infer, _lower),
)
