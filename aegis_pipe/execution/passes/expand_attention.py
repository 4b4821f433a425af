"""Contributed attention as its parts, and masks as what is added to the scores.

    com.microsoft.Attention(x, W, b)              MatMul, Add, Split, then Attention
    com.microsoft.MultiHeadAttention(q, k, v, b)  three times Add, then Attention
    a mask of bool, of 0 and 1, or of lengths     Where: 0, or what hides a key

In parts, the projections are products like any other, masks that layers share are made once, and
attention is the operator that every device has its fastest kernels for. Forms with a past, or with
results besides the first, stay as they are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from aegis_pipe.execution.graph import NO_TENSOR, ExecutionGraph, GraphAttribute, OperatorNode
from aegis_pipe.execution.passes.matching import EPSILON, attribute
from aegis_pipe.execution.passes.rewriting import GraphEdit
from aegis_pipe.tensor import TensorId, TensorSpec

name = "expand_attention"

_OPSET = 23
"""The first with Attention; the other operators mean in it what they mean in every one since 13."""
_BOOL = np.dtype(np.bool_)
_HIDDEN = -10000.0
"""What the contributed operators add to the scores of hidden keys, unless they say."""


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Expand every attention that can be."""
    edit = GraphEdit(graph)
    for node in graph.operators:
        parts = _Parts(graph, edit, node)
        match node.qualified_operator:
            case "com.microsoft.Attention":
                expanded = _projected(parts)
            case "com.microsoft.MultiHeadAttention":
                expanded = _multi_head(parts)
            case "Attention":
                expanded = _masked(parts)
            case _:
                continue
        if expanded is not None:
            edit.replace((node,), *parts.nodes, expanded)
    return edit.result()


class _Parts:
    """An operator to expand, and the nodes that are made of it."""

    def __init__(self, graph: ExecutionGraph, edit: GraphEdit, node: OperatorNode) -> None:
        self.graph = graph
        self.edit = edit
        self.node = node
        self.nodes: list[OperatorNode] = []
        self._specs: dict[TensorId, TensorSpec] = {}

    def operand(self, position: int) -> TensorId:
        """Return an operand; `NO_TENSOR` if it is left out."""
        inputs = self.node.inputs
        return inputs[position] if position < len(inputs) else NO_TENSOR

    def spec(self, tensor: TensorId) -> TensorSpec:
        """Return the spec of the graph's tensor, or of one made here."""
        return self._specs[tensor] if tensor in self._specs else self.graph.spec(tensor)

    def add(
        self,
        operator: str,
        inputs: Sequence[TensorId],
        *specs: TensorSpec,
        **attributes: GraphAttribute,
    ) -> tuple[TensorId, ...]:
        """Add a node; return its results."""
        name = self.edit.node_name(f"{self.node.name}.{operator.lower()}")
        outputs = tuple(self.edit.tensor(f"{name}.{i}", spec) for i, spec in enumerate(specs))
        self._specs |= zip(outputs, specs, strict=True)
        self.nodes.append(OperatorNode(name, operator, "", _OPSET, attributes, (*inputs,), outputs))
        return outputs

    def constant(self, kind: str, array: np.ndarray) -> TensorId:
        """Add a constant."""
        tensor = self.edit.constant(f"{self.node.name}.{kind}", array)
        self._specs[tensor] = TensorSpec(array.dtype, array.shape)
        return tensor

    def reshaped(self, tensor: TensorId, shape: tuple[int, ...]) -> TensorId:
        """Add a Reshape."""
        spec = TensorSpec(self.spec(tensor).dtype, shape)
        return self.add("Reshape", (tensor, self.constant("shape", np.array(shape))), spec)[0]

    def split(self, tensor: TensorId, sizes: Sequence[int]) -> tuple[TensorId, ...]:
        """Add a Split of the last axis."""
        spec = self.spec(tensor)
        specs = [TensorSpec(spec.dtype, (*spec.shape[:-1], size)) for size in sizes]
        inputs = (tensor, self.constant("sizes", np.array(sizes)))
        return self.add("Split", inputs, *specs, axis=len(spec.shape) - 1)

    def sum(self, one: TensorId, other: TensorId) -> TensorId:
        """Add an Add."""
        first, second = self.spec(one), self.spec(other)
        shape = np.broadcast_shapes(first.shape, second.shape)
        return self.add("Add", (one, other), TensorSpec(first.dtype, shape))[0]

    def where(self, seen: TensorId, dtype: np.dtype, hidden: float) -> TensorId:
        """Add what becomes of a mask of bool: 0 where keys are seen."""
        inputs = (
            seen,
            self.constant("seen", np.zeros((), dtype)),
            self.constant("hidden", np.array(hidden, dtype)),
        )
        return self.add("Where", inputs, TensorSpec(dtype, self.spec(seen).shape))[0]

    def attention(
        self, operands: Sequence[TensorId], mask: TensorId, **attributes: GraphAttribute
    ) -> OperatorNode:
        """Return the node that writes the operator's result."""
        inputs = (*operands, *((mask,) if mask else ()))
        outputs = self.node.outputs[:1]
        return OperatorNode(self.node.name, "Attention", "", _OPSET, attributes, inputs, outputs)


