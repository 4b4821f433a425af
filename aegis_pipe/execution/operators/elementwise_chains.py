"""Elementwise operators that run one after the other, tile by tile; made by our own pass.

aegis.ElementwiseChain(inputs...)    attributes: see `aegis_pipe.device.elementwise_chains`
"""

from __future__ import annotations

import numpy as np

from aegis_pipe.device.elementwise_chains import CHAIN
from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.elementwise import broadcast_shape
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec


def _infer(context: OperatorContext) -> list[TensorSpec]:
    specs = [reading.operand(context, i, f"#{i}") for i in range(len(context.inputs))]
    return [
        TensorSpec(
            np.dtype(reading.texts(context, "results", ())[-1]), broadcast_shape(context, specs)
        )
    ]


def _lower(context: OperatorContext) -> Lowered:
    attributes: dict[str, Attribute] = {"constants": ()}
    for name, value in context.node.attributes.items():
        if name in ("operators", "results"):
            attributes[name] = reading.texts(context, name, ())
        elif isinstance(value, bytes):
            attributes[name] = value.decode()
        elif isinstance(value, int | float | str | tuple):
            attributes[name] = value
    return Lowered(CHAIN, attributes, tuple(range(len(context.inputs))))


ENTRIES: tuple[OperatorEntry, ...] = (OperatorEntry(CHAIN, _infer, _lower),)
