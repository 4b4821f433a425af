"""Dynamically quantised products as one operator."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_pipe.execution.passes import fuse_dynamic_quantisation
from tests.unit.pass_driver import check, count, model_of

PASSES = (fuse_dynamic_quantisation,)
TO_FLOAT, DYNAMIC = "com.microsoft.MatMulIntegerToFloat", "com.microsoft.DynamicQuantizeMatMul"

CONSTANTS = {
    "w": np.random.default_rng(0).integers(-127, 128, (9, 6)).astype(np.int8),
    "w_zero": np.int8(3),
    "w_zeros": np.zeros(6, np.int8),
    "w_scale": np.float32(0.01),
    "w_scales": np.linspace(0.01, 0.02, 6, dtype=np.float32),
    "bias": np.linspace(-1, 1, 6, dtype=np.float32),
    "wide": np.ones((4, 6), np.float32),
}
HEAD = "(float[4,9] x) => (float[4,6] y) {"
PRODUCT = (
    "q, s, z = DynamicQuantizeLinear(x) p = MatMulInteger(q, w, z, w_zero) f = Cast <to=1> (p)"
)


@pytest.mark.parametrize(
    ("zero", "scale"), [("w_zero", "w_scale"), ("w_zeros", "w_scales"), ("w_zero", "w_scales")]
)
@pytest.mark.parametrize("addition", ["", "bias"])
def test_product_of_what_is_quantised_for_it(zero: str, scale: str, addition: str) -> None:
    product = PRODUCT.replace("w_zero", zero)
    end = f"m = Mul(f, t) y = Add(m, {addition})" if addition else "y = Mul(f, t)"
    model = model_of(f"{HEAD} {product} t = Mul(s, {scale}) {end} }}", CONSTANTS)
    assert count(check(model, PASSES, atol=1e-6)) == {DYNAMIC: 1}


def test_products_that_share_what_is_quantised() -> None:
    text = f"""{HEAD} {PRODUCT} t = Mul(s, w_scale) a = Mul(t, f)
        p2 = MatMulInteger(q, w, z, w_zeros) f2 = Cast <to=1> (p2) t2 = Mul(w_scales, s)
        m = Mul(f2, t2) b = Add(bias, m) y = Sub(a, b) }}"""
    graph = check(model_of(text, CONSTANTS), PASSES, atol=1e-6)
    assert count(graph) == {"DynamicQuantizeLinear": 1, TO_FLOAT: 2, "Sub": 1}


KEPT = {
    "integers that are needed": f"{PRODUCT} t = Mul(s, w_scale) m = Mul(f, t) g = Cast <to=1> (p)"
    " y = Add(m, g)",
    "scales of rows": f"{PRODUCT} t = Mul(s, wide) y = Mul(f, t)",
    "no scales": f"{PRODUCT} y = Mul(f, w_scale)",
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_left_alone(name: str) -> None:
    graph = check(model_of(f"{HEAD} {KEPT[name]} }}", CONSTANTS), PASSES, identical=True)
    assert count(graph)["MatMulInteger"] == 1


def test_an_addition_that_is_no_bias_stays() -> None:
    text = f"{HEAD} {PRODUCT} t = Mul(s, w_scale) m = Mul(f, t) y = Add(m, wide) }}"
    graph = check(model_of(text, CONSTANTS), PASSES, atol=1e-6)
    assert count(graph) == {DYNAMIC: 1, "Add": 1}
