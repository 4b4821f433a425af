"""Activations spelled out, in the spellings exporters use and in some they do not."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_pipe.execution.passes import Pass, fuse_gelu, fuse_swish, run_passes
from tests.unit.pass_driver import check, count, graph_of, model_of, operators_of

GELU, FAST_GELU = "com.microsoft.Gelu", "com.microsoft.FastGelu"
X = "(float[3,37] x) => (float[3,37] y)"


def numbers(dtype: type = np.float32) -> dict[str, np.ndarray]:
    values = {
        "root": 2**0.5,
        "inverse_root": 0.5**0.5,
        "one": 1,
        "half": 0.5,
        "two": 2,
        "three": 3,
        "cubic": 0.044715,
        "scale": (2 / np.pi) ** 0.5,
        "quick": 1.702,
        "six": 6,
        "sixth": 1 / 6,
        "zero": 0,
    }
    return {name: np.array(value, dtype) for name, value in values.items()}


ERF = "a = Div(x, root) e = Erf(a) s = Add(e, one)"
GELUS = {
    "pytorch": f"{ERF} m = Mul(x, s) y = Mul(m, half)",
    "half first": f"{ERF} h = Mul(x, half) y = Mul(h, s)",
    "half of the sum": f"{ERF} h = Mul(half, s) y = Mul(x, h)",
    "divided": f"{ERF} m = Mul(s, x) y = Div(m, two)",
    "multiplied": "a = Mul(inverse_root, x) e = Erf(a) s = Add(one, e) m = Mul(x, s)"
    " y = Mul(half, m)",
    "distributed": "a = Div(x, root) e = Erf(a) h = Mul(x, half) p = Mul(h, e) y = Add(h, p)",
}
FAST_GELUS = {
    "gpt": "c = Pow(x, three) d = Mul(c, cubic) f = Add(x, d) g = Mul(f, scale) t = Tanh(g)"
    " s = Add(t, one) h = Mul(x, half) y = Mul(h, s)",
    "products": "q = Mul(x, x) c = Mul(q, x) d = Mul(cubic, c) f = Add(x, d) g = Mul(scale, f)"
    " t = Tanh(g) s = Add(one, t) m = Mul(x, s) y = Mul(m, half)",
    "factored": "q = Mul(x, x) k = Mul(q, cubic) l = Add(k, one) n = Mul(x, scale)"
    " g = Mul(n, l) t = Tanh(g) s = Add(t, one) m = Mul(half, s) y = Mul(x, m)",
}
SWISHES = {
    "silu": ("s = Sigmoid(x) y = Mul(x, s)", 1.0),
    "silu, gate first": ("s = Sigmoid(x) y = Mul(s, x)", 1.0),
    "quick gelu": ("a = Mul(x, quick) s = Sigmoid(a) y = Mul(x, s)", 1.702),
}
HARD_SWISHES = {
    "paddle": "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
    "gate divided": "a = Add(three, x) c = Clip(a, zero, six) m = Div(c, six) y = Mul(m, x)",
    "gate multiplied": "a = Add(x, three) c = Clip(a, zero, six) m = Mul(c, sixth) y = Mul(x, m)",
    "unit gate": "b = Mul(x, sixth) a = Add(b, half) c = Clip(a, zero, one) y = Mul(x, c)",
    "hard sigmoid": "c = HardSigmoid <alpha=0.16666667, beta=0.5> (x) y = Mul(x, c)",
}


def fused(text: str, one: Pass) -> list[str]:
    return operators_of(check(model_of(f"{X} {{ {text} }}", numbers()), (one,), atol=1e-6))


@pytest.mark.parametrize("case", GELUS)
def test_gelu(case: str) -> None:
    assert fused(GELUS[case], fuse_gelu) == [GELU]


@pytest.mark.parametrize("case", FAST_GELUS)
def test_gelu_by_tanh(case: str) -> None:
    assert fused(FAST_GELUS[case], fuse_gelu) == [FAST_GELU]


@pytest.mark.parametrize("case", SWISHES)
def test_swish(case: str) -> None:
    text, alpha = SWISHES[case]
    graph = check(model_of(f"{X} {{ {text} }}", numbers()), (fuse_swish,))
    assert operators_of(graph) == ["Swish"]
    assert graph.operators[0].attributes["alpha"] == pytest.approx(alpha, rel=1e-6)


@pytest.mark.parametrize("case", HARD_SWISHES)
def test_hard_swish(case: str) -> None:
    assert fused(HARD_SWISHES[case], fuse_swish) == ["HardSwish"]


def test_of_a_computed_tensor() -> None:
    text = f"b = Mul(x, quick) z = Add(b, one) {GELUS['pytorch'].replace('(x,', '(z,')}"
    assert fused(text, fuse_gelu) == ["Mul", "Add", GELU]


def test_half_precision() -> None:
    text = f"(float16[3,37] x) => (float16[3,37] y) {{ {GELUS['pytorch']} }}"
    graph = check(model_of(text, numbers(np.float16)), (fuse_gelu,), rtol=4e-3, atol=1e-3)
    assert operators_of(graph) == [GELU]


def test_two_of_the_same_tensor() -> None:
    text = "s = Sigmoid(x) a = Mul(x, s) t = Sigmoid(x) b = Mul(t, x) y = Add(a, b)"
    assert fused(text, fuse_swish) == ["Swish", "Swish", "Add"]


def test_name_is_the_last_one() -> None:
    text = f"{X} {{ [gate] s = Sigmoid(x) [product] y = Mul(x, s) }}"
    after, _ = run_passes(graph_of(model_of(text)), (fuse_swish,))
    assert [node.name for node in after.operators] == ["product"]


KEPT = {
    "gate is an output": "(float[3] x) => (float[3] y, float[3] s) {"
    " s = Sigmoid(x) y = Mul(x, s) }",
    "gate read twice": "(float[3] x) => (float[3] y) {"
    " s = Sigmoid(x) m = Mul(x, s) y = Add(m, s) }",
    "inner is an output": "(float[3] x) => (float[3] y, float[3] a) {"
    " a = Mul(x, quick) s = Sigmoid(a) y = Mul(x, s) }",
    "factor not constant": "(float[3] x, float q) => (float[3] y) {"
    " a = Mul(x, q) s = Sigmoid(a) y = Mul(x, s) }",
    "another tensor": "(float[3] x, float[3] z) => (float[3] y) { s = Sigmoid(x) y = Mul(z, s) }",
    "gate alone": "(float[3] x) => (float[3] y) { y = Sigmoid(x) }",
    "shifted gate": "(float[3] x) => (float[3] y) { a = Add(x, one) s = Sigmoid(a) y = Mul(x, s) }",
    "wrong root": "(float[3] x) => (float[3] y) {"
    " a = Div(x, two) e = Erf(a) s = Add(e, one) m = Mul(x, s) y = Mul(m, half) }",
    "no half": f"(float[3] x) => (float[3] y) {{ {ERF} y = Mul(x, s) }}",
    "difference": "(float[3] x) => (float[3] y) {"
    " a = Div(x, root) e = Erf(a) s = Sub(one, e) m = Mul(x, s) y = Mul(m, half) }",
    "wrong cubic": "(float[3] x) => (float[3] y) { c = Pow(x, three) d = Mul(c, half) f = Add(x, d)"
    " g = Mul(f, scale) t = Tanh(g) s = Add(t, one) h = Mul(x, half) y = Mul(h, s) }",
    "wrong bound": "(float[3] x) => (float[3] y) {"
    " a = Add(x, three) c = Clip(a, zero, three) m = Mul(x, c) y = Div(m, six) }",
    "lower bound": "(float[3] x) => (float[3] y) {"
    " a = Add(x, three) c = Clip(a, half, six) m = Mul(x, c) y = Div(m, six) }",
    "other hard sigmoid": "(float[3] x) => (float[3] y) { c = HardSigmoid(x) y = Mul(x, c) }",
    "broadcast": "(float[3] x) => (float[1,3] y) {"
    " a = Div(x, wide) e = Erf(a) s = Add(e, one) m = Mul(x, s) y = Mul(m, half) }",
    "product of gates": "(float[3] x) => (float[3] y) {"
    " s = Sigmoid(x) m = Mul(s, s) y = Mul(x, m) }",
}


@pytest.mark.parametrize("case", KEPT)
def test_not_fused(case: str) -> None:
    wide = numbers()["root"].reshape(1, 1)
    graph = graph_of(model_of(KEPT[case], {**numbers(), "wide": wide}))
    after, _ = run_passes(graph, (fuse_gelu, fuse_swish))
    assert count(after) == count(graph)
