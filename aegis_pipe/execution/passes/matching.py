"""What passes share to recognise patterns: neighbours, known numbers, values per channel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from aegis_pipe.execution.graph import NO_TENSOR, ExecutionGraph, OperatorNode
from aegis_pipe.tensor import TensorId

CONTRIBUTED = "com.microsoft"
"""Domain of the fused operators; they are all of its version 1."""

EPSILON = {
    np.dtype(np.float64): 2.0**-52,
    np.dtype(np.float32): 2.0**-23,
    np.dtype(np.float16): 2.0**-10,
    np.dtype(ml_dtypes.bfloat16): 2.0**-7,
}
"""Distance from 1 to the next number, for every dtype whose arithmetic may be regrouped."""


def producer(graph: ExecutionGraph, tensor: TensorId) -> OperatorNode | None:
    """Return the operator that writes a tensor; None for inputs, constants and left-out ones."""
    index = graph.producers.get(tensor)
    return None if index is None else graph.operators[index]


def only_reader(graph: ExecutionGraph, tensor: TensorId) -> OperatorNode | None:
    """Return the one operator that reads a tensor, once, if nothing else needs it."""
    consumers = graph.consumers.get(tensor, ())
    if len(consumers) != 1 or tensor in graph.outputs:
        return None
    reader = graph.operators[consumers[0]]
    return reader if reader.inputs.count(tensor) == 1 else None


def other_operand(node: OperatorNode, tensor: TensorId) -> TensorId:
    """Return the operand of a binary operator that is not `tensor` (itself, if both are)."""
    first, second = node.inputs
    return second if first == tensor else first


def scalar(graph: ExecutionGraph, tensor: TensorId) -> float | None:
    """Return the number a constant of one element holds; None for every other tensor."""
    value = graph.constants.get(tensor)
    return None if value is None or value.size != 1 else float(value.reshape(()))


def is_close(value: float, wanted: float, dtype: np.dtype) -> bool:
    """Return whether a constant of this dtype means `wanted`, which may not be representable."""
    return abs(value - wanted) <= 4 * EPSILON[dtype] * abs(wanted)


def per_channel(array: np.ndarray, shape: Sequence[int], axis: int = 1) -> np.ndarray | None:
    """Return float64[channels] if an operand that broadcasts to `shape` varies by channel only."""
    if array.ndim > len(shape):
        return None
    aligned = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    channels = shape[axis]
    if aligned.size not in (1, channels) or aligned.shape[axis] != aligned.size:
        return None
    values = aligned.reshape(-1).astype(np.float64)
    return values if values.size == channels else np.broadcast_to(values, (channels,))


def attribute(node: OperatorNode, name: str, default: float) -> float:
    """Return a number among a node's attributes."""
    value = node.attributes.get(name, default)
    assert isinstance(value, int | float), f"{node.name}: {name} is {value!r}"
    return value


def clip_bounds(graph: ExecutionGraph, node: OperatorNode) -> tuple[float, float] | None:
    """Return the bounds of a Clip, infinite where left out; None if they are not known."""
    if node.opset < 11:
        return attribute(node, "min", -math.inf), attribute(node, "max", math.inf)
    given = (*node.inputs[1:], NO_TENSOR, NO_TENSOR)
    low = scalar(graph, given[0]) if given[0] else -math.inf
    high = scalar(graph, given[1]) if given[1] else math.inf
    return None if low is None or high is None else (low, high)
