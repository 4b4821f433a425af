"""Gemm, then GELU in its form with tanh: one `com.microsoft.FusedGemm`, its activation `FastGelu`.

For devices whose products take that form on the way out. GELU proper, with erf, is not replaced by
it: they differ by up to 5e-4, which is more than half precision's own rounding where the result is
small. Between both may lie a reshape, as batches have one.
"""

from __future__ import annotations

from itertools import pairwise

from aegis_pipe.execution.graph import ExecutionGraph, OperatorNode
from aegis_pipe.execution.passes.matching import CONTRIBUTED, only_reader, producer
from aegis_pipe.execution.passes.rewriting import GraphEdit

name = "fuse_gemm_gelu"


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Replace every such pair."""
    edit = GraphEdit(graph)
    for node in graph.operators:
        chain = _chain(graph, node)
        if chain is not None and not edit.is_replaced(*chain):
            edit.replace(chain, *_fused(graph, chain, edit))
    return edit.result()


def _chain(graph: ExecutionGraph, node: OperatorNode) -> tuple[OperatorNode, ...] | None:
    """Return the Gemm, the reshape if there is one, and the GELU."""
    if not _is_tanh_gelu(node):
        return None
    before = producer(graph, node.inputs[0])
    between: tuple[OperatorNode, ...] = ()
    if before is not None and before.qualified_operator == "Reshape":
        between, before = (before,), producer(graph, before.inputs[0])
    if before is None or before.qualified_operator != "Gemm":
        return None
    chain = (before, *between, node)
    is_alone = all(only_reader(graph, a.outputs[0]) is b for a, b in pairwise(chain))
    return chain if is_alone else None


def _is_tanh_gelu(node: OperatorNode) -> bool:
    if node.qualified_operator == "com.microsoft.FastGelu":
        # With a bias of its own, it is not the Gemm's result that it takes.
        return not any(node.inputs[1:])
    return node.qualified_operator == "Gelu" and node.attributes.get("approximate") in (
        "tanh",
        b"tanh",
    )


def _fused(
    graph: ExecutionGraph, chain: tuple[OperatorNode, ...], edit: GraphEdit
) -> list[OperatorNode]:
    gemm, *between, gelu = chain
    result = gelu.outputs[0]
    rows = result
    if between:
        rows = edit.tensor(f"{result}.product", graph.spec(gemm.outputs[0]))
    attributes = {**gemm.attributes, "activation": "FastGelu"}
    fused = OperatorNode(gelu.name, "FusedGemm", CONTRIBUTED, 1, attributes, gemm.inputs, (rows,))
    if not between:
        return [fused]
    (reshape,) = between
    inputs = (rows, *reshape.inputs[1:])
    return [
        fused,
        OperatorNode(
            reshape.name,
            reshape.operator,
            reshape.domain,
            reshape.opset,
            reshape.attributes,
            inputs,
            (result,),
        ),
    ]
