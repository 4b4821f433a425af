"""Operators that draw numbers.

Same graph, same bits: a node without a seed takes one from its name, and every request draws the
same numbers.

Canonical form; `seed` uint32:

    RandomNormal()      `mean`, `scale`          RandomUniform()   `low`, `high`
        of the output's shape and dtype; the `Like` operators become these
    Bernoulli(X)        1 with probability X, else 0
    Multinomial(X[batch, classes])      classes drawn by unnormalised log-probabilities
"""

from __future__ import annotations

import math
import zlib

import numpy as np

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.element_types import FLOAT32, element_type
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.tensor import TensorSpec

_INT32 = np.dtype(np.int32)


def seed_of(context: OperatorContext) -> int:
    """Return the node's seed, or one that its name alone decides."""
    seed = context.node.attributes.get("seed")
    if isinstance(seed, int | float) and math.isfinite(seed):
        return int(seed) % (1 << 32)
    return zlib.crc32(context.node.name.encode())


def _dtype(context: OperatorContext, default: np.dtype) -> np.dtype:
    return element_type(context, "dtype") if "dtype" in context.node.attributes else default


def _infer_shaped(context: OperatorContext) -> list[TensorSpec]:
    return [TensorSpec(_dtype(context, FLOAT32), reading.integers(context, "shape", ()))]


def _infer_like(context: OperatorContext) -> list[TensorSpec]:
    like = reading.operand(context, 0, "input")
    return [TensorSpec(_dtype(context, like.dtype), like.shape)]


def _infer_multinomial(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "input")
    reading.require(len(data.shape) == 2, context, f"{data} is not [batch, classes]")
    shape = (data.shape[0], reading.integer(context, "sample_size", 1))
    return [TensorSpec(_dtype(context, _INT32), shape)]


def _lower_normal(context: OperatorContext) -> Lowered:
    attributes = {
        "seed": seed_of(context),
        "mean": reading.number(context, "mean", 0.0),
        "scale": reading.number(context, "scale", 1.0),
    }
    return Lowered("RandomNormal", attributes, ())


def _lower_uniform(context: OperatorContext) -> Lowered:
    attributes = {
        "seed": seed_of(context),
        "low": reading.number(context, "low", 0.0),
        "high": reading.number(context, "high", 1.0),
    }
    return Lowered("RandomUniform", attributes, ())


def _lower_drawn(context: OperatorContext) -> Lowered:
    return Lowered(context.node.operator, {"seed": seed_of(context)}, (0,))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("RandomNormal", _infer_shaped, _lower_normal),
    OperatorEntry("RandomNormalLike", _infer_like, _lower_normal),
    OperatorEntry("RandomUniform", _infer_shaped, _lower_uniform),
    OperatorEntry("RandomUniformLike", _infer_like, _lower_uniform),
    OperatorEntry("Bernoulli", _infer_like, _lower_drawn),
    OperatorEntry("Multinomial", _infer_multinomial, _lower_drawn),
)
