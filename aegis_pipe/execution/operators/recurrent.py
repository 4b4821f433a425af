"""Recurrent layers: RNN, GRU, LSTM.

Canonical form, with G = 1, 3 or 4 gates, D = 1 or 2 directions, H hidden units, I inputs:

    RNN, GRU(X, W[D, G*H, I], R[D, G*H, H], B[D, 2*G*H]?, sequence_lens[batch]?, initial_h?)
        -> Y?, Y_h?
    LSTM(..., initial_c?, P[D, 3*H]?) -> Y?, Y_h?, Y_c?

Layout 0: X[time, batch, I], Y[time, D, batch, H], states [D, batch, H].
Layout 1: X[batch, time, I], Y[batch, time, D, H], states [batch, D, H].

Attributes: `layout`; `reverse`, 0 or 1 for each direction; `activations`, those of direction 0,
then of direction 1 (ONNX's names); `activation_alpha` and `activation_beta`, one for each
activation, 0 where it takes none; `clip`, inf for none; GRU `linear_before_reset`; LSTM
`input_forget`.
"""

from __future__ import annotations

import math

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec

_ACTIVATIONS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
_REVERSE = {"forward": (0,), "reverse": (1,), "bidirectional": (0, 1)}
_ALPHA = {
    "affine": 1.0,
    "leakyrelu": 0.01,
    "thresholdedrelu": 1.0,
    "scaledtanh": 1.0,
    "hardsigmoid": 0.2,
    "elu": 1.0,
}
_BETA = {"affine": 0.0, "scaledtanh": 1.0, "hardsigmoid": 0.5}
_STATE_COUNT = {"RNN": 1, "GRU": 1, "LSTM": 2}
_OPERAND_COUNT = {"RNN": 6, "GRU": 6, "LSTM": 8}


def _directions(context: OperatorContext) -> tuple[int, ...]:
    direction = reading.text(context, "direction", "forward")
    reading.require(direction in _REVERSE, context, f"direction `{direction}` is unknown")
    return _REVERSE[direction]


def _infer(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "X")
    weights = reading.operand(context, 1, "W")
    recurrence = reading.operand(context, 2, "R")
    reading.require(
        len(data.shape) == len(weights.shape) == len(recurrence.shape) == 3
        and data.shape[2] == weights.shape[2]
        and weights.shape[1] == recurrence.shape[1]
        and weights.shape[0] == recurrence.shape[0] == len(_directions(context)),
        context,
        f"X {data}, W {weights} and R {recurrence} do not fit",
    )
    directions, hidden = weights.shape[0], recurrence.shape[2]
    if reading.integer(context, "layout", 0):
        batch, time, _ = data.shape
        sequence, state = (batch, time, directions, hidden), (batch, directions, hidden)
    else:
        time, batch, _ = data.shape
        sequence, state = (time, directions, batch, hidden), (directions, batch, hidden)
    states = [reading.like(data, state)] * _STATE_COUNT[context.node.operator]
    return [reading.like(data, sequence), *states][: len(context.node.outputs)]


def _activations(context: OperatorContext) -> dict[str, Attribute]:
    """Return all activations with their parameters; ONNX lists only those that are taken."""
    directions = len(_directions(context))
    defaults = _ACTIVATIONS[context.node.operator]
    names = reading.texts(context, "activations", defaults * directions)
    names = names[: len(defaults) * directions]
    alphas = iter(reading.numbers(context, "activation_alpha"))
    betas = iter(reading.numbers(context, "activation_beta"))
    return {
        "activations": names,
        "activation_alpha": tuple(
            [
                next(alphas, _ALPHA[name.lower()]) if name.lower() in _ALPHA else 0.0
                for name in names
            ]
        ),
        "activation_beta": tuple(
            [next(betas, _BETA[name.lower()]) if name.lower() in _BETA else 0.0 for name in names]
        ),
    }


def _lower(context: OperatorContext) -> Lowered:
    operator = context.node.operator
    attributes: dict[str, Attribute] = {
        "layout": reading.integer(context, "layout", 0),
        "reverse": _directions(context),
        "clip": reading.number(context, "clip", math.inf),
        **_activations(context),
    }
    if operator == "GRU":
        attributes["linear_before_reset"] = reading.integer(context, "linear_before_reset", 0)
    if operator == "LSTM":
        attributes["input_forget"] = reading.integer(context, "input_forget", 0)
    positions = reading.data_positions(context, _OPERAND_COUNT[operator])
    return Lowered(operator, attributes, positions)


ENTRIES: tuple[OperatorEntry, ...] = tuple(
    [OperatorEntry(name, _infer, _lower) for name in ("RNN", "GRU", "LSTM")]
)