def _is_plain(parts: _Parts, *others: int) -> bool:
    """Return whether none of these operands is there, and no result but the first."""
    spec = parts.spec(parts.node.inputs[0])
    return (
        not any(parts.operand(position) for position in others)
        and not any(parts.node.outputs[1:])
        and len(spec.shape) == 3
        and spec.dtype in EPSILON
    )


def _projected(parts: _Parts) -> OperatorNode | None:
    if not _is_plain(parts, 4, 6) or attribute(parts.node, "do_rotary", 0):
        return None
    data, weights, bias = (parts.operand(position) for position in range(3))
    batch, length, _ = parts.spec(data).shape
    total = parts.spec(weights).shape[1]
    widths = parts.node.attributes.get("qkv_hidden_sizes") or (total // 3,) * 3
    assert isinstance(widths, tuple), f"{parts.node.name}: qkv_hidden_sizes is {widths!r}"
    sizes = [int(str(width)) for width in widths]
    if sum(sizes) != total or not _has_mask_form(parts, 3, (batch, length, length)):
        return None
    spec = TensorSpec(parts.spec(data).dtype, (batch, length, total))
    (product,) = parts.add("MatMul", (data, weights), spec)
    if bias:
        product = parts.sum(product, bias)
    return _ended(parts, parts.split(product, sizes), (3, 5), (batch, length, length))


def _multi_head(parts: _Parts) -> OperatorNode | None:
    operands = [parts.operand(position) for position in range(3)]
    if not all(operands) or not _is_plain(parts, 6, 7, 8, 9):
        return None
    specs = [parts.spec(tensor) for tensor in operands]
    if any(len(spec.shape) != 3 for spec in specs):
        return None
    batch, length, _ = specs[0].shape
    extents = (batch, length, specs[1].shape[1])
    if not _has_mask_form(parts, 4, extents):
        return None
    bias = parts.operand(3)
    if bias:
        widths = [spec.shape[-1] for spec in specs]
        if parts.spec(bias).shape != (sum(widths),):
            return None
        known = parts.graph.constants.get(bias)
        if known is None:
            biases = parts.split(bias, widths)
        else:
            ends = np.cumsum(widths)[:-1]
            biases = tuple(parts.constant("bias", part) for part in np.split(known, ends))
        operands = list(itertools.starmap(parts.sum, zip(operands, biases, strict=True)))
    return _ended(parts, operands, (4, 5), extents)


def _ended(
    parts: _Parts,
    operands: Sequence[TensorId],
    masks: tuple[int, int],
    extents: tuple[int, int, int],
) -> OperatorNode:
    """Return the attention behind the projections; masks: which keys are seen, what is added."""
    node = parts.node
    heads = int(attribute(node, "num_heads", 1))
    size = parts.spec(operands[0]).shape[-1] // heads
    seen, mask = parts.operand(masks[0]), parts.operand(masks[1])
    if seen:
        hiding = _hiding(parts, seen, extents, attribute(node, "mask_filter_value", _HIDDEN))
        mask = parts.sum(mask, hiding) if mask else hiding
    return parts.attention(
        operands,
        mask,
        q_num_heads=heads,
        kv_num_heads=heads,
        scale=attribute(node, "scale", 0.0) or 1 / math.sqrt(max(size, 1)),
        is_causal=int(attribute(node, "unidirectional", 0)),
    )


def _has_mask_form(parts: _Parts, position: int, extents: tuple[int, int, int]) -> bool:
    """Return whether a mask, if there is one, is of lengths, of keys, or of keys by queries."""
    mask = parts.operand(position)
    batch, _, keys = extents
    return not mask or parts.spec(mask).shape in ((batch,), (batch, keys), extents)


def _hiding(
    parts: _Parts, mask: TensorId, extents: tuple[int, int, int], hidden: float
) -> TensorId:
    """Return [batch, 1, 1 or length, keys]: what is added to the scores."""
    spec = parts.spec(mask)
    batch, _, keys = extents
    if len(spec.shape) == 1:
        counts = parts.reshaped(mask, (batch, 1, 1, 1))
        places = parts.constant("places", np.arange(keys, dtype=spec.dtype))
        (seen,) = parts.add("Less", (places, counts), TensorSpec(_BOOL, (batch, 1, 1, keys)))
    else:
        shape = (batch, *spec.shape[1:-1], keys)
        wide = parts.reshaped(mask, (batch, *(1,) * (4 - len(shape)), *shape[1:]))
        seen = wide
        if spec.dtype != _BOOL:
            of_bool = TensorSpec(_BOOL, parts.spec(wide).shape)
            (seen,) = parts.add("Cast", (wide,), of_bool, to=9)
    return parts.where(seen, parts.spec(parts.node.inputs[0]).dtype, hidden)


def _masked(parts: _Parts) -> OperatorNode | None:
    """Return an attention whose mask is no longer of bool."""
    mask = parts.operand(3)
    dtype = parts.spec(parts.node.inputs[0]).dtype
    if not mask or parts.spec(mask).dtype != _BOOL or dtype not in EPSILON:
        return None
    added = parts.where(mask, dtype, -math.inf)
    inputs = (*parts.node.inputs[:3], added, *parts.node.inputs[4:])
    return replace(parts.node, inputs=inputs)
