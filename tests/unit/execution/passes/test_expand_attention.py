"""Contributed attention in its parts: the same results, on the kernel for attention."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from aegis_pipe.execution.passes import ATTENTION_PASSES, PASSES, run_passes
from tests.unit.execution.passes.attention_models import (
    EXPANDED,
    KEPT_WHOLE,
    VALUES,
    X,
    attention_model,
)
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

OWN = "aegis.StridedAttention"


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
    operators = check(attention_model(EXPANDED[case]))
    assert operators[OWN] == 1
    assert operators["Gemm"] + operators["MatMul"] == (case.startswith("projected"))
    assert not operators.keys() & {"Split", "Transpose", "Attention"}


@pytest.mark.parametrize("case", KEPT_WHOLE)
def test_what_looks_ahead_stays_an_operator(case: str) -> None:
    operators = check(attention_model(KEPT_WHOLE[case]))
    assert operators["Attention"] == 1
    assert not any("Attention" in each for each in operators if "." in each)


def test_values_of_another_width() -> None:
    text = (
        "(float[2,6,24] x) => (float[2,6,12] y) { y = com.microsoft.Attention "
        "<num_heads = 3, qkv_hidden_sizes = [24, 24, 12]> (x, narrow) }"
    )
    assert check(attention_model(text))[OWN] == 1


def test_heads_where_the_operator_before_left_them() -> None:
    """An operator on [batch, heads, length, size] that transposes make: none of them is left."""
    text = (
        "(float[2,6,3,8] q, float[2,9,3,8] k, float[2,9,3,8] v) => (float[2,6,3,8] y) {"
        " d = Transpose<perm=[0,2,1,3]>(q) e = Transpose<perm=[0,2,1,3]>(k)"
        " f = Transpose<perm=[0,2,1,3]>(v) g = Attention(d, e, f)"
        " y = Transpose<perm=[0,2,1,3]>(g) }"
    )
    assert check(attention_model(text)) == {OWN: 1}


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
    before = graph_of(attention_model(text))
    after, _ = run_passes(before, PASSES)
    assert operators_of(after) == operators_of(before)
