"""What passes share: renaming tensors and building the new graph."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import is_

import numpy as np

from aegis_pipe.execution.graph import NO_TENSOR, ExecutionGraph, OperatorNode, Subgraph
from aegis_pipe.tensor import TensorId, TensorSpec


def rewritten(
    graph: ExecutionGraph,
    operators: Sequence[OperatorNode],
    *,
    renamed: Mapping[TensorId, TensorId] | None = None,
    constants: Mapping[TensorId, np.ndarray] | None = None,
    specs: Mapping[TensorId, TensorSpec] | None = None,
) -> ExecutionGraph:
    """Return the graph with other operators; its inputs and outputs stay as they are.

    `renamed` replaces tensors wherever they are read or written (chains are followed);
    `constants` and `specs` are added to the graph's own. What nobody reads is left out.
    """
    is_same = len(operators) == len(graph.operators) and all(map(is_, operators, graph.operators))
    if is_same and not renamed and not specs and len(constants or ()) <= len(graph.constants):
        # Nothing was found to do, which is what most passes find in most graphs.
        return graph
    names = renamed or {}
    kept = [rename(node, names) for node in operators] if names else operators
    known_before = graph.constants
    known = {**known_before, **(constants or {})}
    all_specs = dict(graph.specs)
    for tensor, array in (constants or {}).items():
        if known_before.get(tensor) is not array:
            all_specs[tensor] = TensorSpec(array.dtype, array.shape)
    all_specs |= specs or {}
    written = set(itertools.chain.from_iterable([node.outputs for node in kept])) - {NO_TENSOR}
    used = set(itertools.chain.from_iterable([node.reads for node in kept]))
    used.update(graph.outputs)
    alive = used | written | set(graph.inputs)
    return ExecutionGraph.build(
        name=graph.name,
        operators=kept,
        specs={tensor: spec for tensor, spec in all_specs.items() if tensor in alive},
        constants={t: a for t, a in known.items() if t in used and t not in written},
        inputs=graph.inputs,
        outputs=graph.outputs,
        metadata=graph.metadata,
        lengths=graph.lengths,
    )


class GraphEdit:
    """Operators of a graph to replace by others, and the new tensors these need."""

    def __init__(self, graph: ExecutionGraph) -> None:
        self._graph = graph
        self._replaced: dict[str, tuple[OperatorNode, ...]] = {}
        self._constants: dict[TensorId, np.ndarray] = {}
        self._specs: dict[TensorId, TensorSpec] = {}
        self._names: set[str] = set()
        """All that are taken, once anybody wants another one."""

    def is_replaced(self, *nodes: OperatorNode) -> bool:
        """Return whether one of the nodes is to be replaced already."""
        replaced = self._replaced
        for node in nodes:  # noqa: SIM110 - `any` costs more, and this is asked of every node
            if node.name in replaced:
                return True
        return False

    def replace(self, old: Sequence[OperatorNode], *new: OperatorNode) -> None:
        """Put new nodes in the place of the last old one; the old ones go."""
        assert not self.is_replaced(*old), f"{old[-1].name} is replaced twice"
        self._replaced |= {node.name: () for node in old}
        self._replaced[old[-1].name] = new

    def constant(self, name: str, array: np.ndarray) -> TensorId:
        """Add a constant; return its final name."""
        tensor = self.tensor(name, TensorSpec(array.dtype, array.shape))
        self._constants[tensor] = array
        return tensor

    def added(self, tensor: TensorId) -> np.ndarray:
        """Return a constant that was added."""
        return self._constants[tensor]

    def tensor(self, name: str, spec: TensorSpec) -> TensorId:
        """Add a tensor; return its final name."""
        while name in self._graph.specs or name in self._specs:
            name += "_"
        self._specs[TensorId(name)] = spec
        return TensorId(name)

    def node_name(self, name: str) -> str:
        """Return a name for one more node."""
        if not self._names:
            self._names = {node.name for node in self._graph.operators}
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name

    def reshape(
        self, name: str, opset: int, source: TensorId, target: TensorId, shape: Sequence[int]
    ) -> OperatorNode:
        """Return a Reshape of `source` to `target`, whose `shape` has no 0."""
        wanted = self.constant(f"{name}.shape", np.array(shape, np.int64))
        return OperatorNode(name, "Reshape", "", opset, {}, (source, wanted), (target,))

    def result(self) -> ExecutionGraph:
        """Return the new graph."""
        replaced = self._replaced
        if not (replaced or self._constants or self._specs):
            return self._graph
        operators: list[OperatorNode] = []
        for node in self._graph.operators:
            if node.name in replaced:
                operators += replaced[node.name]
            else:
                operators.append(node)
        return rewritten(self._graph, operators, constants=self._constants, specs=self._specs)


def rename(node: OperatorNode, names: Mapping[TensorId, TensorId]) -> OperatorNode:
    """Return the node with tensors replaced, also those its bodies capture."""
    known = names.keys()
    if not names or (known.isdisjoint(node.reads) and known.isdisjoint(node.outputs)):
        return node
    attributes = node.attributes
    if len(node.reads) > len(node.inputs) - node.inputs.count(NO_TENSOR):
        attributes = {
            key: Subgraph(value.serialised, tuple([final_name(t, names) for t in value.captures]))
            if isinstance(value, Subgraph)
            else value
            for key, value in attributes.items()
        }
    return replace(
        node,
        attributes=attributes,
        inputs=tuple([final_name(tensor, names) for tensor in node.inputs]),
        outputs=tuple([final_name(tensor, names) for tensor in node.outputs]),
    )


def final_name(tensor: TensorId, names: Mapping[TensorId, TensorId]) -> TensorId:
    """Follow renamings to the end."""
    while tensor in names:
        tensor = names[tensor]
    return tensor
