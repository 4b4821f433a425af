"""Activations join the product before them, on devices that take them, with the same bits."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device import open_device
from aegis_pipe.device.cpu.kernels import native
from aegis_pipe.device.cpu.kernels.product_endings import ENDINGS
from aegis_pipe.execution.passes import PASSES, product_passes, run_passes
from tests.unit.pass_driver import (
    check,
    feeds_of,
    graph_of,
    model_of,
    operators_of,
    run_on_cpu,
)

FUSED = "com.microsoft.FusedGemm"
X = "(float[3,5] x) => (float[3,12] y)"
BATCH = "(float[2,3,5] x) => (float[2,3,12] y)"
SPLIT = "(float[6,5] x) => (float[2,3,12] y)"
RANDOM = np.random.default_rng(3)
CONSTANTS = {
    "w": RANDOM.standard_normal((5, 12)).astype(np.float32),
    "b": RANDOM.standard_normal(12).astype(np.float32),
    "half": np.array(0.5, np.float32),
    "one": np.array(1, np.float32),
    "root": np.array(math.sqrt(2), np.float32),
    "shape": np.array([2, 3, 12]),
}
SWISH = "s = Sigmoid(h) y = Mul(s, h)"
GELU = "d = Div(h, root) e = Erf(d) f = Add(e, one) g = Mul(h, f) y = Mul(g, half)"
SANDWICH = ["Reshape", FUSED, "Reshape"]

FUSING = {
    "tanh gelu": (f'{X} {{ h = Gemm(x, w, b) y = Gelu <approximate = "tanh"> (h) }}', [FUSED]),
    "fast gelu": (
        f"{X} {{ g = MatMul(x, w) h = Add(g, b) y = com.microsoft.FastGelu(h) }}",
        [FUSED],
    ),
    "batch": (
        f'{BATCH} {{ g = MatMul(x, w) h = Add(g, b) y = Gelu <approximate = "tanh"> (h) }}',
        SANDWICH,
    ),
    "gelu": (f"{X} {{ h = Gemm <alpha = 0.5> (x, w, b) y = Gelu(h) }}", [FUSED]),
    "spelled out": (f"{BATCH} {{ c = MatMul(x, w) h = Add(c, b) {GELU} }}", SANDWICH),
    "bias of its own": (f"{X} {{ h = MatMul(x, w) y = com.microsoft.BiasGelu(h, b) }}", [FUSED]),
    "bias of a batch": (
        f"{BATCH} {{ h = MatMul(x, w) y = com.microsoft.FastGelu(h, b) }}",
        SANDWICH,
    ),
    "swish": (f"{X} {{ h = MatMul(x, w) {SWISH} }}", [FUSED]),
    "swish of a batch": (f"{BATCH} {{ h = MatMul(x, w) {SWISH} }}", SANDWICH),
    "reshaped": (
        f"{SPLIT} {{ g = Gemm(x, w, b) h = Reshape(g, shape) {SWISH} }}",
        [FUSED, "Reshape"],
    ),
    "reshaped product": (
        "(float[2,3,5] x) => (float[3,2,12] y) "
        "{ g = MatMul(x, w) h = Reshape <allowzero = 0> (g, other) y = Tanh(h) }",
        SANDWICH,
    ),
    "quick gelu": (f"{X} {{ h = Gemm(x, w, b) y = com.microsoft.QuickGelu(h) }}", [FUSED]),
    "sigmoid": (f"{X} {{ h = Gemm(x, w, b) y = Sigmoid(h) }}", [FUSED]),
    "tanh": (f"{X} {{ h = Gemm(x, w, b) y = Tanh(h) }}", [FUSED]),
    "hard swish": (f"{X} {{ h = Gemm(x, w, b) y = HardSwish(h) }}", [FUSED]),
    "leaky relu": (f"{X} {{ h = Gemm(x, w, b) y = LeakyRelu <alpha = 0.3> (h) }}", [FUSED]),
    "leaky relu as usual": (f"{X} {{ h = Gemm(x, w, b) y = LeakyRelu(h) }}", [FUSED]),
    "double precision": (
        "(double[3,5] x) => (double[3,3] y) "
        "{ t = Transpose(x) g = MatMul(x, t) h = Identity(g) y = Gelu(h) }",
        ["Transpose", FUSED],
    ),
}  # fmt: skip

STAYING = {
    "two biases": f"{X} {{ h = Gemm(x, w, b) y = com.microsoft.FastGelu(h, b) }}",
    "read twice": (
        "(float[3,5] x) => (float[3,12] y, float[3,12] h) "
        '{ h = Gemm(x, w, b) y = Gelu <approximate = "tanh"> (h) }'
    ),
    "no product": '(float[3,12] x) => (float[3,12] y) { y = Gelu <approximate = "tanh"> (x) }',
    "products of a batch": (
        "(float[2,3,5] x, float[2,5,12] z) => (float[2,3,12] y) { h = MatMul(x, z) y = Tanh(h) }"
    ),
    "other width": (
        "(float[3,5] x) => (float[12,3] y) "
        "{ g = MatMul(x, w) h = Reshape(g, turned) y = com.microsoft.BiasGelu(h, three) }"
    ),
}

MORE = {
    "other": np.array([3, 2, 12]),
    "turned": np.array([12, 3]),
    "three": np.ones(3, np.float32),
}


def model(text: str):
    constants = {
        name: array
        for name, array in {**CONSTANTS, **MORE}.items()
        if any(f"{before}{name}{after}" in text for before in "( " for after in ",)")
    }
    return model_of(text, constants, opset=20)


def passed(text: str, activations=ENDINGS):
    return run_passes(graph_of(model(text)), (*PASSES, *product_passes(activations)))[0]


@pytest.mark.parametrize("case", FUSING)
def test_fused_with_the_same_bits(case: str) -> None:
    text, wanted = FUSING[case]
    graph = passed(text)
    assert operators_of(graph) == wanted
    (node,) = [node for node in graph.operators if node.qualified_operator == FUSED]
    assert node.attributes["activation"] in ENDINGS
    plain = run_passes(graph_of(model(text)), PASSES)[0]
    assert FUSED not in operators_of(plain)
    assert graph.spec("y") == plain.spec("y")
    passes = (*PASSES, *product_passes(ENDINGS))
    # ONNX Runtime has no Erf of doubles.
    check(model(text), passes, rtol=1e-4, against_onnxruntime="double" not in text)
    feeds = feeds_of(model(text))
    for ours, theirs in zip(run_on_cpu(graph, feeds), run_on_cpu(plain, feeds), strict=True):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("case", STAYING)
def test_not_fused(case: str) -> None:
    assert FUSED not in operators_of(passed(STAYING[case]))


def test_only_what_the_device_takes() -> None:
    """A device that ends products by tanh's form keeps GELU proper as it is."""
    for case, fuses in (("tanh gelu", True), ("gelu", False), ("swish", False)):
        assert (FUSED in operators_of(passed(FUSING[case][0], ("FastGelu",)))) == fuses
    assert not product_passes(())


@pytest.mark.skipif(native.LIBRARY is None, reason="without the library nothing is gained")
def test_the_cpu_takes_them() -> None:
    with open_device("cpu", clock=SystemClock()).context as context:
        assert set(context.capabilities.product_endings) == set(ENDINGS)


@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16])
def test_erf_is_not_tanh_to_half_precision(half: type) -> None:
    """Why GELU proper is not replaced by tanh's form: below 0, that is many steps away."""
    x = np.linspace(-8, 8, 4001).astype(half).astype(np.float64)
    erf = np.array([0.5 * each * (1 + math.erf(each / math.sqrt(2))) for each in x])
    tanh = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    away = np.abs(tanh - erf)
    assert away.max() < 5e-4
    # Steps of what half precision can tell apart, where the result is no dust.
    large = np.abs(erf) > 1e-3
    steps = away[large] / np.abs(np.spacing(erf[large].astype(half))).astype(np.float64)
    assert steps.max() > 4
