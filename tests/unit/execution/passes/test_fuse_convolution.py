"""Convolution with what follows it, as one operator."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_pipe.execution.passes import fuse_convolution, run_passes
from aegis_pipe.execution.passes.fuse_convolution import FuseConvolution
from tests.unit.pass_driver import check, count, graph_of, model_of, operators_of

PASSES = (fuse_convolution,)
FUSED = "com.microsoft.FusedConv"
X = "(float[2,3,5,6] x) => (float[2,4,5,6] y)"
WITH_Z = "(float[2,3,5,6] x, float[2,4,5,6] z) => (float[2,4,5,6] y)"
CONV = "h = Conv <pads=[1,1,1,1]> (x, w)"


def random(*shape: int, seed: int = 1, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


CONSTANTS = {
    "w": random(4, 3, 3, 3),
    "v": random(4, 3, 1, 1),
    "b": random(4),
    "c": random(2, 4, 5, 6),
    "low": np.float32(-0.5).reshape(()),
    "high": np.float32(1.5).reshape(()),
}

SQUARE = random(4, 4, 1, 1)

FUSED_CASES = {
    "relu": f"{X} {{ {CONV} y = Relu(h) }}",
    "bias and relu": f"{X} {{ h = Conv <pads=[1,1,1,1]> (x, w, b) y = Relu(h) }}",
    "clip": f"{X} {{ {CONV} y = Clip(h, low, high) }}",
    "clip from below": f"{X} {{ {CONV} y = Clip(h, low) }}",
    "clip from above": f"{X} {{ {CONV} y = Clip(h, , high) }}",
    "residual": f"{WITH_Z} {{ {CONV} y = Add(h, z) }}",
    "residual first": f"{WITH_Z} {{ {CONV} y = Add(z, h) }}",
    "residual by sum": f"{WITH_Z} {{ {CONV} y = Sum(z, h) }}",
    "residual constant": f"{X} {{ {CONV} y = Add(c, h) }}",
    "residual and relu": f"{WITH_Z} {{ {CONV} i = Add(z, h) y = Relu(i) }}",
    "bias, residual and clip": f"{WITH_Z} {{ h = Conv <pads=[1,1,1,1]> (x, w, b) i = Add(h, z)"
    " y = Clip(i, low, high) }",
    "same padding": f'{WITH_Z} {{ h = Conv <auto_pad="SAME_UPPER"> (x, w) y = Add(h, z) }}',
    "one dimension": "(float[1,3,9] x) => (float[1,4,7] y) { h = Conv(x, line) y = Relu(h) }",
    "strided pointwise": "(float[1,3,9,9] x) => (float[1,4,5,5] y)"
    " { h = Conv <strides=[2,2]> (x, v) y = Relu(h) }",
}


@pytest.mark.parametrize("case", FUSED_CASES)
def test_fused_with_the_same_bits(case: str) -> None:
    model = model_of(FUSED_CASES[case], {**CONSTANTS, "line": random(4, 3, 3)})
    assert operators_of(check(model, PASSES, identical=True)) == [FUSED]


def test_bounds_as_attributes() -> None:
    model = model_of(f"{X} {{ {CONV} y = Clip <min=-0.5, max=1.5> (h) }}", CONSTANTS, opset=10)
    graph = check(model, PASSES, identical=True)
    assert graph.operators[0].attributes["activation_params"] == (-0.5, 1.5)


@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_other_floats(dtype: str) -> None:
    kind = np.float16 if dtype == "float16" else np.float64
    text = (
        f"({dtype}[1,3,5,5] x, {dtype}[1,4,3,3] z) => ({dtype}[1,4,3,3] y)"
        " { h = Conv(x, w) i = Add(h, z) y = Relu(i) }"
    )
    model = model_of(text, {"w": random(4, 3, 3, 3, dtype=kind)})
    # ONNX Runtime has no convolution of doubles.
    graph = check(model, PASSES, rtol=2e-3, atol=1e-3, against_onnxruntime=dtype == "float16")
    assert operators_of(graph) == [FUSED]


@pytest.mark.parametrize("order", ["short way first", "long way first"])
def test_where_branches_run_side_by_side_the_longer_way_adds(order: str) -> None:
    ways = {
        "short": "p = Conv <pads=[1,1,1,1]> (x, w)",
        "long": "a = Conv <pads=[1,1,1,1]> (x, w) r = Relu(a) q = Conv (r, u)",
    }
    both = " ".join(ways.values() if order.startswith("short") else reversed(ways.values()))
    model = model_of(f"{X} {{ {both} i = Add(p, q) y = Relu(i) }}", {**CONSTANTS, "u": SQUARE})
    graph = check(model, (FuseConvolution(),), identical=True)
    assert operators_of(graph).count(FUSED) == 2
    (adder,) = [node for node in graph.operators if len(node.inputs) == 4]
    (first,) = [node for node in graph.operators if node.outputs[0] == adder.inputs[0]]
    assert first.attributes["activation"] == "Relu"
    (short,) = [node for node in graph.operators if node.outputs[0] == adder.inputs[3]]
    assert short.inputs[0] == "x"
    assert graph.operators.index(short) < graph.operators.index(adder)


def test_of_two_convolutions_the_later_adds() -> None:
    text = (
        f"{X} {{ [first] h = Conv(x, v) [second] i = Conv <pads=[1,1,1,1]> (x, w)"
        " [sum] j = Add(h, i) [end] y = Relu(j) }"
    )
    graph = check(model_of(text, CONSTANTS), PASSES, identical=True)
    assert [node.name for node in graph.operators] == ["first", "end"]
    assert graph.operators[1].inputs == ("x", "w", "", "h")


def test_chain_of_blocks() -> None:
    text = (
        "(float[1,4,6,6] x) => (float[1,4,6,6] y) {"
        " a = Conv <pads=[1,1,1,1]> (x, q) b1 = Relu(a) c1 = Conv <pads=[1,1,1,1]> (b1, q)"
        " d = Add(c1, x) e = Relu(d) f = Conv <pads=[1,1,1,1]> (e, q) g = Add(e, f) y = Relu(g) }"
    )
    graph = check(model_of(text, {"q": random(4, 4, 3, 3)}), PASSES, identical=True)
    assert operators_of(graph) == [FUSED] * 3


def test_residual_alone_where_the_activation_is_not_fused() -> None:
    graph = check(model_of(f"{WITH_Z} {{ {CONV} i = Add(h, z) y = Tanh(i) }}", CONSTANTS), PASSES)
    assert operators_of(graph) == [FUSED, "Tanh"]


KEPT = {
    "result is an output": "(float[2,3,5,6] x) => (float[2,4,5,6] y, float[2,4,5,6] h)"
    f" {{ {CONV} y = Relu(h) }}",
    "several readers": f"{X} {{ {CONV} i = Relu(h) y = Mul(i, h) }}",
    "added to itself": f"{X} {{ {CONV} y = Add(h, h) }}",
    "addend broadcasts": f"{X} {{ {CONV} y = Add(h, low) }}",
    "result broadcasts": "(float[1,3,5,6] x, float[2,4,5,6] z) => (float[2,4,5,6] y)"
    f" {{ {CONV} y = Add(h, z) }}",
    "sum of three": f"{WITH_Z} {{ {CONV} y = Sum(h, z, z) }}",
    "bounds not constant": "(float[2,3,5,6] x, float limit) => (float[2,4,5,6] y)"
    f" {{ {CONV} y = Clip(h, limit) }}",
    "result is the bound": "(float[1,3,3,3] x, float[2,2] z) => (float[2,2] y)"
    " { h = Conv(x, single) i = Squeeze(h) y = Clip(z, i) }",
    "no activation": f"{X} {{ {CONV} y = Sin(h) }}",
    "transposed": "(float[1,4,5,5] x) => (float[1,3,7,7] y)"
    " { h = ConvTranspose(x, w) y = Relu(h) }",
}


@pytest.mark.parametrize("case", KEPT)
def test_not_fused(case: str) -> None:
    graph = graph_of(model_of(KEPT[case], {**CONSTANTS, "single": random(1, 3, 3, 3)}))
    after, _ = run_passes(graph, PASSES)
    assert count(after) == count(graph)


def test_integers_are_not_fused() -> None:
    text = "(uint8[1,3,5,5] x) => (int32[1,4,3,3] y) { h = ConvInteger(x, w) y = Relu(h) }"
    graph = graph_of(model_of(text, {"w": np.ones((4, 3, 3, 3), np.uint8)}))
    assert count(run_passes(graph, PASSES)[0]) == count(graph)
