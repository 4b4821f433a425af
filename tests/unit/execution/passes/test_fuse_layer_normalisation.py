"""Layer and RMS normalisation from the chains exporters write."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_pipe.execution.passes import fuse_layer_normalisation, run_passes
from tests.unit.pass_driver import check, count, graph_of, model_of, operators_of

PASSES = (fuse_layer_normalisation,)
X = "(float[2,3,16] x) => (float[2,3,16] y)"
CENTRE = "m = ReduceMean <axes=[-1]> (x) d = Sub(x, m)"
ROOT = "v = ReduceMean <axes=[-1]> (q) e = Add(v, eps) r = Sqrt(e)"
CORE = f"{CENTRE} q = Pow(d, two) {ROOT} n = Div(d, r)"
RMS = f"q = Pow(x, two) {ROOT}"


def constants(dtype: type = np.float32) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(7)
    return {
        "two": np.array(2, dtype),
        "one": np.array(1, dtype),
        "eps": np.array(1e-3, dtype),
        "g": generator.standard_normal(16).astype(dtype),
        "b": generator.standard_normal(16).astype(dtype),
        "deep": generator.standard_normal((1, 1, 16)).astype(dtype),
        "plane": generator.standard_normal((3, 16)).astype(dtype),
        "column": generator.standard_normal((3, 1)).astype(dtype),
        "axis": np.array([-1]),
        "eps32": np.array(1e-3, np.float32),
        "two32": np.array(2, np.float32),
    }


LAYERS = {
    "pytorch": f"{CORE} s = Mul(n, g) y = Add(s, b)",
    "parameters first": f"{CORE} s = Mul(g, n) y = Add(b, s)",
    "square as product": f"{CENTRE} q = Mul(d, d) {ROOT} n = Div(d, r) s = Mul(n, g) y = Add(s, b)",
    "by reciprocal": f"{CENTRE} q = Pow(d, two) {ROOT} i = Reciprocal(r) n = Mul(d, i)"
    " s = Mul(n, g) y = Add(s, b)",
    "by quotient": f"{CENTRE} q = Pow(d, two) {ROOT} i = Div(one, r) n = Mul(i, d)"
    " s = Mul(n, g) y = Add(s, b)",
    "no beta": f"{CORE} y = Mul(n, g)",
    "no parameters": CORE.replace("n = Div", "y = Div"),
    "beta alone": f"{CORE} y = Add(n, b)",
    "parameters of three dimensions": f"{CORE} s = Mul(n, deep) y = Add(s, deep)",
    "two axes": CORE.replace("[-1]", "[-2,-1]") + " s = Mul(n, plane) y = Add(s, plane)",
}


@pytest.mark.parametrize("case", LAYERS)
def test_layer_normalisation(case: str) -> None:
    graph = check(model_of(f"{X} {{ {LAYERS[case]} }}", constants()), PASSES)
    assert operators_of(graph) == ["LayerNormalization"]


def test_axes_as_operand() -> None:
    text = LAYERS["pytorch"].replace(" <axes=[-1]> (x)", "(x, axis)")
    text = text.replace(" <axes=[-1]> (q)", "(q, axis)")
    graph = check(model_of(f"{X} {{ {text} }}", constants(), opset=18), PASSES)
    assert operators_of(graph) == ["LayerNormalization"]


def test_parameters_by_row_stay_outside() -> None:
    graph = check(model_of(f"{X} {{ {CORE} y = Mul(n, column) }}", constants()), PASSES)
    assert operators_of(graph) == ["LayerNormalization", "Mul"]


RMS_CASES = {
    "divided": f"{RMS} n = Div(x, r) y = Mul(n, g)",
    "by reciprocal": f"{RMS} i = Reciprocal(r) n = Mul(x, i) y = Mul(g, n)",
    "no gamma": f"{RMS} y = Div(x, r)",
}


@pytest.mark.parametrize("case", RMS_CASES)
def test_rms_normalisation(case: str) -> None:
    # The operator is younger than the models that spell it out.
    graph = check(model_of(f"{X} {{ {RMS_CASES[case]} }}", constants()), PASSES)
    assert operators_of(graph) == ["RMSNormalization"]


HALF = "(float16[2,3,16] x) => (float16[2,3,16] y)"
WITH_CASTS = {
    "around it": "w = Cast <to=1> (x) m = ReduceMean <axes=[-1]> (w) d = Sub(w, m)"
    " q = Pow(d, two32) v = ReduceMean <axes=[-1]> (q) e = Add(v, eps32) r = Sqrt(e) n = Div(d, r)"
    " h = Cast <to=10> (n) s = Mul(h, g) y = Add(s, b)",
    "around the square": f"{CENTRE} w = Cast <to=1> (d) q = Pow(w, two32)"
    " v = ReduceMean <axes=[-1]> (q) e = Add(v, eps32) k = Sqrt(e) r = Cast <to=10> (k)"
    " n = Div(d, r) s = Mul(n, g) y = Add(s, b)",
}


@pytest.mark.parametrize("case", WITH_CASTS)
def test_casts_are_part_of_it(case: str) -> None:
    model = model_of(f"{HALF} {{ {WITH_CASTS[case]} }}", constants(np.float16))
    graph = check(model, PASSES, rtol=5e-3, atol=2e-3)
    assert operators_of(graph) == ["LayerNormalization"]


def test_rms_with_casts() -> None:
    text = (
        "w = Cast <to=1> (x) q = Mul(w, w) v = ReduceMean <axes=[-1]> (q) e = Add(v, eps32)"
        " r = Sqrt(e) i = Reciprocal(r) n = Mul(w, i) h = Cast <to=10> (n) y = Mul(g, h)"
    )
    model = model_of(f"{HALF} {{ {text} }}", constants(np.float16))
    assert operators_of(check(model, PASSES, rtol=5e-3, atol=2e-3)) == ["RMSNormalization"]


def test_name_is_the_last_one() -> None:
    text = f"{X} {{ {CORE} s = Mul(n, g) [beta] y = Add(s, b) }}"
    after, _ = run_passes(graph_of(model_of(text, constants())), PASSES)
    assert [node.name for node in after.operators] == ["beta"]


KEPT = {
    "difference is an output": "(float[2,3,16] x) => (float[2,3,16] y, float[2,3,16] d)"
    f" {{ {CORE} s = Mul(n, g) y = Add(s, b) }}",
    "root read twice": f"{X} {{ {CORE} y = Mul(n, r) }}",
    "variance read twice": f"{X} {{ {CORE} y = Mul(n, v) }}",
    "epsilon not constant": "(float[2,3,16] x, float eps2) => (float[2,3,16] y)"
    f" {{ {CORE.replace('eps', 'eps2')} s = Mul(n, g) y = Add(s, b) }}",
    "first axis": f"{X} {{ {CORE.replace('[-1]', '[1]')} y = Mul(n, g) }}",
    "cube": f"{X} {{ {CENTRE} q = Pow(d, three) {ROOT} y = Div(d, r) }}",
    "another numerator": "(float[2,3,16] x, float[2,3,16] z) => (float[2,3,16] y)"
    f" {{ {RMS} y = Div(z, r) }}",
    "root divided": f"{X} {{ {RMS} y = Div(r, x) }}",
    "doubles": "(double[2,3,16] x) => (double[2,3,16] y)"
    " { q = Mul(x, x) v = ReduceMean <axes=[-1]> (q) e = Add(v, eps64) r = Sqrt(e) y = Div(x, r) }",
    "product of two": "(float[2,3,16] x, float[2,3,16] z) => (float[2,3,16] y)"
    f" {{ q = Mul(x, z) {ROOT} y = Div(x, r) }}",
}


@pytest.mark.parametrize("case", KEPT)
def test_not_fused(case: str) -> None:
    more = {"three": np.array(3, np.float32), "eps64": np.array(1e-3)}
    graph = graph_of(model_of(KEPT[case], constants() | more))
    after, _ = run_passes(graph, PASSES)
    assert count(after) == count(graph)
