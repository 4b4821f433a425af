"""Operators that work element by element, with NumPy's broadcasting.

Canonical form: all operands stay data operands, in ONNX's order, and attributes have their
defaults filled in. What differs:

    Clip(X, min?, max?)     `min`, `max`: int or float where known at load, else None; an operand
                            whose value became an attribute is left out
    Max, Min, Sum, Mean     of one operand become `Reshape`
    IsInf(X)                `detect_negative`, `detect_positive`: 0 or 1
    BitShift(X, Y)          `direction`: "LEFT" or "RIGHT"
    Mod(A, B)               `fmod`: 1 takes the dividend's sign, 0 the divisor's
    Gelu(X)                 becomes com.microsoft.BiasGelu without a bias; `approximate` "none"
                            (exact) or "tanh"
    Swish(X)                `alpha`; also what com.microsoft.QuickGelu becomes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.element_types import BOOL
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec

_UNARY = (
    *("Abs", "Neg", "Sign", "Reciprocal", "Sqrt", "Exp", "Log", "Erf"),
    *("Floor", "Ceil", "Round", "BitwiseNot"),
    *("Sin", "Cos", "Tan", "Asin", "Acos", "Atan"),
    *("Sinh", "Cosh", "Tanh", "Asinh", "Acosh", "Atanh"),
    *("Relu", "Sigmoid", "Softplus", "Softsign", "HardSwish", "Mish"),
)

_UNARY_WITH_NUMBERS: Mapping[str, Mapping[str, float]] = {
    "LeakyRelu": {"alpha": 0.01},
    "Elu": {"alpha": 1.0},
    "Celu": {"alpha": 1.0},
    "Selu": {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "ThresholdedRelu": {"alpha": 1.0},
    "Shrink": {"bias": 0.0, "lambd": 0.5},
    "Swish": {"alpha": 1.0},
}

_PREDICATES = ("IsNaN", "Not")
_BINARY = ("Add", "Sub", "Mul", "Div", "BitwiseAnd", "BitwiseOr", "BitwiseXor")
_COMPARISONS = ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "And", "Or", "Xor")
_VARIADIC = ("Max", "Min", "Sum", "Mean")
_CLIP_BY_OPERANDS_OPSET = 11


def broadcast_shape(context: OperatorContext, specs: Sequence[TensorSpec]) -> tuple[int, ...]:
    """Return the shape that all operands broadcast to; InvalidModelError if there is none."""
    shapes = {spec.shape for spec in specs} - {()}
    if len(shapes) < 2:
        return next(iter(shapes), ())
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        operands = " and ".join(map(str, specs))
        raise reading.invalid(context, f"operands {operands} do not broadcast") from None


def same_as_first(context: OperatorContext) -> list[TensorSpec]:
    """Infer an output like the first operand."""
    return [reading.operand(context, 0, "X")]


def with_all_operands(operator: str) -> Callable[[OperatorContext], Lowered]:
    """Return a lowering that keeps all operands and has no attributes."""

    def lower(context: OperatorContext) -> Lowered:
        positions = reading.data_positions(context, len(context.inputs))
        return Lowered(operator, {}, positions)

    return lower


def _required(context: OperatorContext) -> list[TensorSpec]:
    return [reading.operand(context, i, f"#{i}") for i in range(len(context.inputs))]


def _infer_predicate(context: OperatorContext) -> list[TensorSpec]:
    return [TensorSpec(BOOL, reading.operand(context, 0, "X").shape)]


def _infer_broadcast(count: int | None) -> Callable[[OperatorContext], list[TensorSpec]]:
    def infer(context: OperatorContext) -> list[TensorSpec]:
        specs = _required(context)
        reading.require(bool(specs), context, "there are no operands")
        if count not in (None, len(specs)):
            raise reading.invalid(context, f"takes {count} operands")
        if len({spec.dtype for spec in specs}) != 1:
            raise reading.invalid(
                context, f"operands {' and '.join(map(str, specs))} differ in dtype"
            )
        return [reading.like(specs[0], broadcast_shape(context, specs))]

    return infer


def _infer_comparison(context: OperatorContext) -> list[TensorSpec]:
    return [TensorSpec(BOOL, _infer_broadcast(2)(context)[0].shape)]


def _infer_pow(context: OperatorContext) -> list[TensorSpec]:
    specs = [reading.operand(context, 0, "X"), reading.operand(context, 1, "Y")]
    return [reading.like(specs[0], broadcast_shape(context, specs))]


def _infer_where(context: OperatorContext) -> list[TensorSpec]:
    specs = [reading.operand(context, i, name) for i, name in enumerate(("condition", "X", "Y"))]
    if not (specs[0].dtype == BOOL and specs[1].dtype == specs[2].dtype):
        raise reading.invalid(
            context,
            f"operands {', '.join(map(str, specs))} are not a condition and two of one dtype",
        )
    return [reading.like(specs[1], broadcast_shape(context, specs))]


def _infer_prelu(context: OperatorContext) -> list[TensorSpec]:
    data, slope = reading.operand(context, 0, "X"), reading.operand(context, 1, "slope")
    if broadcast_shape(context, [data, slope]) != data.shape:
        raise reading.invalid(context, f"slope {slope} does not broadcast to {data}")
    return [data]


def _lower_variadic(context: OperatorContext) -> Lowered:
    count = len(context.inputs)
    return Lowered("Reshape" if count == 1 else context.node.operator, {}, tuple(range(count)))


def _lower_numbers(defaults: Mapping[str, float]) -> Callable[[OperatorContext], Lowered]:
    def lower(context: OperatorContext) -> Lowered:
        attributes = {name: reading.number(context, name, d) for name, d in defaults.items()}
        return Lowered(context.node.operator, attributes, (0,))

    return lower


def _lower_is_inf(context: OperatorContext) -> Lowered:
    names = ("detect_negative", "detect_positive")
    return Lowered("IsInf", {name: reading.integer(context, name, 1) for name in names}, (0,))


def _lower_bit_shift(context: OperatorContext) -> Lowered:
    return Lowered("BitShift", {"direction": reading.text(context, "direction", "")}, (0, 1))


def _lower_mod(context: OperatorContext) -> Lowered:
    return Lowered("Mod", {"fmod": reading.integer(context, "fmod", 0)}, (0, 1))


def _lower_gelu(context: OperatorContext) -> Lowered:
    attributes = {"approximate": reading.text(context, "approximate", "none")}
    return Lowered("com.microsoft.BiasGelu", attributes, (0, -1))


def _lower_quick_gelu(context: OperatorContext) -> Lowered:
    return Lowered("Swish", {"alpha": reading.number(context, "alpha", 1.702)}, (0,))


def _lower_clip(context: OperatorContext) -> Lowered:
    if context.node.opset < _CLIP_BY_OPERANDS_OPSET:
        bounds = {name: context.node.attributes.get(name) for name in ("min", "max")}
        infinite = {"min": -np.inf, "max": np.inf}
        known = {name: reading.number(context, name, infinite[name]) for name in bounds}
        return Lowered(
            "Clip", {n: v if bounds[n] is not None else None for n, v in known.items()}, (0, -1, -1)
        )
    attributes: dict[str, Attribute] = {"min": None, "max": None}
    positions = list(reading.data_positions(context, 3))
    for position, name in ((1, "min"), (2, "max")):
        value = context.constants.get(position)
        if positions[position] >= 0 and value is not None:
            attributes[name] = _scalar(context, name, value)
            positions[position] = -1
    return Lowered("Clip", attributes, tuple(positions))


def _scalar(context: OperatorContext, name: str, value: np.ndarray) -> int | float:
    if value.size != 1:
        raise reading.invalid(context, f"`{name}` has to be a scalar")
    is_integer = np.issubdtype(value.dtype, np.integer)
    return int(value.reshape(())) if is_integer else float(value.reshape(()))


ENTRIES: tuple[OperatorEntry, ...] = (
    *(OperatorEntry(name, same_as_first, with_all_operands(name)) for name in _UNARY),
    *(
        OperatorEntry(name, same_as_first, _lower_numbers(defaults))
        for name, defaults in _UNARY_WITH_NUMBERS.items()
    ),
    *(OperatorEntry(name, _infer_predicate, with_all_operands(name)) for name in _PREDICATES),
    *(OperatorEntry(name, _infer_broadcast(2), with_all_operands(name)) for name in _BINARY),
    *(OperatorEntry(name, _infer_comparison, with_all_operands(name)) for name in _COMPARISONS),
    *(OperatorEntry(name, _infer_broadcast(None), _lower_variadic) for name in _VARIADIC),
    OperatorEntry("IsInf", _infer_predicate, _lower_is_inf),
    OperatorEntry("BitShift", _infer_broadcast(2), _lower_bit_shift),
    OperatorEntry("Mod", _infer_broadcast(2), _lower_mod),
    OperatorEntry("Pow", _infer_pow, with_all_operands("Pow")),
    OperatorEntry("Where", _infer_where, with_all_operands("Where")),
    OperatorEntry("PRelu", _infer_prelu, with_all_operands("PRelu")),
    OperatorEntry("Gelu", same_as_first, _lower_gelu),
    OperatorEntry("com.microsoft.QuickGelu", same_as_first, _lower_quick_gelu),
    OperatorEntry("Clip", same_as_first, _lower_clip),
)
