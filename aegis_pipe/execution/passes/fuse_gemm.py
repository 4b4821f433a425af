"""MatMul or Gemm, then adding a bias, then a Relu: one Gemm, or `com.microsoft.FusedGemm`.

A MatMul of a batch by one matrix counts as the product of all its rows, between two reshapes, which
only change the view.
"""

from __future__ import annotations

import math

from aegis_pipe.execution.graph import NO_TENSOR, ExecutionGraph, OperatorNode
from aegis_pipe.execution.passes.matching import (
    CONTRIBUTED,
    EPSILON,
    only_reader,
    other_operand,
)
from aegis_pipe.execution.passes.rewriting import GraphEdit
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorId, TensorSpec

name = "fuse_gemm"


@record(eq=True)
class _Chain:
    """A product and the operators after it that one Gemm can do."""

    product: OperatorNode
    bias: TensorId
    adder: OperatorNode | None
    relu: OperatorNode | None

    @property
    def nodes(self) -> list[OperatorNode]:
        return [node for node in (self.product, self.adder, self.relu) if node is not None]


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Replace every such chain; of two products that are added, the later one adds."""
    if graph.kinds.isdisjoint(("MatMul", "Gemm")):
        return graph
    edit = GraphEdit(graph)
    for node in reversed(graph.operators):
        chain = _chain(graph, node)
        if chain is not None and not edit.is_replaced(*chain.nodes):
            edit.replace(chain.nodes, *_fused(graph, chain, edit))
    return edit.result()


def _chain(graph: ExecutionGraph, node: OperatorNode) -> _Chain | None:
    if node.qualified_operator not in ("MatMul", "Gemm") or not _is_fusible(graph, node):
        return None
    reader = only_reader(graph, node.outputs[0])
    adder = reader if reader is not None and _adds_bias(graph, node, reader) else None
    bias = other_operand(adder, node.outputs[0]) if adder else NO_TENSOR
    reader = only_reader(graph, (adder or node).outputs[0])
    relu = reader if reader is not None and reader.qualified_operator == "Relu" else None
    return _Chain(node, bias, adder, relu) if adder or relu else None


def _is_fusible(graph: ExecutionGraph, node: OperatorNode) -> bool:
    specs = [graph.spec(tensor) for tensor in node.inputs if tensor]
    return (
        specs[0].dtype in EPSILON
        and specs[0].element_count > 0
        and len({spec.dtype for spec in specs}) == 1
        and len(specs[0].shape) >= 2
        and len(specs[1].shape) == 2
    )


def _adds_bias(graph: ExecutionGraph, node: OperatorNode, adder: OperatorNode) -> bool:
    """Return whether an operator adds to a product what could be operand C of a Gemm."""
    if adder.qualified_operator != "Add" or any(node.inputs[2:]):
        return False
    result = graph.spec(node.outputs[0])
    tensor = other_operand(adder, node.outputs[0])
    bias = graph.spec(tensor)
    if graph.spec(adder.outputs[0]) != result or len(bias.shape) > len(result.shape):
        return False
    # Rows of a batch become rows of one matrix: what is added may not tell them apart.
    is_row = bias.element_count == (bias.shape or (1,))[-1]
    return len(result.shape) == 2 or (is_row and (len(bias.shape) < 2 or tensor in graph.constants))


def _fused(graph: ExecutionGraph, chain: _Chain, edit: GraphEdit) -> list[OperatorNode]:
    last = chain.nodes[-1]
    result = last.outputs[0]
    data = chain.product.inputs[0]
    spec, opset = graph.spec(data), chain.product.opset
    if len(spec.shape) == 2:
        return [_gemm(chain, last.name, data, chain.bias or _operand_c(chain.product), result)]
    bias = chain.bias
    if bias and len(graph.spec(bias).shape) > 1:
        bias = edit.constant(f"{result}.bias", graph.constants[bias].reshape(-1))
    shape = graph.spec(result).shape
    height = math.prod(shape[:-1])
    rows = edit.tensor(f"{result}.rows", TensorSpec(spec.dtype, (height, spec.shape[-1])))
    product = edit.tensor(f"{result}.product", TensorSpec(spec.dtype, (height, shape[-1])))
    return [
        edit.reshape(
            edit.node_name(f"{last.name}.rows"), opset, data, rows, (height, spec.shape[-1])
        ),
        _gemm(chain, last.name, rows, bias, product),
        edit.reshape(edit.node_name(f"{last.name}.batch"), opset, product, result, shape),
    ]


def _operand_c(node: OperatorNode) -> TensorId:
    return node.inputs[2] if len(node.inputs) > 2 else NO_TENSOR


def _gemm(
    chain: _Chain, node_name: str, data: TensorId, bias: TensorId, result: TensorId
) -> OperatorNode:
    inputs = (data, chain.product.inputs[1], *((bias,) if bias else ()))
    kept = chain.product.attributes
    if chain.relu is None:
        return OperatorNode(node_name, "Gemm", "", chain.product.opset, kept, inputs, (result,))
    attributes = {**kept, "activation": "Relu"}
    return OperatorNode(node_name, "FusedGemm", CONTRIBUTED, 1, attributes, inputs, (result,))
