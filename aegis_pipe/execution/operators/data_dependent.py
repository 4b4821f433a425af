"""Operators whose result's shape depends on data: they run only where they can be folded at load.

Inference always raises DynamicShapeError and names the reason.
"""

from __future__ import annotations

from aegis_pipe.errors import DynamicShapeError
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.tensor import TensorSpec

_REASONS = {
    "NonZero": "how many elements are not zero",
    "Unique": "how many elements differ",
    "NonMaxSuppression": "how many boxes are kept",
}


def _error(context: OperatorContext, reason: str) -> DynamicShapeError:
    return DynamicShapeError(
        f"the output's shape depends on {reason}, which only the data can tell",
        context=f"node `{context.node.name}` ({context.node.qualified_operator})",
        hint="export the model without this operator (cut it before post-processing, say), "
        "and do that part in a transform",
    )


def _entry(name: str, reason: str) -> OperatorEntry:
    def infer(context: OperatorContext) -> list[TensorSpec]:
        raise _error(context, reason)

    def lower(context: OperatorContext) -> Lowered:
        raise _error(context, reason)

    return OperatorEntry(name, infer, lower)


ENTRIES: tuple[OperatorEntry, ...] = tuple(_entry(name, why) for name, why in _REASONS.items())
