"""What passes share to look through operators that move no bytes.

A chain of reshapes, transposes and slices selects elements of a dense tensor. A dimension is kept
as the loops it consists of, outermost first: a reshape only regroups loops, at most splitting one,
so that dimensions that were merged and are taken apart again are seen through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from aegis_pipe.execution.graph import ExecutionGraph, OperatorNode
from aegis_pipe.execution.passes.matching import attribute, only_reader, producer, scalar
from aegis_pipe.tensor import TensorId

_RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_VIEWS = _RESHAPES | {"Split", "Transpose"}

Step = tuple[OperatorNode, TensorId]
"""An operator, and which of its results the chain goes on with."""


class View(NamedTuple):
    """Elements of a dense tensor, and a factor they are multiplied by."""

    base: TensorId
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements; 0 for dimensions of one element."""
    offset: int
    factor: float


def views(graph: ExecutionGraph, tensor: TensorId) -> list[View]:
    """Return the tensor as a view of itself, then of what it is made from, nearest first."""
    found: list[View] = []
    chain: list[Step] = []
    factor = 1.0
    base = tensor
    while True:
        view = _played(graph, base, chain, factor)
        if view is not None:
            found.append(view)
        node = producer(graph, base)
        if node is None:
            return found
        scale = _factor(graph, node)
        if scale is not None:
            base, by = scale
            factor *= by
        elif _is_view(graph, node):
            chain.insert(0, (node, base))
            base = node.inputs[0]
        else:
            return found


def dense(graph: ExecutionGraph, tensor: TensorId) -> View:
    """Return a tensor as a view of itself."""
    itself = _played(graph, tensor, [], 1.0)
    assert itself is not None
    return itself


def written_through(graph: ExecutionGraph, tensor: TensorId) -> tuple[View, list[OperatorNode]]:
    """Return where a tensor's elements end up behind transposes, and the operators up to there.

    Only operators count that read what nobody else reads; reshapes only with one more transpose.
    """
    best: tuple[View, list[OperatorNode]] = (dense(graph, tensor), [])
    chain: list[OperatorNode] = []
    last = tensor
    while True:
        node = only_reader(graph, last)
        if node is None or node.qualified_operator not in {*_RESHAPES, "Transpose"}:
            return best
        chain.append(node)
        last = node.outputs[0]
        view = _unplayed(graph, chain) if node.operator == "Transpose" else None
        if view is not None:
            best = (view, list(chain))


class _Loop(NamedTuple):
    extent: int
    stride: int


_Dimension = tuple[_Loop, ...]


class _Loops(NamedTuple):
    """The loops of every dimension, and the offset of the first element."""

    dimensions: tuple[_Dimension, ...]
    offset: int = 0

    @classmethod
    def dense(cls, shape: Sequence[int]) -> _Loops:
        """Return those of a dense tensor."""
        dimensions: list[_Dimension] = []
        stride = 1
        for extent in reversed(shape):
            dimensions.append((_Loop(extent, stride),))
            stride *= extent
        return cls(tuple(reversed(dimensions)))

    def transposed(self, axes: Sequence[int]) -> _Loops:
        """Reorder the dimensions."""
        return self._replace(dimensions=tuple([self.dimensions[axis] for axis in axes]))

    def reshaped(self, shape: Sequence[int]) -> _Loops | None:
        """Regroup the loops; None if their extents do not fit."""
        left = [loop for dimension in self.dimensions for loop in dimension if loop.extent != 1]
        left.reverse()
        dimensions = []
        for extent in shape:
            dimension: list[_Loop] = []
            while extent > 1:
                loop = left.pop()
                if extent % loop.extent == 0:
                    dimension.append(loop)
                    extent //= loop.extent
                elif loop.extent % extent == 0:
                    inner = loop.extent // extent
                    dimension.append(_Loop(extent, loop.stride * inner))
                    left.append(_Loop(inner, loop.stride))
                    extent = 1
                else:
                    return None
            dimensions.append(tuple(dimension))
        return self._replace(dimensions=tuple(dimensions))

    def part(self, axis: int, start: int, size: int) -> _Loops | None:
        """Take a stretch of a dimension; None if it is no single loop."""
        loop = _merged(self.dimensions[axis])
        if loop is None:
            return None
        dimensions = list(self.dimensions)
        dimensions[axis] = (_Loop(size, loop.stride),)
        return _Loops(tuple(dimensions), self.offset + start * loop.stride)


