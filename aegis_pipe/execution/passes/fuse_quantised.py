"""DequantizeLinear, an operator on floats, QuantizeLinear: one operator on the quantised tensors.

    Conv, MatMul, Gemm      sums of integers, rescaled once; their constant weights and bias stay
                            integers; without a QuantizeLinear behind, MatMul and Gemm give floats
    Add, Mul, Concat, pools, Sigmoid, LeakyRelu, Softmax     their com.microsoft.QLinear... forms
    Reshape, Transpose, MaxPool ...     themselves, on bytes, if both scales are the same

A Relu or Clip before the QuantizeLinear becomes bounds of the result's levels, and a MaxPool ahead
of it takes the largest of levels, both exactly: quantising never changes an order. An activation on
its own becomes aegis.QLinearClip. Sums of integers do not round, so results may differ from the
floats' by one level where a float sum lies at the edge between two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from aegis_pipe.execution.graph import NO_TENSOR, ExecutionGraph, GraphAttribute, OperatorNode
from aegis_pipe.execution.passes import dead_code
from aegis_pipe.execution.passes.matching import (
    CONTRIBUTED,
    attribute,
    clip_bounds,
    only_reader,
    producer,
)
from aegis_pipe.execution.passes.rewriting import GraphEdit
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorId, TensorSpec

name = "fuse_quantised"

OWN = "aegis"
"""Domain of operators that only this project's passes make."""

