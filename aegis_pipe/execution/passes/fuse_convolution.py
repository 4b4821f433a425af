"""Conv, then adding another tensor, then an activation: one `com.microsoft.FusedConv`.

The kernel finishes each block of the result while it is in cache, in the order of the operators it
replaces, so that the result has the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from aegis_pipe.execution.graph import NO_TENSOR, ExecutionGraph, GraphAttribute, OperatorNode
from aegis_pipe.execution.passes.matching import (
    CONTRIBUTED,
    EPSILON,
    clip_bounds,
    only_reader,
    other_operand,
)
from aegis_pipe.execution.passes.rewriting import GraphEdit
from aegis_pipe.tensor import TensorId

name = "fuse_convolution"

_Parameters = tuple[float, ...]


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Replace every such chain; of two convolutions that are added, the later one adds."""
    if "Conv" not in graph.kinds:
        return graph
    return _fuse(graph, list(reversed(graph.operators)))


class FuseConvolution:
    """The same for devices that run branches side by side.

    Of two convolutions that are added, the one further from the inputs adds: the other one, which
    has less to wait for, may run beside what comes before it.
    """

    name = name

    def run(self, graph: ExecutionGraph) -> ExecutionGraph:
        """Replace every such chain."""
        if "Conv" not in graph.kinds:
            return graph
        depths: dict[TensorId, int] = {}
        depth_of: list[int] = []
        for node in graph.operators:
            depth_of.append(1 + max([depths.get(tensor, 0) for tensor in node.reads], default=0))
            depths.update(dict.fromkeys(filter(None, node.outputs), depth_of[-1]))
        by_depth = sorted(enumerate(graph.operators), key=lambda each: (depth_of[each[0]], each[0]))
        return _fuse(graph, [node for _, node in reversed(by_depth)])


def _fuse(graph: ExecutionGraph, nodes: Sequence[OperatorNode]) -> ExecutionGraph:
    edit = GraphEdit(graph)
    for node in nodes:
        if not _is_fusible(graph, node):
            continue
        addend, adder = _addition(graph, node)
        if adder is not None and edit.is_replaced(adder):
            continue
        activation, activator = _activation(graph, adder or node)
        chain = [one for one in (node, adder, activator) if one is not None]
        if len(chain) > 1:
            edit.replace(chain, _fused(node, addend, activation, chain[-1]))
    return edit.result()


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


def _addition(graph: ExecutionGraph, node: OperatorNode) -> tuple[TensorId, OperatorNode | None]:
    """Return what is added to the node's result, elementwise, and by which operator."""
    result = node.outputs[0]
    reader = only_reader(graph, result)
    if reader is None or reader.qualified_operator not in ("Add", "Sum") or len(reader.inputs) != 2:
        return NO_TENSOR, None
    other = other_operand(reader, result)
    same = graph.spec(other) == graph.spec(result)
    return (other, reader) if same else (NO_TENSOR, None)


def _activation(
    graph: ExecutionGraph, node: OperatorNode
) -> tuple[dict[str, GraphAttribute], OperatorNode | None]:
    """Return the attributes of the activation after `node`, and that operator."""
    reader = only_reader(graph, node.outputs[0])
    if reader is None or reader.domain or reader.inputs[0] != node.outputs[0]:
        return {}, None
    parameters_of = _ACTIVATIONS.get(reader.operator)
    parameters = parameters_of(graph, reader) if parameters_of else None
    if parameters is None:
        return {}, None
    attributes: dict[str, GraphAttribute] = {"activation": reader.operator}
    if parameters:
        attributes["activation_params"] = parameters
    return attributes, reader


def _no_parameters(graph: ExecutionGraph, node: OperatorNode) -> _Parameters | None:
    return ()


_ACTIVATIONS: Mapping[str, Callable[[ExecutionGraph, OperatorNode], _Parameters | None]] = {
    "Relu": _no_parameters,
    "Clip": clip_bounds,
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
