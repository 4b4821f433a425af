"""Layer and RMS normalisation, spelled out, as one operator.

    d = x - mean(x);  y = d / sqrt(mean(d^2) + epsilon) * gamma + beta     LayerNormalization
    y = x / sqrt(mean(x^2) + epsilon) * gamma                              RMSNormalization

over the last axes (Ba et al. 2016; Zhang and Sennrich 2019). Casts between floats in between, as
exporters put them around the square, are what the one operator does by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aegis_pipe.execution.graph import ExecutionGraph, OperatorNode
from aegis_pipe.execution.passes.matching import (
    EPSILON,
    only_reader,
    other_operand,
    producer,
    scalar,
)
from aegis_pipe.execution.passes.rewriting import GraphEdit
from aegis_pipe.tensor import TensorId

name = "fuse_layer_normalisation"

_LAYER_OPSET = 17
_RMS_OPSET = 23
_AXES_ARE_OPERAND_OPSET = 18


@dataclass
class _Core:
    """What computes x / sqrt(mean(x^2) + epsilon), of a centred x or of a plain one."""

    x: TensorId
    axis: int
    """The first of those normalised over."""
    epsilon: float
    is_centred: bool
    nodes: list[OperatorNode]
    """The last one last."""


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Replace every such formula."""
    if "Sqrt" not in graph.kinds:
        return graph
    edit = GraphEdit(graph)
    for node in graph.operators:
        core = _core(graph, node) if node.qualified_operator == "Sqrt" else None
        if core is None:
            continue
        _take_casts(graph, core)
        gamma = _parameter(graph, core, "Mul")
        beta = _parameter(graph, core, "Add") if core.is_centred else None
        if _is_closed(graph, core.nodes) and not edit.is_replaced(*core.nodes):
            edit.replace(core.nodes, _fused(graph, edit, core, gamma, beta))
    return edit.result()


def _core(graph: ExecutionGraph, root: OperatorNode) -> _Core | None:
    """Return the formula around a square root."""
    nodes = [root]
    shifted = _before(graph, root.inputs[0], ("Add",), nodes)
    if shifted is None:
        return None
    epsilon = next((e for e in (scalar(graph, t) for t in shifted.inputs) if e is not None), None)
    variance = next((t for t in shifted.inputs if scalar(graph, t) is None), None)
    if epsilon is None or variance is None:
        return None
    mean = _before(graph, variance, ("ReduceMean",), nodes)
    square = _before(graph, mean.inputs[0], ("Pow", "Mul"), nodes) if mean else None
    if mean is None or square is None or not _is_square(graph, square):
        return None
    axis = _axis(graph, mean)
    x = _quotient(graph, root, square.inputs[0], nodes)
    if axis is None or x is None:
        return None
    if graph.spec(x).dtype not in EPSILON or graph.spec(x).dtype == np.float64:
        return None
    centre = _centre(graph, x, axis)
    core = _Core(x, axis, epsilon, bool(centre), [*centre, *nodes])
    if centre:
        core.x = centre[-1].inputs[0]
    return core


def _before(
    graph: ExecutionGraph, tensor: TensorId, operators: Sequence[str], nodes: list[OperatorNode]
) -> OperatorNode | None:
    """Return the operator, if one of these, that writes a tensor; casts in between are passed."""
    node = producer(graph, tensor)
    while node is not None and _is_float_cast(graph, node):
        nodes.insert(0, node)
        node = producer(graph, node.inputs[0])
    if node is None or node.qualified_operator not in operators:
        return None
    nodes.insert(0, node)
    return node


def _is_float_cast(graph: ExecutionGraph, node: OperatorNode | None) -> bool:
    return (
        node is not None
        and node.qualified_operator == "Cast"
        and graph.spec(node.inputs[0]).dtype in EPSILON
        and graph.spec(node.outputs[0]).dtype in EPSILON
    )


def _is_square(graph: ExecutionGraph, node: OperatorNode) -> bool:
    if node.operator == "Mul":
        return node.inputs[0] == node.inputs[1]
    return scalar(graph, node.inputs[1]) == 2


def _axis(graph: ExecutionGraph, mean: OperatorNode) -> int | None:
    """Return the first of the axes of a mean if they are the last ones and are kept."""
    rank = len(graph.spec(mean.inputs[0]).shape)
    axes = mean.attributes.get("axes")
    if mean.opset >= _AXES_ARE_OPERAND_OPSET:
        known = graph.constants.get(mean.inputs[1]) if len(mean.inputs) > 1 else None
        axes = None if known is None else tuple(known.reshape(-1).tolist())
    if not isinstance(axes, tuple) or not axes or mean.attributes.get("keepdims", 1) != 1:
        return None
    resolved = sorted(int(axis) % rank for axis in axes)
    return resolved[0] if resolved == list(range(resolved[0], rank)) else None


