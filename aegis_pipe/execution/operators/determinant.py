"""Determinants.

Canonical form:

    Det(X[..., M, M]) -> Y[...]
"""

from __future__ import annotations

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.tensor import TensorSpec


def _infer(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "X")
    is_square = len(data.shape) > 1 and data.shape[-1] == data.shape[-2]
    reading.require(is_square, context, f"{data} is no square matrix")
    return [reading.like(data, data.shape[:-2])]


def _lower(context: OperatorContext) -> Lowered:
    return Lowered("Det", {}, (0,))


ENTRIES: tuple[OperatorEntry, ...] = (OperatorEntry("Det", _infer, _lower),)
