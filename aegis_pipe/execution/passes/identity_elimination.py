"""Leave out operators whose result is their first operand, bit for bit."""

from __future__ import annotations

from aegis_pipe.execution.graph import ExecutionGraph, OperatorNode
from aegis_pipe.execution.passes.rewriting import final_name, rewritten
from aegis_pipe.tensor import TensorId

name = "identity_elimination"

_RESHAPING = frozenset({"Cast", "CastLike", "Expand", "Flatten", "Reshape", "Squeeze", "Unsqueeze"})
"""Identities exactly when dtype and shape stay the same."""

_JOINING = frozenset({"Concat", "Max", "Mean", "Min", "Sum"})
"""Identities of a single operand."""

_CANDIDATES = _RESHAPING | _JOINING | {"Identity", "Dropout", "Transpose"}


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Drop identities; readers of the result read the operand instead.

    Where the result is an output of the graph, its writer takes over the output's name, or the
    identity stays if there is no writer (an input or a constant that is also an output).
    """
    if graph.kinds.isdisjoint(_CANDIDATES):
        return graph
    renamed: dict[TensorId, TensorId] = {}
    written = {tensor for node in graph.operators for tensor in node.outputs}
    kept = []
    for node in graph.operators:
        if not is_identity(graph, node):
            kept.append(node)
            continue
        source, result = final_name(node.inputs[0], renamed), node.outputs[0]
        if result not in graph.outputs:
            renamed[result] = source
        elif source in written and source not in graph.outputs:
            renamed[source] = result
        else:
            kept.append(node)
    return rewritten(graph, kept, renamed=renamed)


def is_identity(graph: ExecutionGraph, node: OperatorNode) -> bool:
    """Return whether the node's only wanted result equals its first operand."""
    if node.operator not in _CANDIDATES or node.domain or not node.inputs:
        return False
    if any(node.outputs[1:]) or not node.outputs[0]:
        return False
    if graph.spec(node.inputs[0]) != graph.spec(node.outputs[0]):
        return False
    match node.operator:
        case "Identity":
            return True
        case "Dropout":
            return _is_inference(graph, node)
        case "Transpose":
            rank = len(graph.spec(node.inputs[0]).shape)
            return node.attributes.get("perm", tuple(range(rank))[::-1]) == tuple(range(rank))
    return node.operator in _RESHAPING or (node.operator in _JOINING and len(node.inputs) == 1)


def _is_inference(graph: ExecutionGraph, node: OperatorNode) -> bool:
    if len(node.inputs) < 3:
        return True
    mode = graph.constants.get(node.inputs[2])
    return mode is not None and not bool(mode.item())
