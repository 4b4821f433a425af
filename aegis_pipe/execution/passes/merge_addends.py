"""Constants that are added one after the other are added once: (x + a) + b is x + (a + b).

As where types and positions of tokens are known at load, which leaves one sum of an encoder's
embedding. Rounded once instead of twice.
"""

from __future__ import annotations

import numpy as np

from aegis_pipe.execution.graph import ExecutionGraph, OperatorNode
from aegis_pipe.execution.passes.matching import EPSILON, only_reader, other_operand, producer
from aegis_pipe.execution.passes.rewriting import GraphEdit
from aegis_pipe.tensor import TensorId

name = "merge_addends"


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Merge pairs until there are none."""
    if "Add" not in graph.kinds:
        return graph
    while True:
        edit = GraphEdit(graph)
        for node in graph.operators:
            _merge(graph, edit, node)
        merged = edit.result()
        if merged is graph:
            return graph
        graph = merged


def _merge(graph: ExecutionGraph, edit: GraphEdit, node: OperatorNode) -> None:
    addend = _addend(graph, node)
    if addend is None:
        return
    total = other_operand(node, addend)
    before = producer(graph, total)
    first = None if before is None else _addend(graph, before)
    if before is None or first is None or only_reader(graph, total) is not node:
        return
    if edit.is_replaced(before, node):
        return
    arrays = graph.constants[first], graph.constants[addend]
    with np.errstate(over="ignore", invalid="ignore"):
        merged = np.add(*arrays)
    # Neither more to keep, nor an infinity that the sums one by one may not reach.
    if merged.size > max(array.size for array in arrays) or not np.isfinite(merged).all():
        return
    inputs = (other_operand(before, first), edit.constant(f"{node.name}.addends", merged))
    edit.replace(
        (before, node),
        OperatorNode(node.name, "Add", "", node.opset, {}, inputs, node.outputs),
    )


def _addend(graph: ExecutionGraph, node: OperatorNode) -> TensorId | None:
    """Return the one operand of a sum of floats that is constant."""
    if node.qualified_operator != "Add" or node.opset < 7:
        return None
    if graph.spec(node.outputs[0]).dtype not in EPSILON:
        return None
    known = [tensor for tensor in node.inputs if tensor in graph.constants]
    return known[0] if len(known) == 1 else None
