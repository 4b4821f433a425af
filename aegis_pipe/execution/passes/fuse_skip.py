"""A sum and its layer or RMS normalisation as one operator, `com.microsoft.Skip...Normalization`.

Where the sum itself is needed further on, as in a transformer that normalises first, it is the
operator's fourth result.
"""

from __future__ import annotations

from aegis_pipe.execution.graph import NO_TENSOR, ExecutionGraph, OperatorNode
from aegis_pipe.execution.passes.matching import CONTRIBUTED, EPSILON, attribute, producer
from aegis_pipe.execution.passes.rewriting import GraphEdit

name = "fuse_skip"

_FUSED = {
    "LayerNormalization": "SkipLayerNormalization",
    "RMSNormalization": "SkipSimplifiedLayerNormalization",
    "SimplifiedLayerNormalization": "SkipSimplifiedLayerNormalization",
}


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Replace every such pair."""
    if graph.kinds.isdisjoint(_FUSED):
        return graph
    edit = GraphEdit(graph)
    for node in graph.operators:
        operator = None if node.domain else _FUSED.get(node.operator)
        adder = producer(graph, node.inputs[0]) if operator else None
        if operator and adder and _is_fusible(graph, node, adder) and not edit.is_replaced(adder):
            edit.replace((adder, node), _fused(graph, operator, adder, node))
    return edit.result()


def _is_fusible(graph: ExecutionGraph, node: OperatorNode, adder: OperatorNode) -> bool:
    if adder.qualified_operator not in ("Add", "Sum") or len(adder.inputs) != 2:
        return False
    data, gamma = graph.spec(adder.outputs[0]), graph.spec(node.inputs[1])
    rank = len(data.shape)
    return (
        data.dtype in EPSILON
        and rank in (2, 3)
        and attribute(node, "axis", -1) in (-1, rank - 1)
        and all(graph.spec(tensor) == data for tensor in adder.inputs)
        and all(graph.spec(tensor) == gamma for tensor in node.inputs[1:] if tensor)
        and (gamma.dtype, gamma.shape) == (data.dtype, data.shape[-1:])
        and not any(node.outputs[1:])
    )


def _fused(
    graph: ExecutionGraph, operator: str, adder: OperatorNode, node: OperatorNode
) -> OperatorNode:
    total = adder.outputs[0]
    is_needed = len(graph.consumers.get(total, ())) > 1 or total in graph.outputs
    further = (NO_TENSOR, NO_TENSOR, total) if is_needed else ()
    return OperatorNode(
        node.name,
        operator,
        CONTRIBUTED,
        1,
        {"epsilon": attribute(node, "epsilon", 1e-5)},
        (*adder.inputs, *node.inputs[1:]),
        (*node.outputs[:1], *further),
    )
