"""GELU and its approximation by tanh (Hendrycks and Gimpel 2016), spelled out, as one operator."""

from __future__ import annotations

import math

from aegis_pipe.execution.graph import ExecutionGraph, OperatorNode
from aegis_pipe.execution.passes.arithmetic import Formula, find
from aegis_pipe.execution.passes.matching import CONTRIBUTED
from aegis_pipe.execution.passes.rewriting import GraphEdit

name = "fuse_gelu"

_HALF_X_PLUS_HALF_XU = {(1, 0): 0.5, (1, 1): 0.5}
_SCALE = math.sqrt(2 / math.pi)
_FORMULAS = {
    "Erf": ("Gelu", Formula({(1, 0): math.sqrt(0.5)}, _HALF_X_PLUS_HALF_XU)),
    "Tanh": (
        "FastGelu",
        Formula({(1, 0): _SCALE, (3, 0): _SCALE * 0.044715}, _HALF_X_PLUS_HALF_XU),
    ),
}


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Replace every such formula."""
    if _FORMULAS.keys().isdisjoint(graph.kinds):
        return graph
    edit = GraphEdit(graph)
    for node in graph.operators:
        operator, formula = _FORMULAS.get(node.qualified_operator, (None, None))
        match = find(graph, node, formula) if formula else None
        if operator is None or match is None or edit.is_replaced(*match.nodes):
            continue
        last = match.nodes[-1]
        fused = OperatorNode(last.name, operator, CONTRIBUTED, 1, {}, (match.x,), last.outputs)
        edit.replace(match.nodes, fused)
    return edit.result()
