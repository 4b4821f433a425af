"""A convolution of bytes, then the sum with a residual: one `aegis.QLinearConvAdd`.

For devices whose convolutions add it on the way out. The bits are those of the two operators: the
convolution's result is rounded to its levels before it is added. Of two convolutions that are added
the later one takes the other's result.
"""

from __future__ import annotations

import numpy as np

from aegis_pipe.execution.graph import NO_TENSOR, ExecutionGraph, GraphAttribute, OperatorNode
from aegis_pipe.execution.passes.fuse_quantised import OWN
from aegis_pipe.execution.passes.matching import only_reader, producer
from aegis_pipe.execution.passes.rewriting import GraphEdit
from aegis_pipe.tensor import TensorId

name = "fuse_quantised_residual"

_CONVOLUTION, _SUM = "com.microsoft.QLinearConv", "com.microsoft.QLinearAdd"
_RANK = 4
_WEIGHTS, _WEIGHTS_ZERO, _SCALE, _ZERO, _OPERANDS = 3, 5, 6, 7, 9
"""Positions of a convolution's operands, and how many there are."""


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Replace every such pair."""
    if _SUM not in graph.kinds:
        return graph
    edit = GraphEdit(graph)
    for node in graph.operators:
        if node.qualified_operator == _SUM:
            _fuse(graph, edit, node)
    return edit.result()


def _fuse(graph: ExecutionGraph, edit: GraphEdit, node: OperatorNode) -> None:
    operands = (*node.inputs, *[NO_TENSOR] * (8 - len(node.inputs)))
    quantised = (operands[:3], operands[3:6])
    order = {each.name: number for number, each in enumerate(graph.operators)}
    found = []
    for own, other in (quantised, quantised[::-1]):
        convolution = producer(graph, own[0])
        if convolution is None or not _is_for_it(graph, node, convolution, own):
            continue
        if graph.spec(other[0]).shape == graph.spec(own[0]).shape:
            found.append((order[convolution.name], convolution, other))
    if not found:
        return
    _, convolution, residual = max(found, key=lambda each: each[0])
    if edit.is_replaced(convolution, node):
        return
    given = (*convolution.inputs, *[NO_TENSOR] * (_OPERANDS - len(convolution.inputs)))
    attributes: dict[str, GraphAttribute] = dict(convolution.attributes)
    attributes["sum_levels"] = node.attributes.get("levels", ())
    inputs = (*given, *residual, *operands[6:])
    fused = OperatorNode(node.name, "QLinearConvAdd", OWN, 1, attributes, inputs, node.outputs)
    edit.replace((convolution, node), fused)


def _is_for_it(
    graph: ExecutionGraph,
    node: OperatorNode,
    convolution: OperatorNode,
    own: tuple[TensorId, ...],
) -> bool:
    """Return whether a convolution's result goes to the sum alone, as the sum takes it."""
    tensor, scale, zero = own
    if convolution.qualified_operator != _CONVOLUTION or only_reader(graph, tensor) is not node:
        return False
    known = (convolution.inputs[_WEIGHTS], convolution.inputs[_WEIGHTS_ZERO])
    return (
        len(graph.spec(tensor).shape) == _RANK
        and bool(convolution.attributes.get("channels_last"))
        and convolution.attributes.get("group", 1) == 1
        and all(each in graph.constants for each in known)
        and graph.spec(tensor).dtype == graph.spec(node.outputs[0]).dtype
        and _value(graph, convolution.inputs[_SCALE]) == _value(graph, scale) is not None
        and _value(graph, convolution.inputs[_ZERO]) == _value(graph, zero) is not None
    )


def _value(graph: ExecutionGraph, tensor: TensorId) -> float | None:
    """Return a number that is known; a zero point that is left out is 0."""
    if not tensor:
        return 0.0
    array: np.ndarray | None = graph.constants.get(tensor)
    return None if array is None or array.size != 1 else float(array.reshape(()))
