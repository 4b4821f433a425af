"""Compute equal things once: operators with the same operands, constants with the same bytes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from aegis_pipe.execution.graph import ExecutionGraph, GraphAttribute, OperatorNode, Subgraph
from aegis_pipe.execution.partial_evaluation import is_deterministic
from aegis_pipe.execution.passes.rewriting import final_name, rename, rewritten
from aegis_pipe.tensor import TensorId

name = "common_subexpressions"

_COMPARED_BYTES = 8 << 10
"""Constants up to this size are compared at once."""
_SAMPLE_BYTES = 256
"""Bytes of a larger one that are looked at before all of them are."""


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Replace each repetition by the first of its kind; outputs of the graph stay written."""
    renamed = _equal_constants(graph)
    alike: dict[Hashable, list[OperatorNode]] = {}
    outputs = set(graph.outputs)
    kept = []
    for node in graph.operators:
        renamed_node = rename(node, renamed) if renamed else node
        # Most operators are the only ones of their kind with their operands.
        others = alike.setdefault((node.operator, renamed_node.inputs), [])
        earlier = _equal_one(renamed_node, others) if is_deterministic(node) else None
        if earlier is None:
            others.append(renamed_node)
        if earlier is None or not outputs.isdisjoint(node.outputs):
            kept.append(renamed_node)
            continue
        pairs = zip(node.outputs, earlier.outputs, strict=True)
        renamed |= {later: final_name(one, renamed) for later, one in pairs if later}
    return rewritten(graph, kept)


def _equal_one(node: OperatorNode, others: Sequence[OperatorNode]) -> OperatorNode | None:
    """Return the first of the others that computes what `node` does."""
    if not others:
        return None
    key = _key(node)
    return next((other for other in others if _key(other) == key), None)


def _equal_constants(graph: ExecutionGraph) -> dict[TensorId, TensorId]:
    """Compare bytes where dtype, shape and a sample agree: most constants are read no further."""
    alike: dict[Hashable, list[TensorId]] = {}
    renamed = {}
    kinds = Counter((array.dtype, array.shape) for array in graph.constants.values())
    for tensor, array in graph.constants.items():
        if kinds[array.dtype, array.shape] == 1:
            continue
        is_whole = array.nbytes <= _COMPARED_BYTES
        sample = array.tobytes() if is_whole else _sample(array)
        earlier = alike.setdefault((array.dtype, array.shape, sample), [])
        if is_whole:
            same = next(iter(earlier), None)
        else:
            same = next((t for t in earlier if _is_same(graph.constants[t], array)), None)
        if same is None:
            earlier.append(tensor)
        elif tensor not in graph.outputs:
            renamed[tensor] = same
    return renamed


def _sample(array: np.ndarray) -> bytes:
    flat = _bytes(array)
    return flat[:: len(flat) // _SAMPLE_BYTES].tobytes()


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    return one is other or bool((_bytes(one) == _bytes(other)).all())


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _key(node: OperatorNode) -> Hashable:
    attributes = tuple(sorted((key, _attribute_key(v)) for key, v in node.attributes.items()))
    wanted = tuple([bool(tensor) for tensor in node.outputs])
    return node.qualified_operator, node.opset, attributes, node.inputs, wanted


def _attribute_key(value: GraphAttribute) -> tuple[str, str]:
    # `repr` tells 1 from 1.0 and 0.0 from -0.0, which compare equal.
    if isinstance(value, np.ndarray):
        return "array", repr(_array_key(value))
    if isinstance(value, Subgraph):
        return "body", repr((value.captures, hashlib.sha256(value.serialised).hexdigest()))
    return type(value).__name__, repr(value)


def _array_key(array: np.ndarray) -> Hashable:
    digest = hashlib.sha256(_bytes(array).data).digest()
    return array.dtype.name, array.shape, digest
