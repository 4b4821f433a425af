"""Fold what is done to each channel of a linear operator's result into its weights.

A batch normalisation at inference, and adding, subtracting, multiplying or dividing by constants
that vary by channel only, are all y = x * scale + shift. Following a Conv, ConvTranspose or Gemm
with constant weights they become part of weights and bias (Jacob et al. 2018, section 3.2);
following a BatchNormalization that stays, part of its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from aegis_pipe.execution.graph import NO_TENSOR, ExecutionGraph, OperatorNode
from aegis_pipe.execution.native import scaled_rows
from aegis_pipe.execution.passes.matching import (
    attribute,
    only_reader,
    other_operand,
    per_channel,
)
from aegis_pipe.execution.passes.rewriting import GraphEdit
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorId

name = "fold_batch_normalisation"

_LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "BatchNormalization"})
_DTYPES = frozenset(map(np.dtype, (np.float32, np.float64)))
"""In half precision, weights would be rounded where the model did not round them."""


@record()
class _Affine:
    """x * scale + shift, each float64[channels]."""

    scale: np.ndarray
    shift: np.ndarray

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    def then(self, after: _Affine) -> _Affine:
        return _Affine(self.scale * after.scale, self.shift * after.scale + after.shift)


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Fold every run of such operators into the linear operator before it."""
    if graph.kinds.isdisjoint(_LINEAR):
        return graph
    edit = GraphEdit(graph)
    for node in graph.operators:
        if edit.is_replaced(node) or not _is_foldable(graph, node):
            continue
        affine, followers = _following(graph, node)
        arrays = _folded(graph, node, affine) if followers else None
        if arrays:
            edit.replace((node, *followers), _with_operands(edit, node, arrays, followers[-1]))
    return edit.result()


def _with_operands(
    edit: GraphEdit, node: OperatorNode, arrays: Mapping[int, np.ndarray], last: OperatorNode
) -> OperatorNode:
    inputs = [*node.inputs, *[NO_TENSOR] * (max(arrays) + 1 - len(node.inputs))]
    for position, array in arrays.items():
        inputs[position] = edit.constant(f"{last.outputs[0]}.{position}", array)
    beta = {"beta": 1.0} if node.operator == "Gemm" else {}
    return replace(
        node,
        name=last.name,
        attributes={**node.attributes, **beta},
        inputs=tuple(inputs),
        outputs=last.outputs,
    )


def _is_foldable(graph: ExecutionGraph, node: OperatorNode) -> bool:
    if node.qualified_operator not in _LINEAR:
        return False
    data = graph.spec(node.inputs[0])
    if data.dtype not in _DTYPES or len(data.shape) < 2:
        return False
    if node.operator == "BatchNormalization":
        return _normalisation(graph, node) is not None
    constant = all(tensor in graph.constants for tensor in node.inputs[1:] if tensor)
    return constant and _bias(graph, node) is not None


def _following(graph: ExecutionGraph, node: OperatorNode) -> tuple[_Affine, list[OperatorNode]]:
    """Return what the operators after `node` do to its channels, and these operators."""
    channels = graph.spec(node.outputs[0]).shape[1]
    total = _Affine(np.ones(channels), np.zeros(channels))
    followers: list[OperatorNode] = []
    tensor = node.outputs[0]
    while (reader := only_reader(graph, tensor)) is not None:
        step = _affine(graph, reader, tensor)
        if step is None or not step.is_finite:
            break
        total = total.then(step)
        followers.append(reader)
        tensor = reader.outputs[0]
    return total, followers


