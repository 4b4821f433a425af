"""Where a model chooses: boxes above a threshold, the best five, the likeliest class.

A choice compares numbers, so that the least difference makes another one, and what is chosen says
nothing then of how far apart two computations are. What it is chosen from does, and so does what
each of them chooses from the same.
"""

from __future__ import annotations

from aegis_pipe.execution.graph import ExecutionGraph, OperatorNode
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorId

_CHOOSING = frozenset({"NonMaxSuppression", "TopK", "ArgMax", "ArgMin", "NonZero"})
_NAMES = """
Cast Compress Concat ConstantOfShape Expand Flatten Gather GatherElements GatherND Identity
OneHot Pad Range Reshape ScatterElements ScatterND Shape Size Slice Split Squeeze Tile Transpose
Unique Unsqueeze Where
And Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Not Or Xor
Abs Add Ceil Clip CumSum Div Floor Max Min Mod Mul Neg ReduceMax ReduceMin ReduceSum Round Sub
"""
_FOLLOWING = frozenset(_NAMES.split())
"""What moves, compares and scales what was chosen. Anything else may be how a model goes on."""


@record()
class Choice:
    """The last part of a graph, from what it chooses from to its outputs."""

    sources: tuple[TensorId, ...]
    """Tensors that it reads: floats, and inputs of the graph."""
    operators: tuple[OperatorNode, ...]
    outputs: tuple[TensorId, ...]
    """Those of the graph that it writes."""


def choice_of(graph: ExecutionGraph) -> Choice | None:
    """Return where a graph chooses; None if it does not, or goes on to compute from there.

    It begins at floats: what is made of them by comparisons (a mask, say) is part of the choice.
    """
    part: set[int] = set()
    written: set[TensorId] = set()
    for number, node in enumerate(graph.operators):
        if node.operator in _CHOOSING or not written.isdisjoint(node.reads):
            part.add(number)
            written.update(node.outputs)
    waiting = [tensor for number in part for tensor in graph.operators[number].reads]
    while waiting:
        tensor = waiting.pop()
        producer = graph.producers.get(tensor)
        if producer is None or producer in part or graph.spec(tensor).dtype.kind not in "iub":
            continue
        part.add(producer)
        written.update(graph.operators[producer].outputs)
        waiting += graph.operators[producer].reads
    operators = tuple([graph.operators[number] for number in sorted(part)])
    if not operators or not {node.operator for node in operators} <= _CHOOSING | _FOLLOWING:
        return None
    reads = dict.fromkeys(tensor for node in operators for tensor in node.reads)
    return Choice(
        tuple([each for each in reads if each not in written and each not in graph.constants]),
        operators,
        tuple([each for each in graph.outputs if each in written]),
    )
