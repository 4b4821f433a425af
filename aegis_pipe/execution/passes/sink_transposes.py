"""Fewer changes of layout: transposes move down until they meet and merge, or cancel.

* a transpose of a transpose is one transpose, a reshape of a reshape one reshape
* a transpose that moves only axes of size 1 is a reshape, which moves no bytes
* so are a transpose, a reshape and a transpose that leave all bytes where they were
* f(T(a), T(b)) = T(f(a, b)) for an elementwise f, constants being transposed now; done where it
  saves a transpose there, or leads one to another transpose further down
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from aegis_pipe.execution.graph import ExecutionGraph, OperatorNode
from aegis_pipe.execution.passes import dead_code
from aegis_pipe.execution.passes.matching import producer
from aegis_pipe.execution.passes.rewriting import GraphEdit
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorId, TensorSpec

name = "sink_transposes"

_ROUNDS_MAX = 64
"""Each round moves a transpose by one operator."""

_RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_MOVERS = _RESHAPES | {"Transpose"}
_NAMES = """
Abs Acos Acosh Add And Asin Asinh Atan Atanh Cast Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp
Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish LeakyRelu Less LessOrEqual Log Max Mean
Min Mish Mod Mul Neg Not Or Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh Softplus Softsign
Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor com.microsoft.FastGelu com.microsoft.Gelu
"""
ELEMENTWISE = frozenset(_NAMES.split())
"""Operators that do not care about the order of dimensions."""


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Repeat until nothing moves."""
    if graph.kinds.isdisjoint(_MOVERS):
        return graph
    for _ in range(_ROUNDS_MAX):
        edit = GraphEdit(graph)
        if not _round(graph, edit):
            break
        graph = dead_code.run(edit.result())
    return graph


def _round(graph: ExecutionGraph, edit: GraphEdit) -> bool:
    """Change what can be changed at once; return whether anything was."""
    changed = False
    for node in graph.operators:
        if edit.is_replaced(node):
            continue
        if node.qualified_operator in _RESHAPES:
            changed |= _merge_reshapes(graph, edit, node)
        elif node.qualified_operator == "Transpose":
            changed |= _simplify(graph, edit, node)
        elif node.qualified_operator in ELEMENTWISE:
            changed |= _sink(graph, edit, node)
    return changed


def _merge_reshapes(graph: ExecutionGraph, edit: GraphEdit, node: OperatorNode) -> bool:
    before = producer(graph, node.inputs[0])
    if before is None or before.qualified_operator not in _RESHAPES:
        return False
    return _reshape(graph, edit, node, before.inputs[0])


def _reshape(graph: ExecutionGraph, edit: GraphEdit, node: OperatorNode, source: TensorId) -> bool:
    """Put a Reshape of another tensor in the place of a node."""
    result = node.outputs[0]
    shape = graph.spec(result).shape
    if 0 in shape:
        return False
    edit.replace((node,), edit.reshape(node.name, node.opset, source, result, shape))
    return True


def _permutation(graph: ExecutionGraph, node: OperatorNode) -> tuple[int, ...]:
    rank = len(graph.spec(node.inputs[0]).shape)
    axes = node.attributes.get("perm") or tuple(range(rank))[::-1]
    assert isinstance(axes, tuple), f"{node.name}: perm is {axes!r}"
    return tuple(map(int, axes))


def _simplify(graph: ExecutionGraph, edit: GraphEdit, node: OperatorNode) -> bool:
    """Merge a transpose with the one before it, or make a reshape of it."""
    source = graph.spec(node.inputs[0]).shape
    axes = _permutation(graph, node)
    moved = [axis for axis in axes if source[axis] != 1]
    if moved == sorted(moved):
        return _reshape(graph, edit, node, node.inputs[0])
    before = producer(graph, node.inputs[0])
    if before is not None and before.qualified_operator in _RESHAPES:
        return _undo(graph, edit, node, axes, before)
    if before is None or before.qualified_operator != "Transpose":
        return False
    first = _permutation(graph, before)
    perm = tuple([first[axis] for axis in axes])
    edit.replace((node,), replace(node, inputs=before.inputs, attributes={"perm": perm}))
    return True


def _undo(
    graph: ExecutionGraph,
    edit: GraphEdit,
    node: OperatorNode,
    axes: Sequence[int],
    reshape: OperatorNode,
) -> bool:
    """Make a reshape of a transpose that undoes the one ahead of a reshape."""
    first = producer(graph, reshape.inputs[0])
    if first is None or first.qualified_operator != "Transpose":
        return False
    factors = _common_factors(graph.spec(reshape.inputs[0]).shape, graph.spec(node.inputs[0]).shape)
    if factors is None:
        return False
    source = _permutation(graph, first)
    # Where the factors of the result come from, axis by axis, each with its place among all.
    order = [
        (source[outer], place)
        for axis in axes
        for place, (outer, inner) in enumerate(factors)
        if inner == axis
    ]
    return order == sorted(order) and _reshape(graph, edit, node, first.inputs[0])


