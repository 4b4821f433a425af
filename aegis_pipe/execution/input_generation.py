"""Seeded inputs that suit a model: its graph tells what integers it can take.

floats      normal, mean 0, deviation 1
indices     an integer that reaches the index operand of a Gather (or the like), directly or
            through operators that only move values, is uniform over the rows it selects from
8-bit       otherwise uniform over their range: pixels, quantised values
integers    otherwise 0 or 1: masks, flags, segment numbers
bools       either
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from aegis_pipe.execution.graph import ExecutionGraph, OperatorNode
from aegis_pipe.tensor import TensorId, TensorSpec

_MOVING = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Identity", "Pad", "Reshape", "Slice", "Split"}
    | {"Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
"""Results have the values of the first operand (of all, for Concat), and perhaps zeros."""

_INDEXED = {
    "Gather": ((1, 0),),
    "GatherElements": ((1, 0),),
    "com.microsoft.EmbedLayerNormalization": ((0, 2), (1, 4)),
}
"""(index operand, operand it selects from along `axis`) by operator."""


def generate_inputs(graph: ExecutionGraph, seed: int) -> dict[str, np.ndarray]:
    """Return one array per input; the same for the same graph and seed."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return {
        tensor: _draw(generator, graph.spec(tensor), _index_limit(graph, tensor))
        for tensor in graph.inputs
    }


def _draw(generator: np.random.Generator, spec: TensorSpec, limit: int | None) -> np.ndarray:
    kind = spec.dtype.kind
    if kind == "b":
        return generator.integers(0, 2, spec.shape).astype(spec.dtype)
    if kind == "c":
        real, imaginary = generator.standard_normal((2, *spec.shape))
        return np.asarray(real + 1j * imaginary).astype(spec.dtype)
    if not _is_integer(spec.dtype):
        return np.asarray(generator.standard_normal(spec.shape)).astype(spec.dtype)
    low, high = 0, limit if limit is not None else 2
    if limit is None and spec.dtype.itemsize == 1:
        bits = 8 if spec.dtype.kind in "iu" else int(spec.dtype.name.removeprefix("u")[3:])
        low = 0 if spec.dtype.name.startswith("u") else -(1 << (bits - 1))
        high = low + (1 << bits)
    return np.asarray(generator.integers(low, high, spec.shape)).astype(spec.dtype)


def _is_integer(dtype: np.dtype) -> bool:
    return dtype.kind in "iu" or dtype.name in ("int2", "int4", "uint2", "uint4")


def _index_limit(graph: ExecutionGraph, tensor: TensorId) -> int | None:
    """Return the least number of rows that the tensor's values select from."""
    limits: list[int] = []
    seen = {tensor}
    waiting = [tensor]
    while waiting:
        current = waiting.pop()
        for index in graph.consumers.get(current, ()):
            node = graph.operators[index]
            limits.extend(_limits(graph, node, current))
            for result in _moved(node, current):
                if result not in seen:
                    seen.add(result)
                    waiting.append(result)
    return max(1, min(limits)) if limits else None


def _moved(node: OperatorNode, operand: TensorId) -> Iterator[TensorId]:
    """Yield the results that have the operand's values."""
    reads = node.inputs if node.operator == "Concat" else node.inputs[:1]
    # What is gathered from has its values in the result, too.
    if operand in reads and not node.domain and node.operator in {*_MOVING, "Gather"}:
        yield from filter(None, node.outputs)


def _limits(graph: ExecutionGraph, node: OperatorNode, operand: TensorId) -> Iterator[int]:
    for index_position, source_position in _INDEXED.get(node.qualified_operator, ()):
        if index_position < len(node.inputs) and node.inputs[index_position] == operand:
            shape = graph.spec(node.inputs[source_position]).shape
            axis = node.attributes.get("axis", 0)
            assert isinstance(axis, int)
            yield shape[axis]
    if node.qualified_operator == "OneHot" and node.inputs[0] == operand:
        depth = graph.constants.get(node.inputs[1])
        if depth is not None:
            yield int(depth.reshape(-1)[0])