def _affine(graph: ExecutionGraph, node: OperatorNode, tensor: TensorId) -> _Affine | None:
    if node.domain or graph.spec(node.outputs[0]) != graph.spec(tensor):
        return None
    if node.operator == "BatchNormalization":
        return _normalisation(graph, node) if node.inputs[0] == tensor else None
    if node.operator not in ("Add", "Sub", "Mul", "Div"):
        return None
    constant = graph.constants.get(other_operand(node, tensor))
    values = None if constant is None else per_channel(constant, graph.spec(tensor).shape)
    if values is None:
        return None
    zeros, ones = np.zeros(values.shape), np.ones(values.shape)
    is_first = node.inputs[0] == tensor
    match node.operator:
        case "Add":
            return _Affine(ones, values)
        case "Sub":
            return _Affine(ones, -values) if is_first else _Affine(-ones, values)
        case "Mul":
            return _Affine(values, zeros)
    with np.errstate(divide="ignore"):
        return _Affine(1 / values, zeros) if is_first else None


def _normalisation(graph: ExecutionGraph, node: OperatorNode) -> _Affine | None:
    """Return what a batch normalisation does if it is one of inference by known numbers."""
    known = [graph.constants.get(tensor) for tensor in node.inputs[1:5]]
    if any(node.outputs[1:]) or node.attributes.get("training_mode", 0):
        return None
    if any(array is None or array.ndim != 1 for array in known):
        return None
    scale, bias, mean, variance = (a.astype(np.float64) for a in known if a is not None)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return _Affine(slope, bias - mean * slope)


def _bias(graph: ExecutionGraph, node: OperatorNode) -> np.ndarray | None:
    """Return a linear operator's bias as float64[channels]; None if it varies by row, too."""
    shape = graph.spec(node.outputs[0]).shape
    if len(node.inputs) < 3 or not node.inputs[2]:
        return np.zeros(shape[1])
    bias = graph.constants[node.inputs[2]]
    if node.operator != "Gemm":
        return bias.astype(np.float64)
    columns = per_channel(bias, shape)
    return None if columns is None else columns * attribute(node, "beta", 1.0)


def _folded(
    graph: ExecutionGraph, node: OperatorNode, affine: _Affine
) -> Mapping[int, np.ndarray] | None:
    """Return the new constant operands by position; None if one is not finite.

    Weights only where they change.
    """
    dtype = graph.spec(node.inputs[0]).dtype
    with np.errstate(over="ignore", invalid="ignore"):
        if node.operator == "BatchNormalization":
            scale, bias = (graph.constants[t].astype(np.float64) for t in node.inputs[1:3])
            arrays = {1: scale * affine.scale, 2: bias * affine.scale + affine.shift}
        else:
            before = _bias(graph, node)
            assert before is not None
            arrays = {}
            if len(node.inputs) > 2 or affine.shift.any():
                arrays[2] = before * affine.scale + affine.shift
        folded = {position: array.astype(dtype, copy=False) for position, array in arrays.items()}
        if not all(np.isfinite(array).all() for array in folded.values()):
            return None
        if node.operator == "BatchNormalization" or (affine.scale == 1).all():
            return folded
        weights = _scaled_weights(graph, node, affine.scale)
        return None if weights is None else {**folded, 1: weights}


def _scaled_weights(
    graph: ExecutionGraph, node: OperatorNode, scale: np.ndarray
) -> np.ndarray | None:
    """Return weights that make results so much larger; None if one is not finite."""
    weights = graph.constants[node.inputs[1]]
    if node.operator == "Conv" or (node.operator == "Gemm" and node.attributes.get("transB", 0)):
        return scaled_rows(weights, scale)
    if node.operator == "Gemm":
        factors = scale
    else:
        # ConvTranspose: [group * inputs, maps, kernel...] with maps of its own for each group.
        groups = int(attribute(node, "group", 1))
        by_map = scale.reshape(groups, -1, *(1,) * (weights.ndim - 2))
        factors = np.repeat(by_map, weights.shape[0] // groups, axis=0)
    # Products of float64, rounded once, without a copy of the weights in float64.
    scaled = np.empty_like(weights)
    np.multiply(weights, factors, out=scaled, casting="same_kind")
    return scaled if np.isfinite(scaled).all() else None
