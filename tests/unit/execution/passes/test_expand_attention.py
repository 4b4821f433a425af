"""Contributed attention in its parts: the same results, on the kernel for attention."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from aegis_pipe.execution.passes import ATTENTION_PASSES, PASSES, run_passes
from tests.unit.pass_driver import (
    assert_inferred,
    count,
    feeds_of,
    graph_of,
    model_of,
    operators_of,
    run_on_cpu,
    run_onnxruntime,
)

BATCH, LENGTH, WIDTH, HEADS = 2, 6, 24, 3
OWN = "aegis.StridedAttention"
RANDOM = np.random.default_rng(5)
VALUES = {
    "w": RANDOM.standard_normal((WIDTH, 3 * WIDTH)).astype(np.float32) / 3,
    "narrow": RANDOM.standard_normal((WIDTH, 2 * WIDTH + 12)).astype(np.float32) / 3,
    "b": RANDOM.standard_normal(3 * WIDTH).astype(np.float32),
    "lengths": np.array([4, 6], np.int32),
    "seen": np.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 1, 1, 1]], np.int32),
    "pairs": np.tril(np.ones((BATCH, LENGTH, LENGTH), np.int32)),
    "added": RANDOM.standard_normal((BATCH, HEADS, LENGTH, LENGTH)).astype(np.float32),
    "flags": np.tril(np.ones((LENGTH, LENGTH), np.bool_)),
    "nothing": np.array([[True] * 6, [False] * 6, *[[True, False] * 3] * 4]),
}
X = "(float[2,6,24] x) => (float[2,6,24] y)"
QKV = "(float[2,6,24] q, float[2,6,24] k, float[2,6,24] v) => (float[2,6,24] y)"
ONE = "y = com.microsoft.Attention <num_heads = 3{more}> (x, w, {rest})"
SEVERAL = "y = com.microsoft.MultiHeadAttention <num_heads = 3{more}> (q, k, v, {rest})"


def one(rest: str, more: str = "") -> str:
    return f"{X} {{ {ONE.format(rest=rest, more=more)} }}"


def several(rest: str, more: str = "") -> str:
    return f"{QKV} {{ {SEVERAL.format(rest=rest, more=more)} }}"


def ours(rest: str, more: str = "") -> str:
    return f"{QKV} {{ y = Attention <q_num_heads = 3, kv_num_heads = 3{more}> (q, k, v{rest}) }}"


EXPANDED = {
    "projected": one("b"),
    "projected without bias": one(""),
    "projected by lengths": one("b, lengths"),
    "projected by keys": one("b, seen"),
    "projected by pairs": one("b, pairs", ", mask_filter_value = -50000.0"),
    "projected and added": one("b, , , added"),
    "projected, hidden and added": one("b, seen, , added", ", scale = 0.3"),
    "several": several(""),
    "several with bias": several("b"),
    "several by keys": several("b, seen"),
    "several by lengths": several(", lengths"),
    "several and added": several(", , added"),
    "several, hidden and added": several("b, seen, added", ", scale = 0.3"),
    "attention": ours(""),
    "attention by flags": ours(", flags", ", scale = 0.3"),
    "attention of nothing": ours(", nothing"),
    "attention and added": ours(", added"),
}
KEPT_WHOLE = {
    "causal": one("b", ", unidirectional = 1"),
    "causal of several": several("b", ", unidirectional = 1"),
    "causal attention": ours("", ", is_causal = 1"),
}


def model(text: str):
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    # The newest of the operators; ONNX Runtime knows it.
    return model_of(text, {name: VALUES[name] for name in VALUES if name in words}, opset=23)


def check(model: onnx.ModelProto) -> Counter[str]:
    """Assert that results are ONNX Runtime's behind the passes; return the operators."""
    graph, _ = run_passes(graph_of(model), (*PASSES, *ATTENTION_PASSES))
    assert_inferred(graph)
    feeds = feeds_of(model)
    for actual, wanted in zip(run_on_cpu(graph, feeds), run_onnxruntime(model, feeds), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    return count(graph)


@pytest.mark.parametrize("case", EXPANDED)
def test_one_kernel_with_the_same_results(case: str) -> None:
    operators = check(model(EXPANDED[case]))
    assert operators[OWN] == 1
    assert operators["Gemm"] + operators["MatMul"] == (case.startswith("projected"))
    assert not operators.keys() & {"Split", "Transpose", "Attention"}


@pytest.mark.parametrize("case", KEPT_WHOLE)
def test_what_looks_ahead_stays_an_operator(case: str) -> None:
    operators = check(model(KEPT_WHOLE[case]))
    assert operators["Attention"] == 1
    assert not any("Attention" in each for each in operators if "." in each)


def test_values_of_another_width() -> None:
    text = (
        "(float[2,6,24] x) => (float[2,6,12] y) { y = com.microsoft.Attention "
        "<num_heads = 3, qkv_hidden_sizes = [24, 24, 12]> (x, narrow) }"
    )
    assert check(model(text))[OWN] == 1


def test_heads_where_the_operator_before_left_them() -> None:
    """An operator on [batch, heads, length, size] that transposes make: none of them is left."""
    text = (
        "(float[2,6,3,8] q, float[2,9,3,8] k, float[2,9,3,8] v) => (float[2,6,3,8] y) {"
        " d = Transpose<perm=[0,2,1,3]>(q) e = Transpose<perm=[0,2,1,3]>(k)"
        " f = Transpose<perm=[0,2,1,3]>(v) g = Attention(d, e, f)"
        " y = Transpose<perm=[0,2,1,3]>(g) }"
    )
    assert check(model(text)) == {OWN: 1}


def test_layers_share_a_mask() -> None:
    text = (
        f"{X} {{ h = com.microsoft.Attention <num_heads = 3> (x, w, b, seen)"
        " y = com.microsoft.Attention <num_heads = 3> (h, w, b, seen) }"
    ).replace("x) =>", "x, int32[2,6] seen) =>")
    whole = model_of(text, {"w": VALUES["w"], "b": VALUES["b"]}, opset=23)
    operators = check(whole)
    assert (operators[OWN], operators["Where"], operators["Cast"]) == (2, 1, 1)


@pytest.mark.parametrize(
    "text",
    [
        f"{X[:-1]}, float[2,2,3,6,8] present) {{ y, present ="
        " com.microsoft.Attention <num_heads = 3> (x, w, b) }",
        "(float[2,6,24] q, float[2,3,4,8] p) => (float[2,6,24] y, float[2,3,10,8] r,"
        " float[2,3,10,8] s) { y, r, s = com.microsoft.MultiHeadAttention <num_heads = 3>"
        " (q, q, q, b, , , p, p) }",
    ],
)
def test_what_keeps_state_stays(text: str) -> None:
    before = graph_of(model(text))
    after, _ = run_passes(before, PASSES)
    assert operators_of(after) == operators_of(before)
