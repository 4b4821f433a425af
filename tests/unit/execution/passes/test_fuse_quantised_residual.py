"""Convolutions of bytes that add a residual, for devices that have that as one kernel."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.passes import (
    fuse_quantised_residual,
    quantised_channels_last,
    run_passes,
    sink_transposes,
)
from tests.unit.pass_driver import assert_inferred, count, graph_of, model_of

FUSED, SUM = "aegis.QLinearConvAdd", "com.microsoft.QLinearAdd"
CONVOLUTION = "com.microsoft.QLinearConv"
CONSTANTS = {
    "s": np.float32(0.05),
    "t": np.float32(0.07),
    "z": np.uint8(9),
    "w": np.random.default_rng(1).integers(-128, 128, (4, 4, 1, 1)).astype(np.int8),
    "grouped": np.ones((4, 1, 1, 1), np.int8),
    "w_zero": np.int8(0),
}


def fused(nodes: str, outputs: str = "uint8[1,4,5,5] y") -> ExecutionGraph:
    text = f"(uint8[1,4,5,5] x, uint8[1,4,1,1] small) => ({outputs}) {{ {nodes} }}"
    passes = [quantised_channels_last, sink_transposes, fuse_quantised_residual]
    graph, _ = run_passes(graph_of(model_of(text, CONSTANTS)), passes)
    assert_inferred(graph)
    return graph


CONV = "c = QLinearConv (x, s, z, w, s, w_zero, t, z)"


@pytest.mark.parametrize("operands", ["c, t, z, x, s, z", "x, s, z, c, t, z"])
def test_on_either_side(operands: str) -> None:
    graph = fused(f"{CONV} y = com.microsoft.QLinearAdd ({operands}, s, z)")
    assert count(graph) == {"Transpose": 2, FUSED: 1}
    (node,) = [each for each in graph.operators if each.qualified_operator == FUSED]
    assert len(node.inputs) == 14
    assert node.inputs[8:9] == ("",), "there is no bias"
    assert node.inputs[10:] == ("s", "z", "s", "z")


def test_the_later_of_two_takes_the_other() -> None:
    graph = fused(
        f"{CONV} d = QLinearConv (x, s, z, w, s, w_zero, t, z)"
        "y = com.microsoft.QLinearAdd (d, t, z, c, t, z, s, z)"
    )
    assert count(graph) == {"Transpose": 2, CONVOLUTION: 1, FUSED: 1}
    (node,) = [each for each in graph.operators if each.qualified_operator == FUSED]
    assert node.inputs[9].startswith("c")


def test_sums_one_after_the_other() -> None:
    graph = fused(
        f"{CONV} r = com.microsoft.QLinearAdd (c, t, z, x, s, z, s, z)"
        "d = QLinearConv (r, s, z, w, s, w_zero, t, z)"
        "y = com.microsoft.QLinearAdd (d, t, z, r, s, z, s, z)"
    )
    assert count(graph) == {"Transpose": 2, FUSED: 2}


@pytest.mark.parametrize(
    "nodes",
    [
        # The sum takes the levels for others than the convolution has written.
        f"{CONV} y = com.microsoft.QLinearAdd (c, s, z, x, s, z, s, z)",
        f"{CONV} y = com.microsoft.QLinearAdd (c, t, , x, s, z, s, z)",
        f"{CONV} y = com.microsoft.QLinearAdd (c, t, z, small, s, z, s, z)",
        "c = QLinearConv <group = 4> (x, s, z, grouped, s, w_zero, t, z)"
        "y = com.microsoft.QLinearAdd (c, t, z, x, s, z, s, z)",
        f"{CONV} y = com.microsoft.QLinearMul (c, t, z, x, s, z, s, z)",
    ],
)
def test_what_is_left_alone(nodes: str) -> None:
    assert FUSED not in count(fused(nodes))


def test_a_result_that_others_read_stays() -> None:
    nodes = f"{CONV} y = com.microsoft.QLinearAdd (c, t, z, x, s, z, s, z)"
    graph = fused(nodes, "uint8[1,4,5,5] y, uint8[1,4,5,5] c")
    assert FUSED not in count(graph)
