"""A model as its file states it, in plain values.

`ModelLoader` fills these from ONNX; partial evaluation turns them into an `ExecutionGraph`.
Nothing is checked yet: names may repeat, shapes may be open or wrong, nodes may be unsorted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from aegis_pipe.errors import InvalidModelError
from aegis_pipe.execution.graph import GraphAttribute, OperatorNode, order_operators
from aegis_pipe.execution.model_file import REEXPORT
from aegis_pipe.record import record

Dimension = int | str | None
"""A size, a symbol, or nothing known."""

UNNAMED_SYMBOLS = frozenset({"", "?", "-1", "None"})
"""What exporters write for a size they have no name for; two of them need not be equal."""


@record()
class SourceValue:
    """What a file declares of a value."""

    name: str
    kind: str
    """`tensor`, or what ONNX calls it: `sequence`, `optional`, `map`, `sparse tensor`."""
    dtype: np.dtype | None
    shape: tuple[Dimension, ...] | None


@record()
class SourceNode:
    """One node; bodies of control flow are nested graphs."""

    name: str
    operator: str
    domain: str
    attributes: Mapping[str, GraphAttribute | SourceGraph]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bodies: tuple[SourceGraph, ...] = field(init=False, repr=False)
    """Its nested graphs."""
    reads: tuple[str, ...] = field(init=False, repr=False)
    """Names of the enclosing graph that it reads, also inside its bodies; each once."""
    qualified_operator: str = field(init=False, repr=False)
    """`Conv`, or `com.microsoft.Gelu` for other domains than ai.onnx."""

    def __post_init__(self) -> None:
        bodies = tuple([value for value in self.attributes.values() if type(value) is SourceGraph])
        reads = dict.fromkeys(self.inputs)
        reads.pop("", None)
        for body in bodies:
            reads.update(dict.fromkeys(free_names(body)))
        domain, operator = self.domain, self.operator
        qualified = f"{domain}.{operator}" if domain else operator
        object.__setattr__(self, "bodies", bodies)
        object.__setattr__(self, "reads", tuple(reads))
        object.__setattr__(self, "qualified_operator", qualified)

    def body(self, attribute: str) -> SourceGraph:
        """Return a nested graph. Raises InvalidModelError if it is missing."""
        body = self.attributes.get(attribute)
        if not isinstance(body, SourceGraph):
            raise InvalidModelError(
                f"attribute `{attribute}` is missing", context=describe(self), hint=REEXPORT
            )
        return body


@dataclass(frozen=True, slots=True, eq=False)
class SourceGraph:
    """Nodes with the names they read and write; inner graphs see the names around them."""

    name: str
    nodes: tuple[SourceNode, ...]
    initialisers: Mapping[str, Callable[[], np.ndarray]]
    """Constant tensors; called once, if anybody reads the value."""
    inputs: tuple[SourceValue, ...]
    outputs: tuple[str, ...]
    declared: Mapping[str, SourceValue]
    """What the file says of intermediate values and outputs; not to be trusted."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceModel:
    """A graph with the operator sets that give its nodes their meaning."""

    graph: SourceGraph
    opsets: Mapping[str, int]
    metadata: Mapping[str, str] = field(default_factory=dict)


def describe(node: SourceNode | OperatorNode) -> str:
    """Name a node in a message."""
    return f"node `{node.name}` ({node.qualified_operator})"


def bodies_of(node: SourceNode) -> tuple[SourceGraph, ...]:
    """Nested graphs of a node."""
    return node.bodies


def source_reads(node: SourceNode) -> tuple[str, ...]:
    """Names of the enclosing graph that a node reads, also inside its bodies; each once."""
    return node.reads


def free_names(graph: SourceGraph) -> tuple[str, ...]:
    """Names a nested graph reads from around it, in order of first use."""
    local = {value.name for value in graph.inputs} | set(graph.initialisers)
    local.update(name for node in graph.nodes for name in node.outputs)
    reads = (name for node in graph.nodes for name in source_reads(node))
    return tuple([name for name in dict.fromkeys((*reads, *graph.outputs)) if name not in local])


def nodes_in_order(graph: SourceGraph, outer: set[str]) -> tuple[SourceNode, ...]:
    """Return the nodes that the outputs need, in topological order, ties as in the file.

    `outer` holds the names visible from enclosing graphs.
    Raises InvalidModelError for cycles, values written twice and values nobody writes.
    """
    available = {*outer, *graph.initialisers, *(value.name for value in graph.inputs)}
    written = {name for node in graph.nodes for name in node.outputs}
    # An inner graph may reuse a name of an outer one: the inner value hides it.
    visible = available - (outer & written)
    ordered = order_operators(graph.nodes, visible, source_reads)
    missing = [name for name in graph.outputs if name not in visible and name not in written]
    if missing:
        raise InvalidModelError(
            f"output `{missing[0]}` is written by no node",
            context=f"graph `{graph.name}`",
            hint=REEXPORT,
        )
    return _needed(ordered, graph.outputs)


def _needed(ordered: list[SourceNode], outputs: tuple[str, ...]) -> tuple[SourceNode, ...]:
    # An output that is left out has no name, and nobody wants that.
    wanted = set(outputs) - {""}
    kept = []
    for node in reversed(ordered):
        if not wanted.isdisjoint(node.outputs):
            kept.append(node)
            wanted.update(node.reads)
    return tuple(reversed(kept))
