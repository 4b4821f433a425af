"""Activations applied in place to a result that is still in cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

InPlace = Callable[[np.ndarray], None]

_PART_ELEMENTS = 16 << 10
"""Activations that need a temporary work on parts of this size."""


def _in_parts(x: np.ndarray, function: InPlace) -> None:
    if x.size <= _PART_ELEMENTS:
        function(x)
    elif x.shape[0] == 1:
        _in_parts(x[0], function)
    else:
        step = max(1, _PART_ELEMENTS // (x.size // x.shape[0]))
        for first in range(0, x.shape[0], step):
            _in_parts(x[first : first + step], function)


def relu(x: np.ndarray) -> None:
    """Replace negatives by zero."""
    np.maximum(x, 0, out=x)


def tanh(x: np.ndarray) -> None:
    """Hyperbolic tangent."""
    np.tanh(x, out=x)


def sigmoid(x: np.ndarray) -> None:
    """Logistic function as (1 + tanh(x / 2)) / 2, which can not overflow."""
    np.multiply(x, 0.5, out=x)
    np.tanh(x, out=x)
    np.add(x, 1, out=x)
    np.multiply(x, 0.5, out=x)


def softsign(x: np.ndarray) -> None:
    """Divide by 1 + |x|."""
    _in_parts(x, lambda part: np.divide(part, np.abs(part) + 1, out=part))


def softplus(x: np.ndarray) -> None:
    """Logarithm of 1 + exp(x)."""
    np.logaddexp(x, 0, out=x)


def _leaky(x: np.ndarray, alpha: float) -> None:
    np.multiply(x, alpha, out=x, where=x < 0)


def _elu(x: np.ndarray, alpha: float) -> None:
    negative = x < 0
    np.expm1(x, out=x, where=negative)
    np.multiply(x, alpha, out=x, where=negative)


def _clip(x: np.ndarray, low: float, high: float) -> None:
    np.clip(x, low, high, out=x)


def _hard_sigmoid(x: np.ndarray, alpha: float, beta: float) -> None:
    np.multiply(x, alpha, out=x)
    np.add(x, beta, out=x)
    np.clip(x, 0, 1, out=x)


def _affine(x: np.ndarray, alpha: float, beta: float) -> None:
    np.multiply(x, alpha, out=x)
    np.add(x, beta, out=x)


def _thresholded_relu(x: np.ndarray, alpha: float) -> None:
    np.multiply(x, 0, out=x, where=x <= alpha)


def _scaled_tanh(x: np.ndarray, alpha: float, beta: float) -> None:
    np.multiply(x, beta, out=x)
    np.tanh(x, out=x)
    np.multiply(x, alpha, out=x)


_PLAIN: dict[str, InPlace] = {
    "relu": relu,
    "tanh": tanh,
    "sigmoid": sigmoid,
    "softsign": softsign,
    "softplus": softplus,
}
_WITH_PARAMETERS: dict[str, tuple[Callable[..., None], tuple[float, ...]]] = {
    "leakyrelu": (_leaky, (0.01,)),
    "elu": (_elu, (1.0,)),
    "thresholdedrelu": (_thresholded_relu, (1.0,)),
    "hardsigmoid": (_hard_sigmoid, (0.2, 0.5)),
    "scaledtanh": (_scaled_tanh, (1.0, 1.0)),
    "affine": (_affine, (1.0, 0.0)),
    "clip": (_clip, (-math.inf, math.inf)),
}


def parameter_count(name: str) -> int:
    """Return how many parameters an activation takes."""
    return len(_WITH_PARAMETERS.get(name.lower(), (None, ()))[1])


def known(name: str) -> bool:
    """Return whether there is such an activation; "" stands for none."""
    return not name or name.lower() in _PLAIN or name.lower() in _WITH_PARAMETERS


def activation(name: str, parameters: Sequence[float] = ()) -> InPlace | None:
    """Return the function, given ONNX's name (any case); None for "".

    Parameters left out have the defaults of the operator with that name.
    """
    if not name:
        return None
    plain = _PLAIN.get(name.lower())
    if plain:
        return plain
    function, defaults = _WITH_PARAMETERS[name.lower()]
    values = (*parameters, *defaults[len(parameters) :])[: len(defaults)]

    def apply(x: np.ndarray) -> None:
        _in_parts(x, lambda part: function(part, *values))

    return apply
