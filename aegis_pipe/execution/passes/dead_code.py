"""Leave out operators whose results reach no output of the graph."""

from __future__ import annotations

from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.passes.rewriting import rewritten

name = "dead_code"


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Keep what the outputs need, found backwards from them."""
    # An output that is left out has no name, and nobody wants that.
    wanted = set(graph.outputs)
    kept = []
    for node in reversed(graph.operators):
        if not wanted.isdisjoint(node.outputs):
            kept.append(node)
            wanted.update(node.reads)
    return rewritten(graph, kept[::-1])
