"""What passes share: renaming tensors and building the new graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from aegis_pipe.execution.graph import ExecutionGraph, OperatorNode, Subgraph, reads_of
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
    names = renamed or {}
    kept = [rename(node, names) for node in operators]
    known = {**graph.constants, **(constants or {})}
    all_specs = {tensor: edge.spec for tensor, edge in graph.tensors.items()}
    all_specs |= {tensor: TensorSpec(a.dtype, a.shape) for tensor, a in (constants or {}).items()}
    all_specs |= specs or {}
    written = {tensor for node in kept for tensor in filter(None, node.outputs)}
    used = {tensor for node in kept for tensor in reads_of(node)} | set(graph.outputs)
    alive = used | written | set(graph.inputs)
    return ExecutionGraph.build(
        name=graph.name,
        operators=kept,
        specs={tensor: spec for tensor, spec in all_specs.items() if tensor in alive},
        constants={t: a for t, a in known.items() if t in used and t not in written},
        inputs=graph.inputs,
        outputs=graph.outputs,
        metadata=graph.metadata,
    )


def rename(node: OperatorNode, names: Mapping[TensorId, TensorId]) -> OperatorNode:
    """Return the node with tensors replaced, also those its bodies capture."""
    if not names:
        return node
    attributes = {
        key: Subgraph(value.serialised, tuple(final_name(t, names) for t in value.captures))
        if isinstance(value, Subgraph)
        else value
        for key, value in node.attributes.items()
    }
    return replace(
        node,
        attributes=attributes,
        inputs=tuple(final_name(tensor, names) for tensor in node.inputs),
        outputs=tuple(final_name(tensor, names) for tensor in node.outputs),
    )


def final_name(tensor: TensorId, names: Mapping[TensorId, TensorId]) -> TensorId:
    """Follow renamings to the end."""
    while tensor in names:
        tensor = names[tensor]
    return tensor
