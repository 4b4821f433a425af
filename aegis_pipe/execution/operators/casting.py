"""Cast, CastLike and BitCast.

Canonical form:

    Cast(X)       to the output's dtype; `saturate` 1: what a float8 can not hold becomes its
                  largest value, 0: infinity or NaN; `round_mode` for float8e8m0: "up", "down",
                  "nearest". A cast to the same dtype becomes `Reshape`, CastLike becomes Cast
    BitCast(X)    the same bytes under another dtype of the same width
"""

from __future__ import annotations

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.element_types import element_type
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.tensor import TensorSpec


def _infer_cast(context: OperatorContext) -> list[TensorSpec]:
    return [TensorSpec(element_type(context, "to"), reading.operand(context, 0, "input").shape)]


def _infer_cast_like(context: OperatorContext) -> list[TensorSpec]:
    target = reading.operand(context, 1, "target_type")
    return [TensorSpec(target.dtype, reading.operand(context, 0, "input").shape)]


def _infer_bit_cast(context: OperatorContext) -> list[TensorSpec]:
    (result,) = _infer_cast(context)
    source = reading.operand(context, 0, "input")
    reading.require(
        source.dtype.itemsize == result.dtype.itemsize,
        context,
        f"{source.dtype.name} and {result.dtype.name} differ in width",
    )
    return [result]


def _lower(context: OperatorContext) -> Lowered:
    infer = _infer_cast_like if context.node.operator == "CastLike" else _infer_cast
    if infer(context)[0] == context.inputs[0]:
        return Lowered("Reshape", {}, (0,))
    saturate = reading.integer(context, "saturate", 1)
    round_mode = reading.text(context, "round_mode", "up")
    return Lowered("Cast", {"saturate": saturate, "round_mode": round_mode}, (0,))


def _lower_bit_cast(context: OperatorContext) -> Lowered:
    return Lowered("BitCast", {}, (0,))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("Cast", _infer_cast, _lower),
    OperatorEntry("CastLike", _infer_cast_like, _lower),
    OperatorEntry("BitCast", _infer_bit_cast, _lower_bit_cast),
)
