"""Leave out operators whose results reach no output of the graph."""

from __future__ import annotations

from aegis_pipe.execution.graph import ExecutionGraph, reads_of
from aegis_pipe.execution.passes.rewriting import rewritten

name = "dead_code"


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Keep what the outputs need, found backwards from them."""
    wanted = set(graph.outputs)
    kept = []
    for node in reversed(graph.operators):
        if wanted.intersection(filter(None, node.outputs)):
            kept.append(node)
            wanted.update(reads_of(node))
    return rewritten(graph, kept[::-1])
