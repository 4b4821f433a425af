"""Queries, keys and values of one input, projected by one product instead of three.

    attention(x Wq + bq, x Wk + bk, x Wv + bv)       x [Wq Wk Wv] + [bq bk bv], read by strides

One large product keeps a device busier than three small ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from aegis_pipe.execution.graph import ExecutionGraph, GraphAttribute, OperatorNode
from aegis_pipe.execution.passes.matching import only_reader, producer
from aegis_pipe.execution.passes.rewriting import GraphEdit
from aegis_pipe.tensor import TensorId, TensorSpec

name = "merge_projections"

_VIEWS = ("q_view", "k_view", "v_view")


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Merge what can be merged."""
    if "aegis.StridedAttention" not in graph.kinds:
        return graph
    edit = GraphEdit(graph)
    for node in graph.operators:
        if node.qualified_operator != "aegis.StridedAttention":
            continue
        products = _products(graph, node)
        if len(products) > 1 and not edit.is_replaced(node, *products.values()):
            _merge(graph, edit, node, products)
    return edit.result()


def _products(graph: ExecutionGraph, node: OperatorNode) -> dict[TensorId, OperatorNode]:
    """Return the products to merge by result: like the first that another one is like."""
    found: dict[TensorId, OperatorNode] = {}
    for tensor, view in zip(node.inputs, _VIEWS, strict=False):
        product = producer(graph, tensor)
        if product is None or only_reader(graph, tensor) is None:
            continue
        if _is_projection(graph, product) and _within_row(graph, tensor, node.attributes[view]):
            found[tensor] = product
    kinds = [_kind(graph, product) for product in found.values()]
    wanted = next((kind for kind in kinds if kinds.count(kind) > 1), None)
    return {tensor: product for tensor, product in found.items() if _kind(graph, product) == wanted}


def _is_projection(graph: ExecutionGraph, product: OperatorNode) -> bool:
    weights = product.inputs[1] if len(product.inputs) > 1 else TensorId("")
    bias = product.inputs[2] if len(product.inputs) > 2 else TensorId("")
    return (
        product.qualified_operator == "Gemm"
        and weights in graph.constants
        and (
            not bias
            or (bias in graph.constants and graph.spec(bias).shape == _width(graph, product))
        )
    )


def _width(graph: ExecutionGraph, product: OperatorNode) -> tuple[int, ...]:
    return graph.spec(product.outputs[0]).shape[1:]


def _kind(graph: ExecutionGraph, product: OperatorNode) -> object:
    """Return what has to be the same of products that become one."""
    attributes = tuple(sorted(product.attributes.items(), key=lambda item: item[0]))
    has_bias = len(product.inputs) > 2 and bool(product.inputs[2])
    return product.inputs[0], attributes, has_bias, graph.spec(product.inputs[1]).dtype


def _within_row(graph: ExecutionGraph, tensor: TensorId, view: GraphAttribute) -> bool:
    """Return whether every row of heads lies within one row of the product."""
    assert isinstance(view, tuple)
    width = graph.spec(tensor).shape[1]
    *extents, size, of_batch, of_head, of_position, offset = (int(str(each)) for each in view)
    reach = offset % width + size - 1
    for extent, stride in zip(extents, (of_batch, of_head, of_position), strict=True):
        if extent > 1 and stride % width:
            reach += (extent - 1) * stride
    return reach < width


def _merge(
    graph: ExecutionGraph,
    edit: GraphEdit,
    node: OperatorNode,
    products: dict[TensorId, OperatorNode],
) -> None:
    first = next(iter(products.values()))
    widths = [_width(graph, product)[0] for product in products.values()]
    total = sum(widths)
    starts = dict(zip(products, np.cumsum([0, *widths]).tolist(), strict=False))
    rows = graph.spec(first.outputs[0])
    result = edit.tensor(
        f"{node.outputs[0]}.projected", TensorSpec(rows.dtype, (rows.shape[0], total))
    )
    axis = 0 if first.attributes.get("transB", 0) else 1
    weights = [graph.constants[product.inputs[1]] for product in products.values()]
    inputs = [
        first.inputs[0],
        edit.constant(f"{result}.weights", np.concatenate(weights, axis)),
    ]
    if len(first.inputs) > 2 and first.inputs[2]:
        biases = [graph.constants[product.inputs[2]] for product in products.values()]
        inputs.append(edit.constant(f"{result}.bias", np.concatenate(biases)))
    attributes = dict(node.attributes)
    for tensor, view in zip(node.inputs, _VIEWS, strict=False):
        if tensor in products:
            width = _width(graph, products[tensor])[0]
            attributes[view] = _moved(node.attributes[view], width, total, starts[tensor])
    projection = replace(first, inputs=tuple(inputs), outputs=(result,))
    operands = tuple([result if tensor in products else tensor for tensor in node.inputs])
    edit.replace(
        (*products.values(), node),
        projection,
        replace(node, inputs=operands, attributes=attributes),
    )


def _moved(view: GraphAttribute, width: int, total: int, start: int) -> tuple[int, ...]:
    """Return a view of a matrix of `width` columns as one of those columns of a wider matrix."""
    assert isinstance(view, tuple)
    numbers: Sequence[int] = [int(str(each)) for each in view]
    strides = [
        stride // width * total if stride % width == 0 else stride for stride in numbers[4:7]
    ]
    offset = numbers[7] // width * total + numbers[7] % width + start
    return (*numbers[:4], *strides, offset)
