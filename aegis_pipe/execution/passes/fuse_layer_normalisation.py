"""Layer and RMS normalisation, spelled out, as one operator.

    d = x - mean(x);  y = d / sqrt(mean(d^2) + epsilon) * gamma + beta     LayerNormalization
    y = x / sqrt(mean(x^2) + epsilon) * gamma                              RMSNormalization

over the last axes (Ba et al. 2016; Zhang and Sennrich 2019). Casts between floats in between, as
exporters put them around the square, are what the one operator does by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from aegis_pipe.execution.graph import ExecutionGraph, OperatorNode
from aegis_pipe.execution.passes.matching import (
    EPSILON,
    only_reader,
    other_operand,
    producer,
    scalar,
)
from aegis_pipe.execution.passes.rewriting import GraphEdit
from aegis_pipe.tensor import TensorId

name = "fuse_layer_normalisation"

_LAYER_OPSET = 17
_RMS_OPSET = 23
_AXES_ARE_OPERAND_OPSET = 18


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Replace every such formula."""
    edit = GraphEdit(graph)
    for node in graph.operators:
        if node.qualified_operator != "Sqrt":
            continue
        match = _Match(graph).find(node)
        if match is not None and not edit.is_replaced(*match.nodes):
            edit.replace(match.nodes, _fused(graph, edit, match))
    return edit.result()
