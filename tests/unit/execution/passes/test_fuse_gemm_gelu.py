"""GELU by tanh joins the product before it; GELU proper does not."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from aegis_pipe.execution.passes import PASSES, PRODUCT_PASSES, run_passes
from tests.unit.pass_driver import graph_of, model_of, operators_of

FUSED = "com.microsoft.FusedGemm"
X = "(float[3,5] x) => (float[3,4] y)"
BATCH = "(float[2,3,5] x) => (float[2,3,4] y)"
CONSTANTS = {
    "w": np.ones((5, 4), np.float32),
    "b": np.ones(4, np.float32),
}

FUSING = {
    "gemm": (f"{X} {{ h = Gemm(x, w, b) y = Gelu <approximate = \"tanh\"> (h) }}", [FUSED]),
    "bias": (f"{X} {{ h = MatMul(x, w) i = Add(h, b) y = com.microsoft.FastGelu(i) }}", [FUSED]),
    "batch": (
        f"{BATCH} {{ h = MatMul(x, w) i = Add(h, b) y = Gelu <approximate = \"tanh\"> (i) }}",
        ["Reshape", FUSED, "Reshape"],
    ),
}  # fmt: skip

STAYING = {
    "erf": f"{X} {{ h = Gemm(x, w, b) y = Gelu(h) }}",
    "bias of its own": f"{X} {{ h = Gemm(x, w) y = com.microsoft.FastGelu(h, b) }}",
    "read twice": (
        "(float[3,5] x) => (float[3,4] y, float[3,4] h) "
        '{ h = Gemm(x, w, b) y = Gelu <approximate = "tanh"> (h) }'
    ),
    "no product": '(float[3,4] x) => (float[3,4] y) { y = Gelu <approximate = "tanh"> (x) }',
}


def passed(text: str):
    graph = graph_of(model_of(text, CONSTANTS, opset=20))
    return run_passes(graph, (*PASSES, *PRODUCT_PASSES))[0]


@pytest.mark.parametrize("case", FUSING)
def test_fused(case: str) -> None:
    text, wanted = FUSING[case]
    graph = passed(text)
    assert operators_of(graph) == wanted
    (node,) = [node for node in graph.operators if node.qualified_operator == FUSED]
    assert node.attributes["activation"] == "FastGelu"
    assert len(node.inputs) == 3
    assert graph.spec("y").shape == graph_of(model_of(text, CONSTANTS, opset=20)).spec("y").shape


@pytest.mark.parametrize("case", STAYING)
def test_not_fused(case: str) -> None:
    assert FUSED not in operators_of(passed(STAYING[case]))


@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16])
def test_erf_is_not_tanh_to_half_precision(half: type) -> None:
    """Why GELU proper keeps its own kernel: below 0, tanh's form is many steps away."""
    x = np.linspace(-8, 8, 4001).astype(half).astype(np.float64)
    erf = np.array([0.5 * each * (1 + math.erf(each / math.sqrt(2))) for each in x])
    tanh = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    away = np.abs(tanh - erf)
    assert away.max() < 5e-4
    # Steps of what half precision can tell apart, where the result is no dust.
    large = np.abs(erf) > 1e-3
    steps = away[large] / np.abs(np.spacing(erf[large].astype(half))).astype(np.float64)
    assert steps.max() > 4
