"""The immutable graph that everything after loading works on.

An `ExecutionGraph` is a directed acyclic graph of operators in ONNX's vocabulary. All shapes and
dtypes are known: what `ModelLoader` can not determine at load is an error there. Passes take a
graph and return a new one.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from aegis_pipe.errors import InvalidModelError
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorId, TensorSpec

NO_TENSOR = TensorId("")
"""Stands for an optional operand or result that is left out."""


@record()
class Subgraph:
    """A body of `If`, `Loop` or `Scan`, kept as serialised ONNX for the reference kernel."""

    serialised: bytes
    captures: tuple[TensorId, ...]
    """Tensors of the enclosing graph that the body reads."""


GraphAttribute = (
    int | float | str | bytes | tuple[int | float | str | bytes, ...] | np.ndarray | Subgraph
)


@record()
class OperatorNode:
    """One operator of the graph, as the model states it."""

    name: str
    """Unique in its graph; the model's own name where it has a unique one."""
    operator: str
    domain: str
    """Empty for ai.onnx."""
    opset: int
    """Opset version of `domain` that the model imports; gives the operator its meaning."""
    attributes: Mapping[str, GraphAttribute]
    inputs: tuple[TensorId, ...]
    outputs: tuple[TensorId, ...]
    reads: tuple[TensorId, ...] = field(init=False, repr=False)
    """Tensors it reads: the inputs that are there, and what its bodies capture."""
    qualified_operator: str = field(init=False, repr=False)
    """`Conv`, or `com.microsoft.Gelu` for other domains than ai.onnx."""

    def __post_init__(self) -> None:
        # Every pass asks this of every node: it is settled once.
        reads = self.inputs
        if NO_TENSOR in reads:
            reads = tuple([tensor for tensor in reads if tensor])
        for value in self.attributes.values():
            if type(value) is Subgraph:
                reads += value.captures
        domain, operator = self.domain, self.operator
        object.__setattr__(self, "reads", reads)
        object.__setattr__(
            self, "qualified_operator", f"{domain}.{operator}" if domain else operator
        )


class _Edges(NamedTuple):
    """Who writes and reads the tensors of a graph, as indices of its operators."""

    producers: Mapping[TensorId, int]
    consumers: Mapping[TensorId, Sequence[int]]


@dataclass(frozen=True, slots=True, eq=False)
class ExecutionGraph:
    """Operators, tensors and their order. Build with `ExecutionGraph.build`."""

    name: str
    operators: tuple[OperatorNode, ...]
    """In topological order: `topological_order` is 0..n-1."""
    specs: Mapping[TensorId, TensorSpec]
    constants: Mapping[TensorId, np.ndarray]
    inputs: tuple[TensorId, ...]
    outputs: tuple[TensorId, ...]
    """The model's own, then the lengths of those that are as long as the data says."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    lengths: Mapping[TensorId, Mapping[int, TensorId]] = field(default_factory=dict)
    """Outputs planned at their most: by axis, the output that holds the true length."""
    _found: dict[str, Any] = field(init=False, repr=False, default_factory=dict)
    """What was asked of it before; of many a pass's result nobody asks anything."""

    @property
    def producers(self) -> Mapping[TensorId, int]:
        """Index of the operator that writes a tensor; inputs and constants have none."""
        return self._connected.producers

    @property
    def consumers(self) -> Mapping[TensorId, Sequence[int]]:
        """Indices of the operators that read a tensor, ascending, each once; only if any do."""
        return self._connected.consumers

    @property
    def kinds(self) -> Set[str]:
        """The qualified operators that there are."""
        if "kinds" not in self._found:
            self._found["kinds"] = frozenset([node.qualified_operator for node in self.operators])
        kinds: Set[str] = self._found["kinds"]
        return kinds

    @property
    def _connected(self) -> _Edges:
        if "edges" not in self._found:
            self._found["edges"] = _connect(self.operators)
        edges: _Edges = self._found["edges"]
        return edges

    @property
    def results(self) -> tuple[TensorId, ...]:
        """The model's own outputs."""
        counts = {length for axes in self.lengths.values() for length in axes.values()}
        return tuple(tensor for tensor in self.outputs if tensor not in counts)

    @property
    def topological_order(self) -> tuple[int, ...]:
        """Indices of `operators` in an order that respects every edge."""
        return tuple(range(len(self.operators)))

    @property
    def constant_bytes(self) -> int:
        """Bytes of all constants."""
        return sum(array.nbytes for array in self.constants.values())

    def spec(self, tensor: TensorId) -> TensorSpec:
        """Return a tensor's dtype and shape."""
        return self.specs[tensor]

    def without_weights(self) -> ExecutionGraph:
        """Return the graph with no constants but scalars: it can be kept without its memory."""
        scalars = {name: array.copy() for name, array in self.constants.items() if array.size == 1}
        return replace(self, constants=MappingProxyType(scalars))

    @classmethod
    def build(
        cls,
        *,
        name: str,
        operators: Sequence[OperatorNode],
        specs: Mapping[TensorId, TensorSpec],
        constants: Mapping[TensorId, np.ndarray],
        inputs: Sequence[TensorId],
        outputs: Sequence[TensorId],
        metadata: Mapping[str, str] | None = None,
        lengths: Mapping[TensorId, Mapping[int, TensorId]] | None = None,
    ) -> ExecutionGraph:
        """Check the parts, order the operators and connect the tensors.

        The order is deterministic: of the operators that could come next, the one given first.
        Raises InvalidModelError for a tensor written twice, read but never written, or a cycle.
        """
        ordered = order_operators(operators, {*inputs, *constants}, reads_of)
        missing = [tensor for tensor in outputs if tensor not in specs]
        if missing:
            raise InvalidModelError(f"output `{missing[0]}` is written by no operator")
        return cls(
            name=name,
            operators=tuple(ordered),
            specs=MappingProxyType(dict(specs)),
            constants=MappingProxyType(dict(constants)),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            metadata=MappingProxyType(dict(metadata or {})),
            lengths=MappingProxyType(dict(lengths or {})),
        )


