"""Attention of several heads, spelled out or not, as one operator.

    softmax(q k^T * scale + mask) v                                aegis.StridedAttention
    Attention(q, k, v, mask)

(Vaswani et al. 2017). The heads are split off from [batch, length, hidden], or from queries, keys
and values side by side, by reshapes, transposes and slices; the one operator reads and writes them
where they are, by strides.
"""

from __future__ import annotations

import math

import numpy as np

from aegis_pipe.execution.graph import ExecutionGraph, GraphAttribute, OperatorNode
from aegis_pipe.execution.passes.matching import (
    EPSILON,
    attribute,
    only_reader,
    other_operand,
    producer,
    scalar,
)
from aegis_pipe.execution.passes.rewriting import GraphEdit
from aegis_pipe.execution.passes.views import View, dense, views, written_through
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorId

name = "fuse_attention"

OWN = "aegis"
_SINGLE_AXIS_OPSET = 13
_KEYS_MAX = 4096
"""More than these no kernel is sure to take."""


@record(eq=True)
class _Attention:
    """A formula around a softmax; views are [batch, heads, length, size]."""

    query: View
    key: View
    value: View
    result: View
    mask: TensorId
    scale: float
    nodes: list[OperatorNode]
    """Those to replace; the last one writes the result."""


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Replace every such formula."""
    if graph.kinds.isdisjoint(("Softmax", "Attention")):
        return graph
    edit = GraphEdit(graph)
    for node in graph.operators:
        match node.qualified_operator:
            case "Softmax":
                found = _match(graph, node)
            case "Attention":
                found = _match_operator(graph, node)
            case _:
                continue
        if found is not None and not edit.is_replaced(*found.nodes):
            edit.replace(found.nodes, _fused(graph, found))
    return edit.result()


def _match(graph: ExecutionGraph, softmax: OperatorNode) -> _Attention | None:
    spec = graph.spec(softmax.inputs[0])
    rank = len(spec.shape)
    is_last = attribute(softmax, "axis", -1) in (-1, rank - 1)
    if rank not in (3, 4) or not is_last or softmax.opset < _SINGLE_AXIS_OPSET:
        return None
    if spec.dtype not in EPSILON or not spec.element_count or spec.shape[-1] > _KEYS_MAX:
        return None
    nodes = [softmax]
    scores, mask = _mask(graph, softmax.inputs[0], nodes)
    scores, scale = _scale(graph, scores, nodes)
    product = _before(graph, scores, "MatMul")
    weighted = only_reader(graph, softmax.outputs[0])
    if product is None or weighted is None or weighted.qualified_operator != "MatMul":
        return None
    if weighted.inputs[0] != softmax.outputs[0]:
        return None
    query = _heads(graph, product.inputs[0])
    key = _heads(graph, product.inputs[1], transposed=True)
    value = _heads(graph, weighted.inputs[1])
    written, after = written_through(graph, weighted.outputs[0])
    if query is None or key is None or value is None or not _fit(query, key, value):
        return None
    return _Attention(
        query,
        key,
        value,
        _with_batch(written),
        mask,
        scale * query.factor * key.factor,
        [product, *nodes, weighted, *after],
    )


def _match_operator(graph: ExecutionGraph, node: OperatorNode) -> _Attention | None:
    """Match an operator that has no past, and hides nothing but by its mask."""
    mask = node.inputs[3] if len(node.inputs) > 3 else TensorId("")
    if any(node.inputs[4:]) or any(node.outputs[1:]) or not _is_plain(node):
        return None
    specs = [graph.spec(tensor) for tensor in node.inputs if tensor]
    # In bfloat16 the operator is specified to round at each step.
    if specs[0].dtype.kind != "f" or len({spec.dtype for spec in specs}) > 1:
        return None
    heads = int(attribute(node, "q_num_heads", 0)), int(attribute(node, "kv_num_heads", 0))
    query = _split(graph, node.inputs[0], heads[0])
    key, value = (_split(graph, tensor, heads[1]) for tensor in node.inputs[1:3])
    if query is None or key is None or value is None or not _fit(query, key, value):
        return None
    keys = key.shape[2]
    if keys > _KEYS_MAX or (mask and graph.spec(mask).shape[-1:] != (keys,)):
        return None
    result = graph.spec(node.outputs[0])
    if not result.element_count:
        return None
    if len(result.shape) == 4:
        written, after = written_through(graph, node.outputs[0])
    else:
        written, after = _with_heads(dense(graph, node.outputs[0]), heads[0]), []
    scale = attribute(node, "scale", 1 / math.sqrt(query.shape[3]))
    return _Attention(
        query, key, value, written, mask, scale * query.factor * key.factor, [node, *after]
    )


def _is_plain(node: OperatorNode) -> bool:
    return (
        not attribute(node, "is_causal", 0)
        and not attribute(node, "softcap", 0.0)
        and attribute(node, "left_window_size", -1) < 0
        and attribute(node, "right_window_size", -1) < 0
    )


def _split(graph: ExecutionGraph, tensor: TensorId, heads: int) -> View | None:
    """Return an operand's heads as the farthest view whose rows lie dense."""
    found = [view for view in views(graph, tensor) if view.strides[-1:] == (1,)]
    rank = len(graph.spec(tensor).shape)
    found = [view for view in found if len(view.shape) == rank]
    return _with_heads(found[-1], heads) if found else None


