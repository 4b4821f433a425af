"""Quantised images get their channels last, where convolutions read them: N, H, W, C.

The products of bytes take the channels of a pixel together. So a convolution and whatever works on
its result element by element, pools it or concatenates it are given channels last; a transpose
stands where other operators begin. `sink_transposes` then moves and merges these.
"""

from __future__ import annotations

from dataclasses import replace

from aegis_pipe.execution.graph import ExecutionGraph, GraphAttribute, OperatorNode
from aegis_pipe.execution.passes import dead_code
from aegis_pipe.execution.passes.matching import CONTRIBUTED
from aegis_pipe.execution.passes.rewriting import GraphEdit
from aegis_pipe.tensor import TensorId, TensorSpec

name = "quantised_channels_last"

_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_RANK = 4
_TRANSPOSE_OPSET = 13

_CONVOLUTIONS = ("QLinearConv", "com.microsoft.QLinearConv")
_PAIRS = ("com.microsoft.QLinearAdd", "com.microsoft.QLinearMul")
_POOLS = ("com.microsoft.QLinearAveragePool", "com.microsoft.QLinearGlobalAveragePool")
_MAPS = ("aegis.QLinearClip", "com.microsoft.QLinearLeakyRelu", "com.microsoft.QLinearSigmoid")
_CONCAT = "com.microsoft.QLinearConcat"
_CAPABLE = frozenset((*_CONVOLUTIONS, *_PAIRS, *_POOLS, *_MAPS, _CONCAT, "MaxPool"))


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Turn every convolution and what follows from it."""
    if graph.kinds.isdisjoint(_CONVOLUTIONS):
        return dead_code.run(graph)
    edit = GraphEdit(graph)
    turner = _Turner(graph, edit)
    for node in graph.operators:
        images = _images(graph, node)
        if images and (_is_convolution(node) or any(map(turner.is_turned, images))):
            turner.turn(node, images)
    return dead_code.run(edit.result())


def _is_convolution(node: OperatorNode) -> bool:
    return node.qualified_operator in _CONVOLUTIONS


def _images(graph: ExecutionGraph, node: OperatorNode) -> tuple[TensorId, ...]:
    """Return the operands that are images; none if the node can not have channels last."""
    operator, inputs = node.qualified_operator, node.inputs
    if operator not in _CAPABLE or node.attributes.get("channels_last"):
        return ()
    if len(graph.spec(node.outputs[0]).shape) != _RANK:
        return ()
    if operator in _CONVOLUTIONS or operator in _POOLS or operator in _MAPS:
        return inputs[:1]
    if operator == "MaxPool":
        is_bytes = graph.spec(inputs[0]).dtype.itemsize == 1
        return inputs[:1] if is_bytes and len(node.outputs) == 1 else ()
    if operator in _PAIRS:
        images = (inputs[0], inputs[3])
        return images if all(len(graph.spec(one).shape) == _RANK for one in images) else ()
    if operator == _CONCAT:
        return inputs[2::3] if node.attributes.get("axis") in (1, 1 - _RANK) else ()
    return ()


class _Turner:
    """Gives nodes channels last, and remembers which tensors have a turned twin."""

    def __init__(self, graph: ExecutionGraph, edit: GraphEdit) -> None:
        self._graph = graph
        self._edit = edit
        self._twins: dict[TensorId, TensorId] = {}
        self._made: set[TensorId] = set()

    def is_turned(self, tensor: TensorId) -> bool:
        """Return whether an operator writes this tensor with channels last."""
        return tensor in self._made

    def turn(self, node: OperatorNode, images: tuple[TensorId, ...]) -> None:
        """Replace a node by itself with channels last, between the transposes it needs."""
        before = [self._transposed(tensor) for tensor in dict.fromkeys(images)]
        twins = {tensor: self._twins[tensor] for tensor in images}
        result = node.outputs[0]
        self._twins[result] = self._twin(result)
        self._made.add(result)
        turned = replace(
            _with_channels_last(node),
            inputs=tuple([twins.get(tensor, tensor) for tensor in node.inputs]),
            outputs=(self._twins[result],),
        )
        back = self._transpose(self._twins[result], result, _TO_FIRST)
        self._edit.replace((node,), *filter(None, before), turned, back)

    def _transposed(self, tensor: TensorId) -> OperatorNode | None:
        """Return the transpose that makes a tensor's twin, unless it is made already."""
        if tensor in self._twins:
            return None
        self._twins[tensor] = self._twin(tensor)
        return self._transpose(tensor, self._twins[tensor], _TO_LAST)

    def _twin(self, tensor: TensorId) -> TensorId:
        spec = self._graph.spec(tensor)
        shape = tuple([spec.shape[axis] for axis in _TO_LAST])
        return self._edit.tensor(f"{tensor}.channels_last", TensorSpec(spec.dtype, shape))

    def _transpose(self, source: TensorId, target: TensorId, axes: tuple[int, ...]) -> OperatorNode:
        own_name = self._edit.node_name(f"{target}.transpose")
        attributes: dict[str, GraphAttribute] = {"perm": axes}
        return OperatorNode(
            own_name, "Transpose", "", _TRANSPOSE_OPSET, attributes, (source,), (target,)
        )


def _with_channels_last(node: OperatorNode) -> OperatorNode:
    """Return the operator that does the same to images with their channels last."""
    operator = node.qualified_operator
    if operator == "MaxPool":
        return replace(node, operator="NhwcMaxPool", domain=CONTRIBUTED, opset=1)
    if operator == _CONCAT:
        return replace(node, attributes={**node.attributes, "axis": _RANK - 1})
    if operator in _CONVOLUTIONS or operator in _POOLS:
        attributes = {**node.attributes, "channels_last": 1}
        return replace(node, attributes=attributes, domain=CONTRIBUTED, opset=1)
    return node