class Ordered(Protocol):
    """What can be put in order: an operator of a graph, or a node of a file."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def qualified_operator(self) -> str:
        """Its operator with the domain."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """What it writes; empty names count for nothing."""
        ...


_AnyOrdered = TypeVar("_AnyOrdered", bound=Ordered)


def order_operators(
    operators: Sequence[_AnyOrdered],
    available: Set[str],
    reads: Callable[[_AnyOrdered], Sequence[str]],
) -> list[_AnyOrdered]:
    """Sort topologically (Kahn 1962), ties broken by the given order.

    Raises InvalidModelError for a tensor written twice, read but never written, or a cycle.
    """
    if _is_ordered(operators, available, reads):
        return list(operators)
    writer: dict[str, int] = {}
    for index, node in enumerate(operators):
        for tensor in filter(None, node.outputs):
            if tensor in writer or tensor in available:
                raise InvalidModelError(f"tensor `{tensor}` is written twice", context=node.name)
            writer[tensor] = index
    waiting = [0] * len(operators)
    readers: list[list[int]] = [[] for _ in operators]
    for index, node in enumerate(operators):
        for tensor in set(reads(node)) - available:
            if tensor not in writer:
                raise InvalidModelError(
                    f"input `{tensor}` is neither a graph input, a constant nor an output",
                    context=f"node `{node.name}` ({node.qualified_operator})",
                )
            waiting[index] += 1
            readers[writer[tensor]].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    ordered: list[_AnyOrdered] = []
    while ready:
        index = heapq.heappop(ready)
        ordered.append(operators[index])
        for reader in readers[index]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    if len(ordered) < len(operators):
        stuck = next(node for node, count in zip(operators, waiting, strict=True) if count)
        raise InvalidModelError(f"the graph has a cycle through node `{stuck.name}`")
    return ordered


def _is_ordered(
    operators: Sequence[_AnyOrdered],
    available: Set[str],
    reads: Callable[[_AnyOrdered], Sequence[str]],
) -> bool:
    """Return whether operators are in order already and sound, as nearly all are."""
    known = set(available)
    for node in operators:
        if not known.issuperset(reads(node)):
            return False
        for tensor in node.outputs:
            if tensor in known:
                return False
            if tensor:
                known.add(tensor)
    return True


def captures_of(node: OperatorNode) -> tuple[TensorId, ...]:
    """Tensors of the enclosing graph that the node's bodies read."""
    captured: tuple[TensorId, ...] = ()
    for value in node.attributes.values():
        if type(value) is Subgraph:
            captured += value.captures
    return captured


def reads_of(node: OperatorNode) -> tuple[TensorId, ...]:
    """Tensors a node reads: its inputs and what its bodies capture."""
    return node.reads


def _connect(operators: Sequence[OperatorNode]) -> _Edges:
    producers = {tensor: index for index, node in enumerate(operators) for tensor in node.outputs}
    producers.pop(NO_TENSOR, None)
    consumers: dict[TensorId, list[int]] = {}
    for index, node in enumerate(operators):
        for tensor in node.reads:
            readers = consumers.get(tensor)
            if readers is None:
                consumers[tensor] = [index]
            elif readers[-1] != index:
                readers.append(index)
    return _Edges(producers, consumers)