def _with_heads(view: View, heads: int) -> View:
    """Return a view [batch, length, heads * size] as one of heads."""
    if len(view.shape) == 4:
        return view
    batch, length, width = view.shape
    size = width // heads
    strides = (view.strides[0], size, *view.strides[1:])
    return view._replace(shape=(batch, heads, length, size), strides=strides)


def _heads(graph: ExecutionGraph, tensor: TensorId, *, transposed: bool = False) -> View | None:
    """Return an operand of a product as the farthest view whose rows lie dense."""
    found = None
    for view in views(graph, tensor):
        if len(view.shape) not in (3, 4):
            return None
        shape, strides = view.shape, view.strides
        if transposed:
            shape = (*shape[:-2], shape[-1], shape[-2])
            strides = (*strides[:-2], strides[-1], strides[-2])
        if strides[-1] == 1:
            found = view._replace(shape=shape, strides=strides)
    return found and _with_batch(found)


def _with_batch(view: View) -> View:
    """Return a view of heads as one of a batch of heads."""
    if len(view.shape) == 4:
        return view
    return view._replace(shape=(1, *view.shape), strides=(0, *view.strides))


def _fit(query: View, key: View, value: View) -> bool:
    """Return whether nothing is broadcast, and V is not scaled."""
    return (
        query.shape[:2] == key.shape[:2] == value.shape[:2]
        and key.shape[2] == value.shape[2]
        and value.factor == 1
    )


def _mask(
    graph: ExecutionGraph, scores: TensorId, nodes: list[OperatorNode]
) -> tuple[TensorId, TensorId]:
    """Return the scores before a mask was added, and the mask; one of zeros is none.

    A mask has a number for every key: what else is added stays an addition.
    """
    adder = _before(graph, scores, "Add")
    if adder is None:
        return scores, TensorId("")
    for tensor in adder.inputs:
        other = other_operand(adder, tensor)
        if graph.spec(other).shape[-1:] != graph.spec(scores).shape[-1:]:
            continue
        if graph.spec(tensor) == graph.spec(scores) and tensor not in graph.constants:
            known = graph.constants.get(other)
            nodes.insert(0, adder)
            return tensor, TensorId("") if known is not None and not known.any() else other
    return scores, TensorId("")


def _scale(
    graph: ExecutionGraph, scores: TensorId, nodes: list[OperatorNode]
) -> tuple[TensorId, float]:
    for operator in ("Mul", "Div"):
        scaler = _before(graph, scores, operator)
        if scaler is None:
            continue
        factor = scalar(graph, scaler.inputs[1])
        tensor = scaler.inputs[0]
        if factor is None and operator == "Mul":
            factor, tensor = scalar(graph, scaler.inputs[0]), scaler.inputs[1]
        if factor:
            nodes.insert(0, scaler)
            return tensor, factor if operator == "Mul" else 1 / factor
    return scores, 1.0


def _before(graph: ExecutionGraph, tensor: TensorId, operator: str) -> OperatorNode | None:
    """Return the operator of this kind that writes a tensor which nothing else needs."""
    node = producer(graph, tensor)
    if node is None or node.qualified_operator != operator:
        return None
    return node if only_reader(graph, tensor) is not None else None


def _fused(graph: ExecutionGraph, found: _Attention) -> OperatorNode:
    last = found.nodes[-1]
    attributes: dict[str, GraphAttribute] = {
        "q_view": numbers_of(found.query),
        "k_view": numbers_of(found.key),
        "v_view": numbers_of(found.value),
        "y_view": numbers_of(found.result),
        "scale": float(np.float32(found.scale)),
        "shape": graph.spec(last.outputs[0]).shape,
    }
    bases = (found.query.base, found.key.base, found.value.base)
    inputs = (*bases, *((found.mask,) if found.mask else ()))
    return OperatorNode(last.name, "StridedAttention", OWN, 1, attributes, inputs, last.outputs[:1])


def numbers_of(view: View) -> tuple[int, ...]:
    """Return extents, strides of all but the last, and the offset."""
    return (*view.shape, *view.strides[:-1], view.offset)