def _merged(dimension: _Dimension) -> _Loop | None:
    """Return a dimension as one loop, if it is one."""
    whole = _Loop(1, 0)
    for loop in reversed(dimension):
        if loop.extent == 1:
            continue
        if whole.extent == 1:
            whole = loop
        elif loop.stride == whole.extent * whole.stride:
            whole = _Loop(loop.extent * whole.extent, whole.stride)
        else:
            return None
    return whole


def _played(
    graph: ExecutionGraph, base: TensorId, chain: Sequence[Step], factor: float
) -> View | None:
    loops: _Loops | None = _Loops.dense(graph.spec(base).shape)
    for node, taken in chain:
        loops = loops and _apply(graph, node, taken, loops)
    return loops and _view(base, loops, factor)


def _unplayed(graph: ExecutionGraph, chain: Sequence[OperatorNode]) -> View | None:
    """Return the operand of the chain's first operator as a view of the last one's result."""
    last = chain[-1].outputs[0]
    loops: _Loops | None = _Loops.dense(graph.spec(last).shape)
    for node in reversed(chain):
        if loops is None:
            return None
        if node.operator == "Transpose":
            axes = _permutation(node, len(loops.dimensions))
            loops = loops.transposed([axes.index(axis) for axis in range(len(axes))])
        else:
            loops = loops.reshaped(graph.spec(node.inputs[0]).shape)
    return loops and _view(last, loops, 1.0)


def _view(base: TensorId, loops: _Loops, factor: float) -> View | None:
    merged = [_merged(dimension) for dimension in loops.dimensions]
    whole = [loop for loop in merged if loop is not None]
    if len(whole) < len(merged):
        return None
    shape, strides = zip(*whole, strict=True) if whole else ((), ())
    return View(base, shape, strides, loops.offset, factor)


def _is_view(graph: ExecutionGraph, node: OperatorNode) -> bool:
    if node.qualified_operator == "Gather":
        return scalar(graph, node.inputs[1]) is not None
    return node.qualified_operator in _VIEWS


def _apply(
    graph: ExecutionGraph, node: OperatorNode, taken: TensorId, loops: _Loops
) -> _Loops | None:
    shape = graph.spec(taken).shape
    match node.operator:
        case "Transpose":
            return loops.transposed(_permutation(node, len(loops.dimensions)))
        case "Gather":
            return _gathered(graph, node, loops)
        case "Split":
            return _split(graph, node, taken, loops)
    return loops.reshaped(shape)


def _split(
    graph: ExecutionGraph, node: OperatorNode, taken: TensorId, loops: _Loops
) -> _Loops | None:
    if not all(node.outputs):
        return None
    axis = int(attribute(node, "axis", 0))
    sizes = [graph.spec(tensor).shape[axis] for tensor in node.outputs]
    place = node.outputs.index(taken)
    return loops.part(axis, sum(sizes[:place]), sizes[place])


def _gathered(graph: ExecutionGraph, node: OperatorNode, loops: _Loops) -> _Loops | None:
    index, axis = scalar(graph, node.inputs[1]), int(attribute(node, "axis", 0))
    extent = graph.spec(node.inputs[0]).shape[axis]
    if index is None or not -extent <= index < extent:
        return None
    part = loops.part(axis, int(index) % extent, 1)
    # The index has a rank of its own: 0, or that of an array of one element.
    return part and part.reshaped(graph.spec(node.outputs[0]).shape)


def _permutation(node: OperatorNode, rank: int) -> tuple[int, ...]:
    axes = node.attributes.get("perm") or tuple(range(rank))[::-1]
    assert isinstance(axes, tuple), f"{node.name}: perm is {axes!r}"
    return tuple(map(int, axes))


def _factor(graph: ExecutionGraph, node: OperatorNode) -> tuple[TensorId, float] | None:
    """Return what a scalar multiplies or divides, and by how much."""
    if node.qualified_operator not in ("Mul", "Div"):
        return None
    first, second = node.inputs
    by = scalar(graph, second)
    if by is None and node.operator == "Mul":
        first, by = second, scalar(graph, first)
    if not by or graph.spec(first) != graph.spec(node.outputs[0]):
        return None
    return first, by if node.operator == "Mul" else 1 / by
