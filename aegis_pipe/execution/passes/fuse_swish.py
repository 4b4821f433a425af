"""Functions of the form x * gate(x), spelled out, as one operator.

SiLU and its like, x * sigmoid(alpha x), become Swish; x * clip(x / 6 + 1/2, 0, 1), also with the 6
elsewhere, becomes HardSwish (Howard et al. 2019).
"""

from __future__ import annotations

import math

import numpy as np

from aegis_pipe.execution.graph import ExecutionGraph, OperatorNode
from aegis_pipe.execution.passes.arithmetic import Formula, find, is_same
from aegis_pipe.execution.passes.matching import EPSILON, attribute, clip_bounds
from aegis_pipe.execution.passes.rewriting import GraphEdit

name = "fuse_swish"

_SWISH_OPSET = 24
_HARD_SWISH_OPSET = 14


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Replace every such formula."""
    if graph.kinds.isdisjoint(("Sigmoid", "HardSigmoid", "Clip")):
        return graph
    edit = GraphEdit(graph)
    for node in graph.operators:
        formula = _formula(graph, node)
        match = find(graph, node, formula) if formula else None
        if match is None or edit.is_replaced(*match.nodes):
            continue
        is_hard = node.operator != "Sigmoid"
        last = match.nodes[-1]
        fused = OperatorNode(
            last.name,
            "HardSwish" if is_hard else "Swish",
            "",
            _HARD_SWISH_OPSET if is_hard else _SWISH_OPSET,
            {} if is_hard else {"alpha": match.inner[1, 0]},
            (match.x,),
            last.outputs,
        )
        edit.replace(match.nodes, fused)
    return edit.result()


def _formula(graph: ExecutionGraph, gate: OperatorNode) -> Formula | None:
    """Return the formula in which this operator would be the gate."""
    match gate.qualified_operator:
        case "Sigmoid":
            return Formula(None, {(1, 1): 1.0})
        case "HardSigmoid":
            return _by_hard_sigmoid(graph, gate)
        case "Clip":
            return _by_clip(graph, gate)
    return None


def _by_hard_sigmoid(graph: ExecutionGraph, gate: OperatorNode) -> Formula | None:
    dtype = graph.spec(gate.inputs[0]).dtype
    given = {(1, 0): attribute(gate, "alpha", 0.2), (0, 0): attribute(gate, "beta", 0.5)}
    # Attributes are single precision whatever the tensors are.
    wanted = {(1, 0): float(np.float32(1 / 6)), (0, 0): 0.5}
    is_hard_swish = dtype in EPSILON and is_same(given, wanted, np.dtype(np.float32))
    return Formula({(1, 0): 1.0}, {(1, 1): 1.0}) if is_hard_swish else None


def _by_clip(graph: ExecutionGraph, gate: OperatorNode) -> Formula | None:
    low, high = clip_bounds(graph, gate) or (0.0, 0.0)
    if low != 0 or not 0 < high < math.inf:
        return None
    return Formula({(1, 0): high / 6, (0, 0): high / 2}, {(1, 1): 1 / high})
