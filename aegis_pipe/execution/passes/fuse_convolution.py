"""Conv, then adding another tensor, then an activation: one `com.microsoft.FusedConv`.

The kernel finishes each block of the result while it is in cache, in the order of the operators it
replaces, so that the result has the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from aegis_pipe.execution.graph import NO_TENSOR, ExecutionGraph, GraphAttribute, OperatorNode
from aegis_pipe.execution.passes.matching import (
    CONTRIBUTED,
    EPSILON,
    attribute,
    only_reader,
    other_operand,
    scalar,
)
from aegis_pipe.execution.passes.rewriting import rewritten
from aegis_pipe.tensor import TensorId

name = "fuse_convolution"

_Parameters = tuple[float, ...]


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Replace every such chain; of two convolutions that are added, the later one adds."""
    replaced: dict[str, OperatorNode | None] = {}
    for node in reversed(graph.operators):
        if not _is_fusible(graph, node):
            continue
        addend, adder = _addition(graph, node, replaced)
        activation, last = _activation(graph, adder or node, replaced)
        if last is node:
            continue
        replaced |= {node.name: None, last.name: _fused(node, addend, activation, last)}
        if adder is not None and adder is not last:
            replaced[adder.name] = None
    kept = [replaced.get(node.name, node) for node in graph.operators]
    return rewritten(graph, [node for node in kept if node])


def _is_fusible(graph: ExecutionGraph, node: OperatorNode) -> bool:
    if node.qualified_operator != "Conv":
        return False
    specs = [graph.spec(tensor) for tensor in node.inputs if tensor]
    pads = node.attributes.get("pads", ())
    assert isinstance(pads, tuple), f"{node.name}: pads are {pads!r}"
    return (
        specs[0].dtype in EPSILON
        and len({spec.dtype for spec in specs}) == 1
        and len(specs[0].shape) > 2
        and min((float(pad) for pad in pads), default=0) >= 0
    )


def _addition(
    graph: ExecutionGraph, node: OperatorNode, replaced: Mapping[str, object]
) -> tuple[TensorId, OperatorNode | None]:
    """Return what is added to the node's result, elementwise, and by which operator."""
    result = node.outputs[0]
    reader = only_reader(graph, result)
    if reader is None or reader.name in replaced or len(reader.inputs) != 2:
        return NO_TENSOR, None
    other = other_operand(reader, result)
    if reader.qualified_operator not in ("Add", "Sum") or graph.spec(other) != graph.spec(result):
        return NO_TENSOR, None
    return other, reader


def _activation(
    graph: ExecutionGraph, node: OperatorNode, replaced: Mapping[str, object]
) -> tuple[dict[str, GraphAttribute], OperatorNode]:
    """Return the attributes of the activation after `node`, and the last operator covered."""
    reader = only_reader(graph, node.outputs[0])
    if reader is None or reader.domain or reader.name in replaced:
        return {}, node
    parameters_of = _ACTIVATIONS.get(reader.operator)
    parameters = parameters_of(graph, reader) if parameters_of else None
    if parameters is None or reader.inputs[0] != node.outputs[0]:
        return {}, node
    attributes: dict[str, GraphAttribute] = {"activation": reader.operator}
    if parameters:
        attributes["activation_params"] = parameters
    return attributes, reader


def _no_parameters(graph: ExecutionGraph, node: OperatorNode) -> _Parameters | None:
    return ()


def _clip_bounds(graph: ExecutionGraph, node: OperatorNode) -> _Parameters | None:
    if node.opset < 11:
        return attribute(node, "min", -math.inf), attribute(node, "max", math.inf)
    given = (*node.inputs[1:], NO_TENSOR, NO_TENSOR)
    low = scalar(graph, given[0]) if given[0] else -math.inf
    high = scalar(graph, given[1]) if given[1] else math.inf
    return None if low is None or high is None else (low, high)


_ACTIVATIONS: Mapping[str, Callable[[ExecutionGraph, OperatorNode], _Parameters | None]] = {
    "Relu": _no_parameters,
    "Clip": _clip_bounds,
}
"""Their parameters, if known. Only what every convolution kernel does on the way out: another one
would keep the faster kernels from taking the convolution."""


def _fused(
    node: OperatorNode,
    addend: TensorId,
    activation: Mapping[str, GraphAttribute],
    last: OperatorNode,
) -> OperatorNode:
    inputs = (*node.inputs, NO_TENSOR)[:3]
    return OperatorNode(
        name=last.name,
        operator="FusedConv",
        domain=CONTRIBUTED,
        opset=1,
        attributes={**node.attributes, **activation},
        inputs=(*inputs, addend) if addend else node.inputs,
        outputs=last.outputs,
    )
