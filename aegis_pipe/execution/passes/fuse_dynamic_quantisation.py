"""MatMulInteger, made a float, times the scales, plus a bias: one operator of com.microsoft.

MatMulIntegerToFloat in general; DynamicQuantizeMatMul, which quantises rows as it meets them, where
a DynamicQuantizeLinear before it serves nothing else. The kernel computes in the order of the
operators it replaces.
"""

from __future__ import annotations

import numpy as np

from aegis_pipe.execution.graph import NO_TENSOR, ExecutionGraph, OperatorNode
from aegis_pipe.execution.passes import dead_code
from aegis_pipe.execution.passes.matching import (
    CONTRIBUTED,
    only_reader,
    other_operand,
    producer,
)
from aegis_pipe.execution.passes.rewriting import GraphEdit
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorId

name = "fuse_dynamic_quantisation"


@record(eq=True)
class _Product:
    """A product of integers with what makes floats of it."""

    nodes: tuple[OperatorNode, ...]
    """The product, the cast, the multiplication, and the addition if there is one."""
    a_scale: TensorId
    b_scale: TensorId
    bias: TensorId


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Replace every such chain; what nobody reads any more goes."""
    if "MatMulInteger" not in graph.kinds:
        return dead_code.run(graph)
    edit = GraphEdit(graph)
    for node in graph.operators:
        if node.qualified_operator == "MatMulInteger":
            product = _product(graph, node)
            if product is not None and not edit.is_replaced(*product.nodes):
                _replace(graph, edit, product)
    return dead_code.run(edit.result())


def _product(graph: ExecutionGraph, node: OperatorNode) -> _Product | None:
    cast = only_reader(graph, node.outputs[0])
    if cast is None or cast.qualified_operator != "Cast":
        return None
    if graph.spec(cast.outputs[0]).dtype != np.float32:
        return None
    scaling = only_reader(graph, cast.outputs[0])
    if scaling is None or scaling.qualified_operator != "Mul":
        return None
    scales = _scales(graph, node, other_operand(scaling, cast.outputs[0]))
    if scales is None:
        return None
    bias, adder = _bias(graph, scaling)
    nodes = (node, cast, scaling) if adder is None else (node, cast, scaling, adder)
    return _Product(nodes, *scales, bias)


def _columns(graph: ExecutionGraph, node: OperatorNode) -> tuple[int, ...]:
    return graph.spec(node.outputs[0]).shape[-1:]


def _scales(
    graph: ExecutionGraph, node: OperatorNode, product: TensorId
) -> tuple[TensorId, TensorId] | None:
    """Return the scales of A and B, whose product this tensor is: B's is the constant one."""
    both = producer(graph, product)
    if both is None or both.qualified_operator != "Mul":
        return None
    constants = [tensor for tensor in both.inputs if tensor in graph.constants]
    if len(constants) != 1:
        return None
    b_scale = constants[0]
    a_scale = other_operand(both, b_scale)
    known = graph.spec(b_scale)
    is_by_column = known.element_count == 1 or known.shape == _columns(graph, node)
    if not is_by_column or graph.spec(a_scale).element_count != 1:
        return None
    return a_scale, b_scale


def _bias(graph: ExecutionGraph, scaling: OperatorNode) -> tuple[TensorId, OperatorNode | None]:
    """Return what is added to each column, and by which operator."""
    adder = only_reader(graph, scaling.outputs[0])
    if adder is None or adder.qualified_operator != "Add":
        return NO_TENSOR, None
    bias = other_operand(adder, scaling.outputs[0])
    fits = bias in graph.constants and graph.spec(bias).shape == _columns(graph, scaling)
    return (bias, adder) if fits else (NO_TENSOR, None)


def _replace(graph: ExecutionGraph, edit: GraphEdit, product: _Product) -> None:
    node, last = product.nodes[0], product.nodes[-1]
    left, right, left_zero, right_zero = (*node.inputs, NO_TENSOR, NO_TENSOR)[:4]
    quantiser = producer(graph, left)
    if quantiser is not None and _serves_only(graph, quantiser, product):
        operator = "DynamicQuantizeMatMul"
        inputs: tuple[TensorId, ...] = (
            quantiser.inputs[0],
            right,
            product.b_scale,
            right_zero,
            product.bias,
        )
    else:
        operator = "MatMulIntegerToFloat"
        inputs = (left, right, product.a_scale, product.b_scale, left_zero, right_zero)
        inputs = (*inputs, product.bias)
    while not inputs[-1]:
        inputs = inputs[:-1]
    new = OperatorNode(last.name, operator, CONTRIBUTED, 1, {}, inputs, last.outputs)
    edit.replace(product.nodes, new)


def _serves_only(graph: ExecutionGraph, quantiser: OperatorNode, product: _Product) -> bool:
    """Return whether a DynamicQuantizeLinear makes A, and nothing else reads what it makes."""
    node = product.nodes[0]
    if quantiser.qualified_operator != "DynamicQuantizeLinear":
        return False
    if tuple(quantiser.outputs) != (node.inputs[0], product.a_scale, (*node.inputs, "", "")[2]):
        return False
    return all(only_reader(graph, tensor) is not None for tensor in quantiser.outputs)
