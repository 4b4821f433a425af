"""Elementwise operators that only feed one another, as one chain with the same bits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

# Whole, before a test takes the library away: its modules would keep what they found then.
import aegis_pipe.device.cpu.context  # noqa: F401
from aegis_pipe.device.cpu.kernels import compiled_elementwise_chains, native
from aegis_pipe.device.elementwise_chains import CHAIN, STEPS_MAX
from aegis_pipe.execution.passes import PASSES, run_passes
from aegis_pipe.execution.passes.fuse_elementwise import FuseElementwise
from tests.unit.pass_driver import check, count, graph_of, model_of, operators_of

FUSE = FuseElementwise(compiled_elementwise_chains.STEPS)

CONSTANTS = {
    "one": np.array(1, np.float32),
    "two": np.array([2], np.float32),
    "three": np.array(3, np.float32),
    "six": np.array(6, np.float32),
    "zero": np.array(0, np.float32),
    "many": np.array(255, np.float32),
    "row": np.random.default_rng(0).standard_normal(40).astype(np.float32),
    "mean": np.array([0.5, 0.4, 0.3], np.float32).reshape(3, 1, 1),
    "deviation": np.array([0.2, 0.3, 0.1], np.float32).reshape(3, 1, 1),
    "nowhere": np.array(1, np.int64),
    "axis": np.array([-1], np.int64),
    "epsilon": np.array(1e-5, np.float32),
}

WHOLE = {
    "hard swish": "(float[2,3,400] x) => (float[2,3,400] y)"
    " { a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six) }",
    "preprocessing": "(uint8[2,3,30,30] x) => (float[2,3,30,30] y)"
    " { a = Cast <to=1> (x) b = Div(a, many) c = Sub(b, mean) d = Div(c, deviation)"
    " y = Clip(d, zero, six) }",
    "gates": "(float[4,40] z, float[4,40] n, float[4,40] h) => (float[4,40] y)"
    " { s = Sigmoid(z) t = Tanh(n) o = Sub(one, s) p = Mul(o, t) q = Mul(s, h) y = Add(p, q) }",
    "mask": "(float[3,40] x, int64[3,1] n, int64[40] i) => (float[3,40] y)"
    " { l = Less(i, n) p = Greater(x, zero) b = And(l, p) e = Exp(x) y = Where(b, e, one) }",
    "square": "(float[3,40] x) => (float[3,40] y) { a = Pow(x, two) b = Add(a, one) y = Sqrt(b) }",
    "gelu": "(float[3,40] x) => (float[3,40] y)"
    " { a = com.microsoft.Gelu(x) b = com.microsoft.FastGelu(a) y = Mul(b, row) }",
    "result is a truth value": "(float[3,40] x) => (bool[3,40] y)"
    " { a = Mul(x, row) b = Abs(a) y = Less(b, one) }",
    "read twice by one": "(float[3,40] x) => (float[3,40] y) { a = Tanh(x) y = Mul(a, a) }",
    "several tiles": "(float[3,7000] x, float[3,1] z) => (float[3,7000] y)"
    " { a = Sub(x, z) b = Tanh(a) y = Mul(b, x) }",
    "outer product": "(float[9,1] x, float[40] z) => (float[9,40] y)"
    " { a = Mul(x, z) b = Sub(a, row) y = Relu(b) }",
}


@pytest.mark.parametrize("case", WHOLE)
def test_one_chain_with_the_same_bits_without_a_library(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumPy's kernels, tile by tile, are what they are over whole tensors."""
    monkeypatch.setattr(native, "LIBRARY", None)
    graph = check(model_of(WHOLE[case], CONSTANTS), (FUSE,), identical=True, atol=1e-5)
    assert operators_of(graph) == [CHAIN]


@pytest.mark.parametrize("case", WHOLE)
def test_one_chain_with_the_same_bits(case: str) -> None:
    graph = check(model_of(WHOLE[case], CONSTANTS), (FUSE,), identical=True, atol=1e-5)
    assert operators_of(graph) == [CHAIN]


