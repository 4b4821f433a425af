"""Compute now what no request can change.

The loader has folded already; this folds what other passes made constant, and the dequantised
weights that the loader leaves for passes which compute with quantised ones.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from aegis_pipe.execution.folding import fold
from aegis_pipe.execution.graph import ExecutionGraph, OperatorNode
from aegis_pipe.execution.partial_evaluation import FOLDED_BYTES_MAX, is_deterministic
from aegis_pipe.execution.passes.rewriting import rewritten
from aegis_pipe.tensor import TensorId

name = "constant_folding"


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Replace operators on constants by their results, as long as these stay within 2 GiB."""
    constants = dict(graph.constants)
    room, kept = FOLDED_BYTES_MAX, []
    for node in graph.operators:
        # Nearly all read a request's data first.
        if (node.reads and node.reads[0] not in constants) or not _is_known(node, constants):
            kept.append(node)
            continue
        size = sum(graph.spec(tensor).size_bytes for tensor in filter(None, node.outputs))
        if size <= room and (values := _evaluate(node, constants)) is not None:
            constants |= values
            room -= size
        else:
            kept.append(node)
    return rewritten(graph, kept, constants=constants)


def _is_known(node: OperatorNode, constants: Container[TensorId]) -> bool:
    return is_deterministic(node) and all(tensor in constants for tensor in node.reads)


def _evaluate(
    node: OperatorNode, constants: dict[TensorId, np.ndarray]
) -> dict[TensorId, np.ndarray] | None:
    results = fold(node, [constants[tensor] if tensor else None for tensor in node.inputs])
    if results is None:
        return None
    return {t: value for t, value in zip(node.outputs, results, strict=True) if t}
