"""Inverted residual blocks as one operator, where what lies between would not stay in a cache.

    conv 1x1, clip, depthwise 3x3, clip, conv 1x1, + Z, clip          aegis.InvertedResidual

(Sandler et al. 2018), of images with channels last. The first convolution may be missing, or have
other readers; then the operator begins with the depthwise one. It is computed strip by strip, and
the wide images between, several times as large as input and result, are never written as a whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from aegis_pipe.execution.graph import NO_TENSOR, ExecutionGraph, GraphAttribute, OperatorNode
from aegis_pipe.execution.passes.matching import attribute, only_reader, producer
from aegis_pipe.execution.passes.rewriting import GraphEdit
from aegis_pipe.tensor import TensorId

name = "fuse_inverted_residual"

OWN = "aegis"
_CONVOLUTION = "com.microsoft.NhwcFusedConv"
_WIDE_BYTES_MIN = 512 << 10
"""A wide image below this stays in a core's second-level cache from one kernel to the next; strips
would only widen the rows at their borders twice."""
_WINDOW = ("kernel_shape", "strides", "pads", "dilations", "auto_pad")


@dataclass(frozen=True, slots=True)
class _Layer:
    """A convolution with a clip; `residual` is added before it."""

    node: OperatorNode
    bounds: tuple[float, float]

    @property
    def weights(self) -> tuple[TensorId, TensorId]:
        """Weights and bias."""
        return self.node.inputs[1], (*self.node.inputs, NO_TENSOR)[2]

    @property
    def residual(self) -> TensorId:
        """What is added, if anything is."""
        return (*self.node.inputs, NO_TENSOR, NO_TENSOR)[3]


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Replace every block that is large enough."""
    edit = GraphEdit(graph)
    for node in graph.operators:
        middle = _depthwise(graph, node)
        if middle is None:
            continue
        reader = only_reader(graph, node.outputs[0])
        narrow = _pointwise(graph, reader)
        if narrow is None or narrow.node.inputs[0] != node.outputs[0]:
            continue
        wide = _widening(graph, middle)
        layers = [layer for layer in (wide, middle, narrow) if layer is not None]
        largest = max(graph.spec(layer.node.outputs[0]).size_bytes for layer in layers[:-1])
        nodes = [layer.node for layer in layers]
        if largest >= _WIDE_BYTES_MIN and not edit.is_replaced(*nodes):
            edit.replace(nodes, _fused(wide, middle, narrow))
    return edit.result()


def _layer(graph: ExecutionGraph, node: OperatorNode | None) -> _Layer | None:
    """Return a convolution of float32 images with known weights and a clip, or without."""
    if node is None or node.qualified_operator != _CONVOLUTION:
        return None
    if node.inputs[1] not in graph.constants or len(graph.spec(node.inputs[1]).shape) != 4:
        return None
    if graph.spec(node.outputs[0]).dtype.name != "float32":
        return None
    activation = str(node.attributes.get("activation", "")).lower()
    if activation in ("", "relu"):
        return _Layer(node, (0.0 if activation else -math.inf, math.inf))
    given = node.attributes.get("activation_params", ())
    if activation != "clip" or not isinstance(given, tuple) or len(given) != 2:
        return None
    low, high = (float(bound) for bound in given if isinstance(bound, int | float))
    return _Layer(node, (low, high))


def _integers(node: OperatorNode, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = node.attributes.get(key) or default
    assert isinstance(value, tuple), f"{node.name}: {key} is {value!r}"
    return tuple(int(each) for each in value if isinstance(each, int))


def _depthwise(graph: ExecutionGraph, node: OperatorNode) -> _Layer | None:
    layer = _layer(graph, node)
    if layer is None or layer.residual:
        return None
    maps, depth, *kernel = graph.spec(node.inputs[1]).shape
    strides = _integers(node, "strides", (1, 1))
    is_known = kernel == [3, 3] and strides in ((1, 1), (2, 2))
    is_known = is_known and _integers(node, "dilations", (1, 1)) == (1, 1)
    return layer if is_known and depth == 1 < maps == attribute(node, "group", 1) else None


def _pointwise(graph: ExecutionGraph, node: OperatorNode | None) -> _Layer | None:
    layer = _layer(graph, node)
    if layer is None or graph.spec(layer.node.inputs[1]).shape[2:] != (1, 1):
        return None
    is_plain = attribute(layer.node, "group", 1) == 1
    is_plain = is_plain and set(_integers(layer.node, "strides", (1, 1))) == {1}
    return layer if is_plain and not any(_integers(layer.node, "pads", (0,))) else None


def _widening(graph: ExecutionGraph, middle: _Layer) -> _Layer | None:
    data = middle.node.inputs[0]
    layer = _pointwise(graph, producer(graph, data))
    if layer is None or layer.residual or only_reader(graph, data) is None:
        return None
    return layer


def _fused(wide: _Layer | None, middle: _Layer, narrow: _Layer) -> OperatorNode:
    first = wide or middle
    unbounded = (-math.inf, math.inf)
    attributes: dict[str, GraphAttribute] = {
        key: middle.node.attributes[key] for key in _WINDOW if key in middle.node.attributes
    }
    attributes["bounds"] = (
        *(wide.bounds if wide else unbounded),
        *middle.bounds,
        *narrow.bounds,
    )
    operands = (
        first.node.inputs[0],
        *(wide.weights if wide else (NO_TENSOR, NO_TENSOR)),
        *middle.weights,
        *narrow.weights,
        narrow.residual,
    )
    last = narrow.node
    return OperatorNode(last.name, "InvertedResidual", OWN, 1, attributes, operands, last.outputs)
