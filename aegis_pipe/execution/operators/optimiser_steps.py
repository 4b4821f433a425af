"""Steps of optimisers, for models that carry their training along.

Canonical form; T is the count of steps done, R the learning rate, and the tensors of n parameters
lie group by group (all X, then all gradients, then all states), as in the file:

    ai.onnx.preview.training.Adagrad(R, T, X..., G..., H...)          -> X..., H...
        `norm_coefficient`, `epsilon`, `decay_factor`
    ai.onnx.preview.training.Adam(R, T, X..., G..., V..., H...)       -> X..., V..., H...
        `norm_coefficient`, `norm_coefficient_post`, `alpha`, `beta`, `epsilon`
    ai.onnx.preview.training.Momentum(R, T, X..., G..., V...)         -> X..., V...
        `norm_coefficient`, `alpha`, `beta`, `nesterov` 0 or 1
"""

from __future__ import annotations

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.tensor import TensorSpec

_GROUPS = {"Adagrad": 3, "Adam": 4, "Momentum": 3}
"""Tensors of each parameter among the operands: itself, its gradient, its states."""
_NUMBERS = {
    "Adagrad": {"norm_coefficient": 0.0, "epsilon": 1e-6, "decay_factor": 0.0},
    "Adam": {
        "norm_coefficient": 0.0,
        "norm_coefficient_post": 0.0,
        "alpha": 0.9,
        "beta": 0.999,
        "epsilon": 1e-6,
    },
    "Momentum": {"norm_coefficient": 0.0, "alpha": 0.0, "beta": 0.0},
}
_MODES = ("standard", "nesterov")


def _infer(context: OperatorContext) -> list[TensorSpec]:
    groups, tensors = _GROUPS[context.node.operator], len(context.inputs) - 2
    reading.require(
        tensors > 0 and tensors % groups == 0,
        context,
        f"{tensors} tensors are not {groups} for each parameter",
    )
    count = tensors // groups
    specs = [reading.operand(context, 2 + i, "X") for i in range(tensors)]
    for position, spec in enumerate(specs[count:], count):
        reading.require(
            spec == specs[position % count],
            context,
            f"{spec} is not like {specs[position % count]}",
        )
    # The gradients stay behind.
    return [*specs[:count], *specs[2 * count :]]


def _lower(context: OperatorContext) -> Lowered:
    node = context.node
    attributes: dict[str, int | float] = {
        name: reading.number(context, name, default)
        for name, default in _NUMBERS[node.operator].items()
    }
    if node.operator == "Momentum":
        mode = reading.text(context, "mode", "")
        reading.require(mode in _MODES, context, f"mode `{mode}` is none of {_MODES}")
        attributes["nesterov"] = _MODES.index(mode)
    return Lowered(node.qualified_operator, attributes, tuple(range(len(context.inputs))))


ENTRIES: tuple[OperatorEntry, ...] = tuple(
    [OperatorEntry(f"ai.onnx.preview.training.{name}", _infer, _lower) for name in _GROUPS]
)