def _quotient(
    graph: ExecutionGraph, root: OperatorNode, squared: TensorId, nodes: list[OperatorNode]
) -> TensorId | None:
    """Return what is divided by the root: the squared tensor, before any cast. Adds the nodes."""
    casts: dict[TensorId, list[OperatorNode]] = {squared: []}
    while _is_float_cast(graph, caster := producer(graph, squared)):
        assert caster is not None
        casts[caster.inputs[0]] = [*casts[squared], caster]
        squared = caster.inputs[0]
    divisor = root.outputs[0]
    reader = only_reader(graph, divisor)
    while reader is not None and _is_float_cast(graph, reader):
        nodes.append(reader)
        divisor = reader.outputs[0]
        reader = only_reader(graph, divisor)
    if reader is not None and _is_reciprocal(graph, reader):
        nodes.append(reader)
        divisor = reader.outputs[0]
        reader = only_reader(graph, divisor)
        operator = "Mul"
    else:
        operator = "Div"
    if reader is None or reader.qualified_operator != operator:
        return None
    x = other_operand(reader, divisor)
    if x not in casts or (operator == "Div" and reader.inputs[0] != x):
        return None
    nodes[:] = [*casts[x], *nodes, reader]
    return x


def _is_reciprocal(graph: ExecutionGraph, node: OperatorNode) -> bool:
    if node.qualified_operator == "Reciprocal":
        return True
    return node.qualified_operator == "Div" and scalar(graph, node.inputs[0]) == 1


def _centre(graph: ExecutionGraph, tensor: TensorId, axis: int) -> list[OperatorNode]:
    """Return the mean and the difference that make a tensor of mean 0; nothing if they do not."""
    difference = producer(graph, tensor)
    if difference is None or difference.qualified_operator != "Sub":
        return []
    x, subtracted = difference.inputs
    mean = producer(graph, subtracted)
    if mean is None or mean.qualified_operator != "ReduceMean" or mean.inputs[0] != x:
        return []
    return [mean, difference] if _axis(graph, mean) == axis else []


def _take_casts(graph: ExecutionGraph, core: _Core) -> None:
    """Take in a cast of x to a wider float, and that of the result back."""
    before = producer(graph, core.x)
    after = only_reader(graph, core.nodes[-1].outputs[0])
    if before is None or after is None:
        return
    if not (_is_float_cast(graph, before) and _is_float_cast(graph, after)):
        return
    narrow = graph.spec(before.inputs[0]).dtype
    widens = EPSILON[narrow] > EPSILON[graph.spec(core.x).dtype]
    if widens and narrow == graph.spec(after.outputs[0]).dtype:
        core.x = before.inputs[0]
        core.nodes = [before, *core.nodes, after]


def _parameter(graph: ExecutionGraph, core: _Core, operator: str) -> TensorId | None:
    """Return what the result so far is multiplied by, or what is added; take the operator in."""
    result = core.nodes[-1].outputs[0]
    reader = only_reader(graph, result)
    if reader is None or reader.qualified_operator != operator:
        return None
    tensor = other_operand(reader, result)
    data, parameter = graph.spec(core.x), graph.spec(tensor)
    shape = data.shape[core.axis :]
    ones = len(parameter.shape) - len(shape)
    fits = parameter.shape == (1,) * ones + shape and (not ones or tensor in graph.constants)
    if not fits or graph.spec(reader.outputs[0]) != data or parameter.dtype != data.dtype:
        return None
    core.nodes.append(reader)
    return tensor


def _is_closed(graph: ExecutionGraph, nodes: Sequence[OperatorNode]) -> bool:
    """Return whether only the last one's result is needed elsewhere."""
    names = {node.name for node in nodes}
    inner = [tensor for node in nodes[:-1] for tensor in node.outputs]
    readers = {graph.operators[i].name for tensor in inner for i in graph.consumers.get(tensor, ())}
    return readers <= names and not set(inner).intersection(graph.outputs)


def _fused(
    graph: ExecutionGraph,
    edit: GraphEdit,
    core: _Core,
    gamma: TensorId | None,
    beta: TensorId | None,
) -> OperatorNode:
    last, spec = core.nodes[-1], graph.spec(core.x)
    shape = spec.shape[core.axis :]

    def parameter(tensor: TensorId) -> TensorId:
        if graph.spec(tensor).shape == shape:
            return tensor
        return edit.constant(f"{tensor}.flat", graph.constants[tensor].reshape(shape))

    scale = parameter(gamma) if gamma else edit.constant("ones", np.ones(shape, spec.dtype))
    return OperatorNode(
        last.name,
        "LayerNormalization" if core.is_centred else "RMSNormalization",
        "",
        _LAYER_OPSET if core.is_centred else _RMS_OPSET,
        {"axis": core.axis, "epsilon": core.epsilon},
        (core.x, scale, *((parameter(beta),) if beta else ())),
        last.outputs,
    )