_EIGHT_BITS = (np.dtype(np.int8), np.dtype(np.uint8))
_MOVERS = frozenset({"Flatten", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
_UNARY = {
    "AveragePool": "QLinearAveragePool",
    "GlobalAveragePool": "QLinearGlobalAveragePool",
    "LeakyRelu": "QLinearLeakyRelu",
    "Sigmoid": "QLinearSigmoid",
    "Softmax": "QLinearSoftmax",
}
_POOL_OF_BYTES_OPSET = 12
"""The first whose MaxPool takes them."""
_PAIRS = {"Add": "QLinearAdd", "Mul": "QLinearMul"}
_BIAS_TOLERANCE = 1e-4
"""How far a bias' scale may be from the product of the other two, and be meant so."""


@record(eq=True)
class _Quantised:
    """A quantised tensor and its grid; `axis` says along which axis scales differ, if any."""

    tensor: TensorId
    scale: TensorId
    zero: TensorId
    axis: int | None


@record(eq=True)
class _End:
    """How a float result goes on: perhaps through an activation and a pool, then quantised."""

    nodes: tuple[OperatorNode, ...]
    grid: _Quantised
    """Of the result; its tensor is the result."""
    levels: tuple[int, ...]
    pool: OperatorNode | None
    """What takes the largest of the levels then, one of the nodes."""


_Made = tuple[str, tuple[TensorId, ...], dict[str, GraphAttribute]]
"""The new operator: name, inputs, attributes."""


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Replace every operator whose neighbours allow it; what nobody reads any more goes."""
    if "DequantizeLinear" not in graph.kinds:
        return dead_code.run(graph)
    edit = GraphEdit(graph)
    fuser = _Fuser(graph, edit)
    for node in graph.operators:
        rule = _RULES.get(node.qualified_operator)
        if rule is not None:
            rule(fuser, node)
    return dead_code.run(edit.result())


class _Fuser:
    """What the rules share."""

    def __init__(self, graph: ExecutionGraph, edit: GraphEdit) -> None:
        self.graph = graph
        self.edit = edit

    def input(self, tensor: TensorId) -> _Quantised | None:
        """Return what a float tensor was dequantised from, if all is known about it."""
        node = producer(self.graph, tensor)
        if node is None or node.qualified_operator != "DequantizeLinear":
            return None
        if self.graph.spec(node.inputs[0]).dtype not in _EIGHT_BITS:
            return None
        return self._grid(node, node.inputs[0])

    def end(self, node: OperatorNode, *, activations: bool = False) -> _End | None:
        """Return how the node's only result is quantised, with all that lies between."""
        between: list[OperatorNode] = []
        reader = only_reader(self.graph, node.outputs[0])
        bounds: tuple[float, float] | None = None
        if activations and reader is not None and reader.inputs[0] == node.outputs[0]:
            bounds = _bounds(self.graph, reader)
            if bounds is not None:
                between.append(reader)
                reader = only_reader(self.graph, reader.outputs[0])
        pool = reader if activations and _is_pool_of_one(reader) else None
        if pool is not None:
            between.append(pool)
            reader = only_reader(self.graph, pool.outputs[0])
        if reader is None or reader.qualified_operator != "QuantizeLinear":
            return None
        before = (between or [node])[-1].outputs[0]
        result = reader.outputs[0]
        if reader.inputs[0] != before or self.graph.spec(result).dtype not in _EIGHT_BITS:
            return None
        grid = self._grid(reader, result)
        if grid is None or grid.axis is not None:
            return None
        levels = self.levels(grid, bounds) if bounds else ()
        return _End((*between, reader), grid, levels, pool)

    def _grid(self, node: OperatorNode, levels: TensorId) -> _Quantised | None:
        scale = node.inputs[1]
        zero = node.inputs[2] if len(node.inputs) > 2 else NO_TENSOR
        known = self.graph.constants
        if scale not in known or (zero and zero not in known) or node.attributes.get("block_size"):
            return None
        if known[scale].dtype != np.float32 or known[scale].ndim > 1:
            return None
        rank = len(self.graph.spec(node.inputs[0]).shape)
        axis = None if known[scale].size == 1 else int(attribute(node, "axis", 1)) % rank
        if not zero:
            dtype = self.graph.spec(levels).dtype
            zero = self.edit.constant(f"{levels}.zero", np.zeros(known[scale].shape, dtype))
        return _Quantised(levels, scale, zero, axis)

    def value(self, tensor: TensorId) -> np.ndarray:
        """Return a constant of the graph, or one that was added."""
        known = self.graph.constants.get(tensor)
        return self.edit.added(tensor) if known is None else known

    def levels(self, grid: _Quantised, bounds: tuple[float, float]) -> tuple[int, int]:
        """Return the levels of an activation's bounds."""
        zero, scale = self.value(grid.zero), float(self.value(grid.scale).reshape(()))
        limits = np.iinfo(zero.dtype)
        low, high = (
            round(bound / scale) + int(zero.reshape(())) if math.isfinite(bound) else bound
            for bound in bounds
        )
        return int(max(low, limits.min)), int(min(high, limits.max))

    def bias(
        self, tensor: TensorId, data: _Quantised, weights: _Quantised, shape: tuple[int, ...]
    ) -> TensorId | None:
        """Return the bias as int32 on the scale of the product; None if it is not known."""
        scale = self.value(data.scale).astype(np.float64) * self.value(weights.scale)
        node = producer(self.graph, tensor)
        if node is not None and node.qualified_operator == "DequantizeLinear":
            levels = self.graph.constants.get(node.inputs[0])
            own = self.graph.constants.get(node.inputs[1])
            zero = self.graph.constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
            if levels is None or own is None or levels.dtype != np.int32:
                return None
            if zero is not None and zero.any():
                return None
            if not np.allclose(own, scale.reshape(-1), rtol=_BIAS_TOLERANCE, atol=0):
                return None
            return self._as_int32(tensor, levels, shape)
        real = self.graph.constants.get(tensor)
        if real is None:
            return None
        return self._as_int32(tensor, np.rint(real.reshape(-1) / scale.reshape(-1)), shape)

    def _as_int32(
        self, tensor: TensorId, levels: np.ndarray, shape: tuple[int, ...]
    ) -> TensorId | None:
        if levels.size != math.prod(shape) or np.abs(levels.astype(np.float64)).max() >= 2**31:
            return None
        array = np.ascontiguousarray(levels.reshape(shape).astype(np.int32))
        return self.edit.constant(f"{tensor}.levels", array)

    def replace(self, node: OperatorNode, end: _End | None, made: _Made) -> None:
        """Put the new operator in the place of the node and of what belongs to its end."""
        operator, inputs, attributes = made
        nodes = (node, *(end.nodes if end else ()))
        if self.edit.is_replaced(*nodes):
            return
        if end and end.levels:
            attributes = {**attributes, "levels": end.levels}
        is_onnx = operator in _MOVERS or operator == "QLinearMatMul"
        domain = OWN if operator == "QLinearClip" else CONTRIBUTED
        new = OperatorNode(
            name=nodes[-1].name,
            operator=operator,
            domain="" if is_onnx else domain,
            opset=node.opset if is_onnx else 1,
            attributes=attributes,
            inputs=inputs,
            outputs=(end.grid.tensor,) if end else node.outputs,
        )
        if end is None or end.pool is None:
            self.edit.replace(nodes, new)
            return
        pooled = end.grid.tensor
        spec = TensorSpec(self.graph.spec(pooled).dtype, self.graph.spec(node.outputs[0]).shape)
        levels = self.edit.tensor(f"{pooled}.unpooled", spec)
        opset = max(end.pool.opset, _POOL_OF_BYTES_OPSET)
        pool = replace(end.pool, opset=opset, inputs=(levels,), outputs=(pooled,))
        self.edit.replace(nodes, replace(new, outputs=(levels,)), pool)


def _is_pool_of_one(node: OperatorNode | None) -> bool:
    """Return whether a node takes largest values of its only operand, and tells nothing else."""
    return node is not None and node.qualified_operator == "MaxPool" and len(node.outputs) == 1


def _bounds(graph: ExecutionGraph, node: OperatorNode) -> tuple[float, float] | None:
    """Return the bounds of an activation that only clips."""
    if node.qualified_operator == "Relu":
        return 0.0, math.inf
    return clip_bounds(graph, node) if node.qualified_operator == "Clip" else None


def _parameters(*grids: _Quantised) -> tuple[TensorId, ...]:
    return tuple([tensor for grid in grids for tensor in (grid.tensor, grid.scale, grid.zero)])


def _convolution(fuser: _Fuser, node: OperatorNode) -> None:
    data, weights = fuser.input(node.inputs[0]), fuser.input(node.inputs[1])
    end = fuser.end(node, activations=True)
    if data is None or weights is None or end is None or data.axis is not None:
        return
    if weights.tensor not in fuser.graph.constants or weights.axis not in (None, 0):
        return
    inputs = (*_parameters(data, weights), end.grid.scale, end.grid.zero)
    if len(node.inputs) > 2 and node.inputs[2]:
        maps = fuser.graph.spec(weights.tensor).shape[:1]
        bias = fuser.bias(node.inputs[2], data, weights, maps)
        if bias is None:
            return
        inputs = (*inputs, bias)
    fuser.replace(node, end, ("QLinearConv", inputs, dict(node.attributes)))


def _factors(fuser: _Fuser, node: OperatorNode, columns_axis: int) -> Sequence[_Quantised]:
    """Return A and B of a product if they are quantised as its kernels take them."""
    left, right = fuser.input(node.inputs[0]), fuser.input(node.inputs[1])
    if left is None or right is None or left.axis is not None:
        return ()
    rank = len(fuser.graph.spec(right.tensor).shape)
    if rank < 2 or len(fuser.graph.spec(left.tensor).shape) < 2:
        return ()
    if right.axis is not None and (rank != 2 or right.axis != columns_axis % rank):
        return ()
    return left, right


def _matmul(fuser: _Fuser, node: OperatorNode) -> None:
    factors = _factors(fuser, node, -1)
    if not factors:
        return
    left, right = factors
    end = fuser.end(node, activations=True)
    if end is None:
        inputs = (left.tensor, right.tensor, left.scale, right.scale, left.zero, right.zero)
        fuser.replace(node, None, ("MatMulIntegerToFloat", inputs, {}))
        return
    if len(fuser.graph.spec(left.tensor).shape) == len(fuser.graph.spec(right.tensor).shape) == 2:
        _as_gemm(fuser, node, end, left, right, NO_TENSOR, {"transA": 0, "transB": 0})
        return
    if end.levels:
        return
    quantised = (*_parameters(left, right), end.grid.scale, end.grid.zero)
    fuser.replace(node, end, ("QLinearMatMul", quantised, {}))


def _gemm(fuser: _Fuser, node: OperatorNode) -> None:
    if attribute(node, "alpha", 1) != 1 or attribute(node, "transA", 0):
        return
    trans_b = int(attribute(node, "transB", 0))
    factors = _factors(fuser, node, 0 if trans_b else 1)
    if not factors:
        return
    left, right = factors
    bias: TensorId | None = NO_TENSOR
    if len(node.inputs) > 2 and node.inputs[2]:
        columns = fuser.graph.spec(node.outputs[0]).shape[1:]
        is_plain = attribute(node, "beta", 1) == 1
        bias = fuser.bias(node.inputs[2], left, right, columns) if is_plain else None
    if bias is None:
        return
    end = fuser.end(node, activations=True)
    _as_gemm(fuser, node, end, left, right, bias, {"transA": 0, "transB": trans_b})


def _as_gemm(
    fuser: _Fuser,
    node: OperatorNode,
    end: _End | None,
    left: _Quantised,
    right: _Quantised,
    bias: TensorId,
    attributes: dict[str, GraphAttribute],
) -> None:
    inputs: tuple[TensorId, ...] = (*_parameters(left, right), bias)
    if end is not None:
        inputs = (*inputs, end.grid.scale, end.grid.zero)
    fuser.replace(node, end, ("QGemm", inputs, attributes))


def _pair(fuser: _Fuser, node: OperatorNode) -> None:
    left, right = fuser.input(node.inputs[0]), fuser.input(node.inputs[1])
    end = fuser.end(node, activations=True)
    if left is None or right is None or end is None or {left.axis, right.axis} != {None}:
        return
    inputs = (*_parameters(left, right), end.grid.scale, end.grid.zero)
    fuser.replace(node, end, (_PAIRS[node.operator], inputs, {}))


def _unary(fuser: _Fuser, node: OperatorNode) -> None:
    data, end = fuser.input(node.inputs[0]), fuser.end(node)
    if data is None or end is None or data.axis is not None:
        return
    if fuser.graph.spec(data.tensor).dtype != fuser.graph.spec(end.grid.tensor).dtype:
        return
    attributes = dict(node.attributes)
    if node.operator == "Softmax":
        attributes["opset"] = node.opset
    inputs = (*_parameters(data), end.grid.scale, end.grid.zero)
    fuser.replace(node, end, (_UNARY[node.operator], inputs, attributes))


def _clip(fuser: _Fuser, node: OperatorNode) -> None:
    data, end, bounds = fuser.input(node.inputs[0]), fuser.end(node), _bounds(fuser.graph, node)
    if data is None or end is None or bounds is None or data.axis is not None:
        return
    if fuser.graph.spec(data.tensor).dtype != fuser.graph.spec(end.grid.tensor).dtype:
        return
    attributes: dict[str, GraphAttribute] = {"levels": fuser.levels(end.grid, bounds)}
    inputs = (*_parameters(data), end.grid.scale, end.grid.zero)
    fuser.replace(node, end, ("QLinearClip", inputs, attributes))


def _concat(fuser: _Fuser, node: OperatorNode) -> None:
    parts = [fuser.input(tensor) for tensor in node.inputs]
    end = fuser.end(node)
    known = [part for part in parts if part is not None and part.axis is None]
    if end is None or len(known) < len(parts):
        return
    dtypes = {fuser.graph.spec(part.tensor).dtype for part in known}
    if dtypes != {fuser.graph.spec(end.grid.tensor).dtype}:
        return
    inputs = (end.grid.scale, end.grid.zero, *_parameters(*known))
    fuser.replace(node, end, ("QLinearConcat", inputs, dict(node.attributes)))


def _mover(fuser: _Fuser, node: OperatorNode) -> None:
    data, end = fuser.input(node.inputs[0]), fuser.end(node)
    if data is None or end is None or data.axis is not None or len(node.outputs) > 1:
        return
    if fuser.graph.spec(data.tensor).dtype != fuser.graph.spec(end.grid.tensor).dtype:
        return
    if node.operator == "MaxPool" and node.opset < _POOL_OF_BYTES_OPSET:
        return
    same = ((data.scale, end.grid.scale), (data.zero, end.grid.zero))
    if all((fuser.value(one) == fuser.value(other)).all() for one, other in same):
        inputs = (data.tensor, *node.inputs[1:])
        fuser.replace(node, end, (node.operator, inputs, dict(node.attributes)))


_RULES: dict[str, Callable[[_Fuser, OperatorNode], None]] = {
    "Conv": _convolution,
    "MatMul": _matmul,
    "Clip": _clip,
    "Gemm": _gemm,
    "Relu": _clip,
    "Concat": _concat,
    **dict.fromkeys(_PAIRS, _pair),
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_MOVERS, _mover),
}
