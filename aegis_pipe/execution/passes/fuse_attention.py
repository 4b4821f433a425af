"""Attention of several heads, spelled out, as one operator.

    softmax(q k^T * scale + mask) v                                        Attention

(Vaswani et al. 2017), with heads that are split off from and joined into [batch, length, hidden] by
transposes, which the one operator does not need.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from aegis_pipe.tensor import TensorId, TensorSpec

name = "fuse_attention"

_OPSET = 23
_RESHAPE_OPSET = 13
_SINGLE_AXIS_OPSET = 13
_SPLIT = (0, 2, 1, 3)
_SPLIT_AND_TRANSPOSED = (0, 2, 3, 1)


@dataclass(frozen=True, slots=True)
class _Attention:
    """A formula around a softmax; operands are [batch, length, heads, size]."""

    query: TensorId
    key: TensorId
    value: TensorId
    mask: TensorId
    scale: float
    nodes: list[OperatorNode]
    """Those to replace; the last one joins the heads."""


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Replace every such formula."""
    edit = GraphEdit(graph)
    for node in graph.operators:
        found = _match(graph, node) if node.qualified_operator == "Softmax" else None
        if found is not None and not edit.is_replaced(*found.nodes):
            edit.replace(found.nodes, *_fused(graph, edit, found))
    return edit.result()


def _match(graph: ExecutionGraph, softmax: OperatorNode) -> _Attention | None:
    spec = graph.spec(softmax.inputs[0])
    is_last = attribute(softmax, "axis", -1) in (-1, 3) and softmax.opset >= _SINGLE_AXIS_OPSET
    if len(spec.shape) != 4 or not is_last or spec.dtype not in EPSILON:
        return None
    nodes = [softmax]
    scores, mask = _mask(graph, softmax.inputs[0], nodes)
    scores, scale = _scale(graph, scores, nodes)
    product = _before(graph, scores, "MatMul")
    weighted = only_reader(graph, softmax.outputs[0])
    if product is None or weighted is None or weighted.qualified_operator != "MatMul":
        return None
    joined = only_reader(graph, weighted.outputs[0])
    query = _split(graph, product.inputs[0], _SPLIT)
    key = _split(graph, product.inputs[1], _SPLIT_AND_TRANSPOSED)
    value = _split(graph, weighted.inputs[1], _SPLIT)
    is_right = weighted.inputs[0] == softmax.outputs[0]
    if query is None or key is None or value is None or joined is None or not is_right:
        return None
    if joined.qualified_operator != "Transpose" or joined.attributes.get("perm") != _SPLIT:
        return None
    return _Attention(query, key, value, mask, scale, [product, *nodes, weighted, joined])


def _mask(
    graph: ExecutionGraph, scores: TensorId, nodes: list[OperatorNode]
) -> tuple[TensorId, TensorId]:
    """Return the scores before a mask was added, and the mask; one of zeros is none."""
    adder = _before(graph, scores, "Add")
    if adder is None:
        return scores, TensorId("")
    for tensor in adder.inputs:
        other = other_operand(adder, tensor)
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


def _split(graph: ExecutionGraph, tensor: TensorId, perm: tuple[int, ...]) -> TensorId | None:
    """Return [batch, length, heads, size] whose heads a transpose has brought forward."""
    node = producer(graph, tensor)
    if node is None or node.qualified_operator != "Transpose":
        return None
    return node.inputs[0] if node.attributes.get("perm") == perm else None


def _fused(graph: ExecutionGraph, edit: GraphEdit, found: _Attention) -> list[OperatorNode]:
    last = found.nodes[-1]
    operands, nodes = [], []
    for source in (found.query, found.key, found.value):
        batch, length, heads, size = graph.spec(source).shape
        shape = (batch, length, heads * size)
        flat = edit.tensor(f"{source}.flat", TensorSpec(graph.spec(source).dtype, shape))
        node_name = edit.node_name(f"{source}.flat")
        nodes.append(edit.reshape(node_name, _RESHAPE_OPSET, source, flat, shape))
        operands.append(flat)
    result = graph.spec(last.outputs[0])
    batch, length, heads, size = result.shape
    flat = edit.tensor(
        f"{last.outputs[0]}.flat", TensorSpec(result.dtype, (batch, length, heads * size))
    )
    attributes: dict[str, GraphAttribute] = {
        "q_num_heads": heads,
        "kv_num_heads": graph.spec(found.key).shape[2],
        "scale": float(np.float32(found.scale)),
    }
    inputs = (*operands, *((found.mask,) if found.mask else ()))
    nodes.append(OperatorNode(last.name, "Attention", "", _OPSET, attributes, inputs, (flat,)))
    joined = edit.node_name(f"{last.name}.joined")
    nodes.append(edit.reshape(joined, _RESHAPE_OPSET, flat, last.outputs[0], result.shape))
    return nodes
