"""Arithmetic between quantised tensors, as ONNX Runtime's quantiser writes it.

Canonical form, scales (float32) and zero points scalars, zero points left out being 0:

    com.microsoft.QLinearAdd(A, a_scale, a_zero?, B, b_scale, b_zero?, c_scale, c_zero?)
    com.microsoft.QLinearMul(the same)
        A and B broadcast; the real values are added or multiplied, then quantised; `levels` as in
        `quantised_layers`
"""

from __future__ import annotations

import numpy as np

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.tensor import TensorSpec


def _infer(context: OperatorContext) -> list[TensorSpec]:
    left, right = reading.operand(context, 0, "A"), reading.operand(context, 3, "B")
    try:
        shape = np.broadcast_shapes(left.shape, right.shape)
    except ValueError as error:
        raise reading.invalid(context, f"{left} and {right} do not broadcast") from error
    return [reading.like(left, shape)]


def _lower(context: OperatorContext) -> Lowered:
    positions = reading.data_positions(context, 8)
    attributes = {"levels": reading.integers(context, "levels", ())}
    return Lowered(context.node.qualified_operator, attributes, positions)


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("com.microsoft.QLinearAdd", _infer, _lower),
    OperatorEntry("com.microsoft.QLinearMul", _infer, _lower),
)
