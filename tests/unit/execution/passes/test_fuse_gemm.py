"""Matrix products with what follows them, as one operator."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_pipe.execution.passes import fuse_gemm, run_passes
from tests.unit.pass_driver import check, count, graph_of, model_of, operators_of

PASSES = (fuse_gemm,)
FUSED = "com.microsoft.FusedGemm"
X = "(float[3,5] x) => (float[3,4] y)"
BATCH = "(float[2,3,5] x) => (float[2,3,4] y)"


def random(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


CONSTANTS = {
    "w": random(5, 4),
    "u": random(4, 5),
    "b": random(4),
    "row": random(1, 4),
    "deep": random(1, 1, 4),
    "rows": random(3, 1),
    "full": random(2, 3, 4),
    "one": random(1),
}

CASES = {
    "bias": (f"{X} {{ h = MatMul(x, w) y = Add(h, b) }}", ["Gemm"]),
    "bias first": (f"{X} {{ h = MatMul(x, w) y = Add(row, h) }}", ["Gemm"]),
    "by row": (f"{X} {{ h = MatMul(x, w) y = Add(h, rows) }}", ["Gemm"]),
    "residual": (
        "(float[3,5] x, float[3,4] z) => (float[3,4] y) { h = MatMul(x, w) y = Add(h, z) }",
        ["Gemm"],
    ),
    "relu": (f"{X} {{ h = MatMul(x, w) y = Relu(h) }}", [FUSED]),
    "bias and relu": (f"{X} {{ h = MatMul(x, w) i = Add(h, b) y = Relu(i) }}", [FUSED]),
    "gemm and relu": (
        f"{X} {{ h = Gemm <alpha=0.5, beta=2.0, transB=1> (x, u, b) y = Relu(h) }}",
        [FUSED],
    ),
    "gemm without c": (f"{X} {{ h = Gemm <alpha=0.5> (x, w) y = Add(h, b) }}", ["Gemm"]),
    "batch": (f"{BATCH} {{ h = MatMul(x, w) y = Add(b, h) }}", ["Reshape", "Gemm", "Reshape"]),
    "batch by scalar": (
        f"{BATCH} {{ h = MatMul(x, w) y = Add(h, one) }}",
        ["Reshape", "Gemm", "Reshape"],
    ),
    "batch, bias of three dimensions": (
        f"{BATCH} {{ h = MatMul(x, w) i = Add(h, deep) y = Relu(i) }}",
        ["Reshape", FUSED, "Reshape"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_fused(case: str) -> None:
    text, operators = CASES[case]
    assert operators_of(check(model_of(text, CONSTANTS), PASSES)) == operators


def test_weights_need_not_be_constant() -> None:
    text = "(float[3,5] x, float[5,4] v) => (float[3,4] y) { h = MatMul(x, v) y = Add(h, b) }"
    assert operators_of(check(model_of(text, CONSTANTS), PASSES)) == ["Gemm"]


def test_of_two_products_the_later_adds() -> None:
    text = f"{X} {{ [a] h = MatMul(x, w) [b] i = MatMul(x, w) [c] j = Add(h, i) [d] y = Relu(j) }}"
    graph = check(model_of(text, CONSTANTS), PASSES)
    assert [(node.name, node.operator) for node in graph.operators] == [
        ("a", "MatMul"),
        ("d", "FusedGemm"),
    ]


KEPT = {
    "result is an output": "(float[3,5] x) => (float[3,4] y, float[3,4] h)"
    " { h = MatMul(x, w) y = Add(h, b) }",
    "several readers": f"{X} {{ h = MatMul(x, w) i = Add(h, b) y = Mul(i, h) }}",
    "second bias": f"{X} {{ h = Gemm(x, w, b) y = Add(h, b) }}",
    "other activation": f"{X} {{ h = MatMul(x, w) y = Tanh(h) }}",
    "batch of matrices": "(float[2,3,5] x, float[2,5,4] v) => (float[2,3,4] y)"
    " { h = MatMul(x, v) y = Add(h, b) }",
    "batch, bias by row": f"{BATCH} {{ h = MatMul(x, w) y = Add(h, rows) }}",
    "batch, residual": f"{BATCH} {{ h = MatMul(x, w) y = Add(h, full) }}",
    "batch, broadcast": "(float[1,3,5] x) => (float[2,3,4] y)"
    " { h = MatMul(x, w) y = Add(h, full) }",
    "bias broadcasts the result": "(float[1,5] x, float[3,4] z) => (float[3,4] y)"
    " { h = MatMul(x, w) y = Add(h, z) }",
    "vector": "(float[5] x) => (float[4] y) { h = MatMul(x, w) y = Add(h, b) }",
    "integers": "(int32[3,5] x, int32[5,4] v, int32[4] c) => (int32[3,4] y)"
    " { h = MatMul(x, v) y = Add(h, c) }",
}


@pytest.mark.parametrize("case", KEPT)
def test_not_fused(case: str) -> None:
    graph = graph_of(model_of(KEPT[case], CONSTANTS))
    after, _ = run_passes(graph, PASSES)
    assert count(after) == count(graph)
