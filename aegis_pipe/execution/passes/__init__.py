"""Rewrites of an execution graph that leave its outputs unchanged.

One pass a file; adding one is one new file and one line in `PASSES`, at the place where it shall
run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.passes import (
    channels_last,
    common_subexpressions,
    constant_folding,
    dead_code,
    expand_attention,
    fold_batch_normalisation,
    fuse_attention,
    fuse_convolution,
    fuse_dynamic_quantisation,
    fuse_gelu,
    fuse_gemm,
    fuse_inverted_residual,
    fuse_layer_normalisation,
    fuse_planar_input,
    fuse_quantised,
    fuse_quantised_residual,
    fuse_skip,
    fuse_swish,
    identity_elimination,
    merge_addends,
    merge_projections,
    quantised_channels_last,
    reorder_rows,
    sink_transposes,
)
from aegis_pipe.execution.passes.fuse_convolution import FuseConvolution
from aegis_pipe.execution.passes.fuse_elementwise import FuseElementwise
from aegis_pipe.execution.passes.fuse_product_ending import FuseProductEnding


class Pass(Protocol):
    """A rewrite; a module with these two names is one."""

    @property
    def name(self) -> str:
        """The pass's name in reports and traces."""
        ...

    def run(self, graph: ExecutionGraph) -> ExecutionGraph:
        """Return a graph with the same inputs, outputs and results."""
        ...


class PassReport(NamedTuple):
    """What a pass did to a graph's size."""

    name: str
    nodes_before: int
    nodes_after: int


PASSES: tuple[Pass, ...] = (
    identity_elimination,
    # Before the weights it computes with are folded into floats.
    fuse_quantised,
    fuse_dynamic_quantisation,
    expand_attention,
    constant_folding,
    common_subexpressions,
    merge_addends,
    fuse_layer_normalisation,
    fuse_gelu,
    fuse_swish,
    fold_batch_normalisation,
    fuse_convolution,
    fuse_gemm,
    fuse_skip,
    quantised_channels_last,
    sink_transposes,
    identity_elimination,
    common_subexpressions,
    dead_code,
)
"""All passes, in order. What fusing leaves behind (reshapes, for one) is cleaned up once more."""

ATTENTION_PASSES: tuple[Pass, ...] = (
    reorder_rows,
    fuse_attention,
    # What was looked through still reads the projections.
    dead_code,
    merge_projections,
    sink_transposes,
    identity_elimination,
    dead_code,
)
"""What comes after them for devices that have attention as one kernel."""

CHANNELS_LAST_PASSES: tuple[Pass, ...] = (
    channels_last,
    sink_transposes,
    identity_elimination,
    common_subexpressions,
    dead_code,
)
"""What comes after them for devices that want channels last."""

INVERTED_RESIDUAL_PASSES: tuple[Pass, ...] = (fuse_inverted_residual,)
"""What comes after those for devices that have inverted residual blocks as one kernel."""

QUANTISED_RESIDUAL_PASSES: tuple[Pass, ...] = (fuse_quantised_residual,)
"""What comes after those for devices whose convolutions of bytes add a residual."""

PLANAR_PASSES: tuple[Pass, ...] = (fuse_planar_input,)
"""What comes after half precision for devices whose convolutions read images as they come."""


def first_passes(*, parallel_branches: bool) -> tuple[Pass, ...]:
    """Return `PASSES` as they are for devices that run branches side by side, or do not."""
    if not parallel_branches:
        return PASSES
    return tuple([FuseConvolution() if one is fuse_convolution else one for one in PASSES])


def product_passes(activations: Collection[str]) -> tuple[Pass, ...]:
    """Return what comes after `PASSES` for devices whose matrix products end with activations."""
    return (FuseProductEnding(activations),) if activations else ()


def chain_passes(steps: Mapping[str, frozenset[str]]) -> tuple[Pass, ...]:
    """Return what comes last of all, for devices that run these steps in one kernel."""
    return (FuseElementwise(steps),) if steps else ()


def run_passes(
    graph: ExecutionGraph, passes: Sequence[Pass] = PASSES
) -> tuple[ExecutionGraph, list[PassReport]]:
    """Run passes in order; return the last graph and one report per pass."""
    reports = []
    for one in passes:
        before = len(graph.operators)
        graph = one.run(graph)
        reports.append(PassReport(one.name, before, len(graph.operators)))
    return graph, reports
