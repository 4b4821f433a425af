"""Typed reading of an operator's attributes and operands, with errors that name the node."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aegis_pipe.errors import InvalidModelError
from aegis_pipe.execution.operators.table import OperatorContext
from aegis_pipe.tensor import TensorSpec


def invalid(context: OperatorContext, message: str) -> InvalidModelError:
    """Return the error to raise for an operator whose parts do not fit."""
    return InvalidModelError(
        message,
        context=f"node `{context.node.name}` ({context.node.qualified_operator})",
        hint="the model is inconsistent: export it again, or check it with `onnx.checker`",
    )


def require(condition: bool, context: OperatorContext, message: str) -> None:
    """Raise InvalidModelError unless the condition holds."""
    if not condition:
        raise invalid(context, message)


def integer(context: OperatorContext, name: str, default: int | None = None) -> int:
    """Return an int attribute; without default it must be there."""
    value = context.node.attributes.get(name, default)
    if not isinstance(value, int):
        raise invalid(context, f"attribute `{name}` has to be an integer")
    return value


def number(context: OperatorContext, name: str, default: float) -> float:
    """Return a float attribute."""
    value = context.node.attributes.get(name, default)
    if not isinstance(value, int | float):
        raise invalid(context, f"attribute `{name}` has to be a number")
    return float(value)


def text(context: OperatorContext, name: str, default: str) -> str:
    """Return a string attribute."""
    return _decode(context, name, context.node.attributes.get(name, default))


def integers(context: OperatorContext, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """Return a list-of-int attribute; an empty list means the default, as exporters use it."""
    value = context.node.attributes.get(name) or tuple(default)
    if not isinstance(value, tuple):
        raise invalid(context, f"attribute `{name}` has to be a list of integers")
    return tuple(map(int, value))


def numbers(context: OperatorContext, name: str) -> tuple[float, ...]:
    """Return a list-of-float attribute; empty if it is missing."""
    value = context.node.attributes.get(name, ())
    if not isinstance(value, tuple):
        raise invalid(context, f"attribute `{name}` has to be a list of numbers")
    return tuple(map(float, value))


def texts(context: OperatorContext, name: str, default: Sequence[str]) -> tuple[str, ...]:
    """Return a list-of-string attribute."""
    value = context.node.attributes.get(name, tuple(default))
    if not isinstance(value, tuple):
        raise invalid(context, f"attribute `{name}` has to be a list of strings")
    return tuple([_decode(context, name, each) for each in value])


def _decode(context: OperatorContext, name: str, value: object) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, str):
        raise invalid(context, f"attribute `{name}` has to be a string")
    return value


def operand(context: OperatorContext, position: int, name: str) -> TensorSpec:
    """Return the spec of a required operand."""
    spec = optional_operand(context, position)
    if spec is None:
        raise invalid(context, f"input `{name}` (position {position}) is missing")
    return spec


def optional_operand(context: OperatorContext, position: int) -> TensorSpec | None:
    """Return the spec of an operand, or None if it is left out."""
    return context.inputs[position] if position < len(context.inputs) else None


def static_value(context: OperatorContext, position: int, name: str) -> np.ndarray:
    """Return the value of an operand that has to be known at load."""
    value = context.constants.get(position)
    if value is None:
        raise invalid(context, f"input `{name}` (position {position}) has to be a constant")
    return value


def data_positions(context: OperatorContext, count: int) -> tuple[int, ...]:
    """Return positions 0..count-1, with -1 for each operand that is left out."""
    given = context.inputs
    return tuple(
        [
            position if position < len(given) and given[position] is not None else -1
            for position in range(count)
        ]
    )


def resolve_axis(context: OperatorContext, axis: int, rank: int) -> int:
    """Return the axis counted from the front."""
    if not -rank <= axis < max(rank, 1):
        raise invalid(context, f"axis {axis} is outside of {rank} dimensions")
    return axis % rank if rank else 0


def like(spec: TensorSpec, shape: Sequence[int]) -> TensorSpec:
    """Return a spec of the same dtype and another shape."""
    return TensorSpec(spec.dtype, tuple(shape))
