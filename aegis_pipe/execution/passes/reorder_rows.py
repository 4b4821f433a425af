"""Products take rows in any order: transposes of rows move past them, towards attention.

    Gemm(rows(T(x)))         T(Gemm(rows(x)))          towards the attention that reads it
    T(Gemm(rows(y)))         Gemm(rows(T(y)))          towards the attention that y is a result of

Sequence first, as some exporters write attention, costs a transpose before and after each of its
products. Beside attention they disappear into the strides it reads and writes with. Done only if
that leaves fewer transposes.
"""

from __future__ import annotations

import math

from aegis_pipe.execution.graph import ExecutionGraph, OperatorNode
from aegis_pipe.execution.passes import dead_code, fuse_attention, sink_transposes
from aegis_pipe.execution.passes.matching import only_reader, producer
from aegis_pipe.execution.passes.rewriting import GraphEdit
from aegis_pipe.tensor import TensorId, TensorSpec

name = "reorder_rows"

_OPSET = 13
Shape = tuple[int, ...]


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Move the transposes if that helps."""
    if "Softmax" not in graph.kinds:
        return graph
    moved = _raised(_lowered(graph))
    if moved is graph or _transposes_left(moved) >= _transposes_left(graph):
        return graph
    return moved


def _transposes_left(graph: ExecutionGraph) -> int:
    fused = sink_transposes.run(dead_code.run(fuse_attention.run(graph)))
    return sum(node.qualified_operator == "Transpose" for node in fused.operators)


def _lowered(graph: ExecutionGraph) -> ExecutionGraph:
    """Move transposes from before products to behind them."""
    edit = GraphEdit(graph)
    for node in graph.operators:
        if not _is_row_by_row(graph, node):
            continue
        turned = _before(graph, node.inputs[0])
        if turned is None or not _is_as_wide(graph, turned, node):
            continue
        source = graph.spec(turned.inputs[0]).shape
        width = graph.spec(node.outputs[0]).shape[1]
        chain = _Chain(graph, edit, node)
        chain.reshape(turned.inputs[0], (math.prod(source[:-1]), source[-1]))
        chain.product()
        chain.reshape(None, (*source[:-1], width))
        chain.transpose(_axes(turned))
        chain.reshape(None, graph.spec(node.outputs[0]).shape, node.outputs[0])
        edit.replace((node,), *chain.nodes)
    return edit.result()


def _raised(graph: ExecutionGraph) -> ExecutionGraph:
    """Move transposes from behind products to before them."""
    edit = GraphEdit(graph)
    for node in graph.operators:
        if not _is_row_by_row(graph, node) or _before(graph, node.inputs[0]) is None:
            continue
        reshape = only_reader(graph, node.outputs[0])
        if reshape is None or reshape.qualified_operator != "Reshape":
            continue
        turned = only_reader(graph, reshape.outputs[0])
        if turned is None or not _keeps_last(graph, turned):
            continue
        shape = graph.spec(reshape.outputs[0]).shape
        if shape[-1] != graph.spec(node.outputs[0]).shape[1]:
            continue
        rows, depth = graph.spec(node.inputs[0]).shape
        chain = _Chain(graph, edit, node)
        chain.reshape(node.inputs[0], (*shape[:-1], depth))
        chain.transpose(_axes(turned))
        chain.reshape(None, (rows, depth))
        chain.product()
        chain.reshape(None, graph.spec(turned.outputs[0]).shape, turned.outputs[0])
        edit.replace((node, reshape, turned), *chain.nodes)
    return edit.result()


def _is_row_by_row(graph: ExecutionGraph, node: OperatorNode) -> bool:
    """Return whether a node is a product that treats all rows alike."""
    if node.qualified_operator != "Gemm" or node.attributes.get("transA", 0):
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else TensorId("")
    width = graph.spec(node.outputs[0]).shape[1]
    return not bias or graph.spec(bias).shape in ((width,), (1, width))


def _before(graph: ExecutionGraph, rows: TensorId) -> OperatorNode | None:
    """Return the transpose whose result was reshaped to these rows."""
    reshape = producer(graph, rows)
    if reshape is None or reshape.qualified_operator != "Reshape":
        return None
    turned = producer(graph, reshape.inputs[0])
    return turned if turned is not None and _keeps_last(graph, turned) else None


def _is_as_wide(graph: ExecutionGraph, turned: OperatorNode, node: OperatorNode) -> bool:
    """Return whether rows of the product are rows of what was transposed, no joined heads."""
    return graph.spec(turned.outputs[0]).shape[-1:] == graph.spec(node.inputs[0]).shape[1:]


def _keeps_last(graph: ExecutionGraph, node: OperatorNode) -> bool:
    rank = len(graph.spec(node.inputs[0]).shape)
    return node.qualified_operator == "Transpose" and _axes(node)[-1:] == (rank - 1,)


def _axes(node: OperatorNode) -> Shape:
    axes = node.attributes.get("perm", ())
    assert isinstance(axes, tuple), f"{node.name}: perm is {axes!r}"
    return tuple([int(str(axis)) for axis in axes])


class _Chain:
    """New nodes, each reading what the one before writes."""

    def __init__(self, graph: ExecutionGraph, edit: GraphEdit, node: OperatorNode) -> None:
        self.nodes: list[OperatorNode] = []
        self._edit = edit
        self._node = node
        self._dtype = graph.spec(node.outputs[0]).dtype
        self._width = graph.spec(node.outputs[0]).shape[1]
        self._last = TensorId("")
        self._shape: Shape = ()

    def reshape(
        self, source: TensorId | None, shape: Shape, target: TensorId | None = None
    ) -> None:
        """Reshape `source`, or what was written last."""
        source = source or self._last
        target = target or self._tensor(shape)
        name = self._edit.node_name(f"{self._node.name}.reordered")
        self.nodes.append(self._edit.reshape(name, _OPSET, source, target, shape))
        self._last, self._shape = target, shape

    def transpose(self, axes: Shape) -> None:
        """Transpose what was written last."""
        shape = tuple([self._shape[axis] for axis in axes])
        target = self._tensor(shape)
        name = self._edit.node_name(f"{self._node.name}.reordered")
        attributes = {"perm": axes}
        self.nodes.append(
            OperatorNode(name, "Transpose", "", _OPSET, attributes, (self._last,), (target,))
        )
        self._last, self._shape = target, shape

    def product(self) -> None:
        """Take the product of what was written last."""
        shape = (self._shape[0], self._width)
        target = self._tensor(shape)
        node = self._node
        inputs = (self._last, *node.inputs[1:])
        self.nodes.append(
            OperatorNode(
                node.name,
                node.operator,
                node.domain,
                node.opset,
                node.attributes,
                inputs,
                (target,),
            )
        )
        self._last, self._shape = target, shape

    def _tensor(self, shape: Shape) -> TensorId:
        return self._edit.tensor(
            f"{self._node.outputs[0]}.reordered", TensorSpec(self._dtype, shape)
        )