def test_layer_normalisation_written_out() -> None:
    """Around the means, which are no elementwise operators; shapes are never mixed."""
    text = (
        "(float[6,40] x) => (float[6,40] y)"
        " { m = ReduceMean <axes=[-1]> (x) d = Sub(x, m) s = Mul(d, d)"
        " v = ReduceMean <axes=[-1]> (s) w = Add(v, epsilon) r = Sqrt(w) n = Div(d, r)"
        " g = Mul(n, row) y = Add(g, row) }"
    )
    graph = check(model_of(text, CONSTANTS), (FUSE,), identical=True)
    assert count(graph) == {"ReduceMean": 2, CHAIN: 2, "Sub": 1, "Mul": 1}


def test_a_result_that_others_read_stays() -> None:
    text = (
        "(float[3,40] x) => (float[3,40] y, float[3,40] b)"
        " { a = Tanh(x) b = Mul(a, row) c = Neg(b) y = Add(c, one) }"
    )
    graph = check(model_of(text, CONSTANTS), (FUSE,), identical=True)
    assert operators_of(graph) == [CHAIN, CHAIN]
    assert graph.outputs == ("y", "b")


def test_long_ones_are_cut() -> None:
    length = STEPS_MAX + 5
    names = ["x", *(f"a{i}" for i in range(length - 1)), "y"]
    body = " ".join(f"{b} = Tanh({a})" for a, b in pairwise(names))
    text = f"(float[3,40] x) => (float[3,40] y) {{ {body} }}"
    graph = check(model_of(text), (FUSE,), identical=True, atol=1e-4)
    lengths = [len(node.attributes["operators"]) for node in graph.operators]
    assert lengths == [5, STEPS_MAX]


def test_many_inputs_are_two_chains() -> None:
    names = [f"x{i}" for i in range(12)]
    sums = [f"s{i} = Add({'x0' if i == 1 else f's{i - 1}'}, x{i})" for i in range(1, 12)]
    inputs = ", ".join(f"float[2,40] {name}" for name in names)
    text = f"({inputs}) => (float[2,40] s11) {{ {' '.join(sums)} }}"
    graph = check(model_of(text), (FUSE,), identical=True)
    assert [len(node.inputs) for node in graph.operators] == [5, 8]


KEPT = {
    "one operator": "(float[3,40] x) => (float[3,40] y) { y = Tanh(x) }",
    "another shape": "(float[3,40] x, float[40] z) => (float[3,40] y)"
    " { a = Tanh(z) y = Add(x, a) }",
    "no function of the device": "(float[3,40] x) => (float[3,40] y) { a = Sin(x) y = Neg(a) }",
    "a cube": "(float[3,40] x) => (float[3,40] y) { a = Pow(x, three) y = Neg(a) }",
    "bounds that are data": "(float[3,40] x, float z) => (float[3,40] y)"
    " { a = Clip(x, z) y = Neg(a) }",
    "sum of three": "(float[3,40] x) => (float[3,40] y) { a = Sum(x, x, x) y = Neg(a) }",
    "double precision": "(double[3,40] x) => (double[3,40] y) { a = Abs(x) y = Neg(a) }",
    "slope": "(float[3,40] x) => (float[3,40] y) { a = PRelu(x, row) y = Neg(a) }",
    "gelu with a bias": "(float[3,40] x) => (float[3,40] y)"
    " { a = com.microsoft.BiasGelu(x, row) y = Neg(a) }",
}


@pytest.mark.parametrize("case", KEPT)
def test_not_fused(case: str) -> None:
    graph = graph_of(model_of(KEPT[case], CONSTANTS))
    after, _ = run_passes(graph, (FUSE,))
    assert count(after) == count(graph)


def test_what_other_passes_know_stays_theirs() -> None:
    """GELU spelled out, and the activation and the addition behind a product."""
    text = (
        "(float[3,40] x, float[40,40] w) => (float[3,40] y)"
        " { p = Gemm(x, w, row) r = Relu(p) a = Mul(r, half) b = Mul(r, root) e = Erf(b)"
        " o = Add(e, one) y = Mul(a, o) }"
    )
    more = {"half": np.array(0.5, np.float32), "root": np.array(0.5**0.5, np.float32)}
    graph, _ = run_passes(graph_of(model_of(text, CONSTANTS | more)), (*PASSES, FUSE))
    assert operators_of(graph) == ["com.microsoft.FusedGemm", "com.microsoft.Gelu"]