def _common_factors(first: Sequence[int], second: Sequence[int]) -> list[tuple[int, int]] | None:
    """Return the axes in both shapes of each factor that they are made of, in order.

    None if no factors make both up, as of [2, 3] and [3, 2].
    """
    if 0 in first:
        return None
    factors = []
    rest = [
        [(axis, size) for axis, size in enumerate(each) if size > 1] for each in (first, second)
    ]
    while rest[0]:
        (outer, size), (inner, other) = rest[0].pop(0), rest[1].pop(0)
        factor = min(size, other)
        if size % factor or other % factor:
            return None
        factors.append((outer, inner))
        if size > factor:
            rest[0].insert(0, (outer, size // factor))
        if other > factor:
            rest[1].insert(0, (inner, other // factor))
    return factors


@record(eq=True)
class _Operands:
    """Operands of an elementwise operator whose results could be transposed instead."""

    axes: tuple[int, ...]
    transposes: tuple[OperatorNode, ...]


def _sink(graph: ExecutionGraph, edit: GraphEdit, node: OperatorNode) -> bool:
    operands = _operands(graph, node)
    if operands is None or edit.is_replaced(*operands.transposes):
        return False
    if len(operands.transposes) < 2 and not _meets_another(graph, node, operands.axes):
        return False
    first = operands.transposes[0]
    inverse = tuple(np.argsort(operands.axes).tolist())
    spec = graph.spec(node.outputs[0])
    shape = tuple([spec.shape[axis] for axis in inverse])
    inner = edit.tensor(f"{node.outputs[0]}.untransposed", TensorSpec(spec.dtype, shape))
    sources = {one.outputs[0]: one.inputs[0] for one in operands.transposes}
    inputs = tuple(
        [
            sources.get(tensor) or _untransposed(graph, edit, tensor, inverse)
            for tensor in node.inputs
        ]
    )
    edit.replace(
        (*operands.transposes, node),
        replace(node, inputs=inputs, outputs=(inner,)),
        replace(first, inputs=(inner,), outputs=node.outputs, attributes={"perm": operands.axes}),
    )
    return True


def _operands(
    graph: ExecutionGraph, node: OperatorNode, replacing: TensorId | None = None
) -> _Operands | None:
    """Return the operands if all are constants or transposes alike that nobody else reads.

    `replacing` is taken for such a transpose already.
    """
    if node.qualified_operator not in ELEMENTWISE:
        return None
    rank = len(graph.spec(node.outputs[0]).shape)
    transposes: dict[str, OperatorNode] = {}
    for tensor in node.inputs:
        if not tensor or tensor == replacing:
            continue
        before = producer(graph, tensor)
        if tensor in graph.constants and len(graph.spec(tensor).shape) <= rank:
            continue
        if before is None or before.qualified_operator != "Transpose":
            return None
        # A node that reads it twice is one reader all the same.
        is_shared = len(graph.consumers.get(tensor, ())) > 1 or tensor in graph.outputs
        if is_shared or len(graph.spec(tensor).shape) != rank:
            return None
        transposes[before.name] = before
    axes = {_permutation(graph, one) for one in transposes.values()}
    if len(axes) > 1 or (not axes and replacing is None):
        return None
    return _Operands(next(iter(axes), ()), tuple(transposes.values()))


def _meets_another(graph: ExecutionGraph, node: OperatorNode, axes: Sequence[int]) -> bool:
    """Return whether a transpose that sinks through `node` reaches another one below."""
    while True:
        tensor = node.outputs[0]
        consumers = graph.consumers.get(tensor, ())
        if len(consumers) != 1 or tensor in graph.outputs:
            return False
        node = graph.operators[consumers[0]]
        if node.qualified_operator == "Transpose":
            return True
        operands = _operands(graph, node, tensor)
        same_rank = len(graph.spec(node.outputs[0]).shape) == len(axes)
        if operands is None or not same_rank or operands.axes not in ((), axes):
            return False
        if operands.transposes:
            return True


def _untransposed(
    graph: ExecutionGraph, edit: GraphEdit, tensor: TensorId, inverse: tuple[int, ...]
) -> TensorId:
    """Return a constant that broadcasts before the transpose as this one did after it."""
    if not tensor or graph.spec(tensor).element_count == 1:
        return tensor
    array = graph.constants[tensor]
    aligned = array.reshape((1,) * (len(inverse) - array.ndim) + array.shape)
    return edit.constant(f"{tensor}.untransposed", np.ascontiguousarray(aligned.transpose(inverse)))
