"""Sums that are normalised, as one operator."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_pipe.execution.passes import fuse_skip, run_passes
from tests.unit.pass_driver import check, count, graph_of, model_of, operators_of

PASSES = (fuse_skip,)
SKIP = "com.microsoft.SkipLayerNormalization"
XZ = "(float[2,3,16] x, float[2,3,16] z) => (float[2,3,16] y)"
LAYER = "LayerNormalization <epsilon=0.001, axis=-1>"

CONSTANTS = {
    name: np.random.default_rng(i).standard_normal(shape).astype(np.float32)
    for i, (name, shape) in enumerate(
        {"g": 16, "b": 16, "row": (1, 1, 16), "plane": (3, 16), "image": (1, 3, 16)}.items()
    )
}


@pytest.mark.parametrize("beta", ["", ", b"])
def test_sum_and_normalisation(beta: str) -> None:
    text = f"{XZ} {{ a = Add(x, z) [last] y = {LAYER} (a, g{beta}) }}"
    graph = check(model_of(text, CONSTANTS), PASSES, identical=True)
    assert [(node.name, node.qualified_operator) for node in graph.operators] == [("last", SKIP)]


def test_sum_that_is_needed_further_on() -> None:
    text = f"{XZ} {{ a = Add(x, z) n = {LAYER} (a, g, b) t = Tanh(n) y = Add(a, t) }}"
    graph = check(model_of(text, CONSTANTS), PASSES, identical=True)
    assert operators_of(graph) == [SKIP, "Tanh", "Add"]


def test_sum_that_is_an_output() -> None:
    text = (
        "(float[4,16] x, float[4,16] z) => (float[4,16] y, float[4,16] a)"
        f" {{ a = Add(x, z) y = {LAYER} (a, g, b) }}"
    )
    graph = check(model_of(text, CONSTANTS), PASSES, identical=True)
    assert operators_of(graph) == [SKIP]


def test_rms() -> None:
    text = f"{XZ} {{ a = Add(x, z) y = RMSNormalization <epsilon=0.001> (a, g) }}"
    model = model_of(text, CONSTANTS, opset=23)
    graph = check(model, PASSES, identical=True)
    assert operators_of(graph) == ["com.microsoft.SkipSimplifiedLayerNormalization"]


def test_one_sum_normalised_twice_is_fused_once() -> None:
    text = f"{XZ} {{ a = Add(x, z) m = {LAYER} (a, g) n = {LAYER} (a, b) y = Mul(m, n) }}"
    graph = check(model_of(text, CONSTANTS), PASSES, identical=True)
    assert operators_of(graph) == [SKIP, "LayerNormalization", "Mul"]


KEPT = {
    "broadcast": "(float[2,3,16] x) => (float[2,3,16] y)"
    f" {{ a = Add(x, row) y = {LAYER} (a, g, b) }}",
    "another axis": f"{XZ} {{ a = Add(x, z) y = LayerNormalization <axis=1> (a, plane, plane) }}",
    "sum of three": f"{XZ} {{ a = Sum(x, z, z) y = {LAYER} (a, g, b) }}",
    "mean is needed": "(float[2,3,16] x, float[2,3,16] z) => (float[2,3,16] y, float[2,3,1] m)"
    f" {{ a = Add(x, z) y, m = {LAYER} (a, g, b) }}",
    "gamma broadcasts": f"{XZ} {{ a = Add(x, z) y = {LAYER} (a, row, b) }}",
    "four dimensions": "(float[2,1,3,16] x, float[2,1,3,16] z) => (float[2,1,3,16] y)"
    f" {{ a = Add(x, z) y = {LAYER} (a, g, b) }}",
    "difference": f"{XZ} {{ a = Sub(x, z) y = {LAYER} (a, g, b) }}",
}


@pytest.mark.parametrize("case", KEPT)
def test_not_fused(case: str) -> None:
    graph = graph_of(model_of(KEPT[case], CONSTANTS))
    after, _ = run_passes(graph, PASSES)
    assert count(after) == count(graph)
