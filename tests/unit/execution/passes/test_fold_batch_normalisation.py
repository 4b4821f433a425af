"""Batch normalisations and per-channel constants folded into weights."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_pipe.execution.passes import fold_batch_normalisation, run_passes
from tests.unit.pass_driver import check, count, graph_of, model_of, operators_of

PASSES = (fold_batch_normalisation,)


def random(*shape: int, seed: int = 1, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def normalisation(channels: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {
        "scale": random(channels, seed=2, dtype=dtype),
        "shift": random(channels, seed=3, dtype=dtype),
        "mean": random(channels, seed=4, dtype=dtype),
        "variance": np.abs(random(channels, seed=5, dtype=dtype)) + dtype(0.1),
    }


BN = "BatchNormalization <epsilon=0.01>"
PARAMETERS = "scale, shift, mean, variance"
CONV = "h = Conv <pads=[1,1,1,1]> (x, w{bias})"
AFTER = f"{{{{ h = {{}} (x, w) y = {BN} (h, {PARAMETERS}) }}}}"
X = "(float[2,3,5,6] x) => (float[2,4,5,6] y)"


@pytest.mark.parametrize("bias", ["", ", b"])
def test_normalisation_after_conv(bias: str) -> None:
    text = f"{X} {{ {CONV.format(bias=bias)} y = {BN} (h, {PARAMETERS}) }}"
    model = model_of(text, {"w": random(4, 3, 3, 3), "b": random(4), **normalisation(4)})
    assert operators_of(check(model, PASSES)) == ["Conv"]


def test_normalisation_after_grouped_conv() -> None:
    text = f"(float[1,4,5,5] x) => (float[1,6,3,3] y) {AFTER.format('Conv <group=2>')}"
    model = model_of(text, {"w": random(6, 2, 3, 3), **normalisation(6)})
    assert operators_of(check(model, PASSES)) == ["Conv"]


@pytest.mark.parametrize(("group", "maps"), [(1, 6), (2, 3)])
def test_normalisation_after_transposed_conv(group: int, maps: int) -> None:
    text = "(float[1,4,5,5] x) => (float[1,6,7,7] y) "
    text += AFTER.format(f"ConvTranspose <group={group}>")
    model = model_of(text, {"w": random(4, maps, 3, 3), **normalisation(6)})
    assert operators_of(check(model, PASSES)) == ["ConvTranspose"]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", ["", ", b", ", one"])
def test_normalisation_after_gemm(transposed: int, bias: str) -> None:
    text = (
        "(float[3,5] x) => (float[3,4] y) {"
        f" h = Gemm <alpha=0.5, beta=2.0, transB={transposed}> (x, w{bias})"
        f" y = {BN} (h, {PARAMETERS}) }}"
    )
    weights = random(4, 5) if transposed else random(5, 4)
    model = model_of(text, {"w": weights, "b": random(1, 4), "one": random(1), **normalisation(4)})
    assert operators_of(check(model, PASSES)) == ["Gemm"]


@pytest.mark.parametrize(
    "steps",
    [
        "y = Mul(h, c)",
        "y = Mul(c, h)",
        "y = Add(h, c)",
        "y = Sub(h, c)",
        "y = Sub(c, h)",
        "y = Div(h, c)",
        "y = Mul(h, single)",
        f"i = Mul(h, c) j = Add(i, c) k = {BN} (j, {PARAMETERS}) y = Sub(single, k)",
    ],
)
def test_constants_by_channel(steps: str) -> None:
    text = f"{X} {{ {CONV.format(bias='')} {steps} }}"
    constants = {"c": random(4, 1, 1), "single": random(1), **normalisation(4)}
    graph = check(model_of(text, {"w": random(4, 3, 3, 3), **constants}), PASSES)
    assert operators_of(graph) == ["Conv"]


def test_bias_alone_keeps_weights_and_bits() -> None:
    text = f"{X} {{ {CONV.format(bias='')} y = Add(h, c) }}"
    model = model_of(text, {"w": random(4, 3, 3, 3), "c": random(1, 4, 1, 1)})
    graph = check(model, PASSES, identical=True)
    assert operators_of(graph) == ["Conv"]
    assert graph.operators[0].inputs[1] == "w"


def test_scale_alone_adds_no_bias() -> None:
    text = f"{X} {{ {CONV.format(bias='')} y = Mul(h, c) }}"
    graph = check(model_of(text, {"w": random(4, 3, 3, 3), "c": random(4, 1, 1)}), PASSES)
    assert len(graph.operators[0].inputs) == 2


def test_constants_after_a_normalisation_that_stays() -> None:
    text = (
        "(float[2,4,3] x) => (float[2,4,3] y)"
        f" {{ h = {BN} (x, {PARAMETERS}) i = Mul(h, c) y = Add(i, c) }}"
    )
    graph = check(model_of(text, {"c": random(4, 1), **normalisation(4)}), PASSES)
    assert operators_of(graph) == ["BatchNormalization"]


def test_weights_of_two_convolutions_stay_apart() -> None:
    text = (
        "(float[1,3,5,5] x) => (float[1,4,3,3] y, float[1,4,3,3] z)"
        " { h = Conv(x, w) y = Mul(h, c) z = Conv(x, w) }"
    )
    graph = check(model_of(text, {"w": random(4, 3, 3, 3), "c": random(4, 1, 1)}), PASSES)
    assert operators_of(graph) == ["Conv", "Conv"]


def test_name_and_result_are_the_last_ones() -> None:
    text = f"{X} {{ [conv] {CONV.format(bias='')} [scale] y = Mul(h, c) }}"
    model = model_of(text, {"w": random(4, 3, 3, 3), "c": random(4, 1, 1)})
    graph, _ = run_passes(graph_of(model), PASSES)
    assert [(node.name, node.outputs) for node in graph.operators] == [("scale", ("y",))]


KEPT = {
    "intermediate is an output": "(float[2,3,5,6] x) => (float[2,4,5,6] y, float[2,4,5,6] h)"
    f" {{ {CONV.format(bias='')} y = Mul(h, c) }}",
    "several readers": f"{X} {{ {CONV.format(bias='')} i = Mul(h, c) y = Add(i, h) }}",
    "itself": f"{X} {{ {CONV.format(bias='')} y = Mul(h, h) }}",
    "scale not constant": "(float[2,3,5,6] x, float[4,1,1] s) => (float[2,4,5,6] y)"
    f" {{ {CONV.format(bias='')} y = Mul(h, s) }}",
    "weights not constant": "(float[2,3,5,6] x, float[4,3,3,3] v) => (float[2,4,5,6] y)"
    " { h = Conv <pads=[1,1,1,1]> (x, v) y = Mul(h, c) }",
    "bias not constant": "(float[2,3,5,6] x, float[4] v) => (float[2,4,5,6] y)"
    " { h = Conv <pads=[1,1,1,1]> (x, w, v) y = Mul(h, c) }",
    "by column": f"{X} {{ {CONV.format(bias='')} y = Mul(h, columns) }}",
    "broadcasts the result": "(float[1,3,5,6] x) => (float[2,4,5,6] y)"
    f" {{ {CONV.format(bias='')} y = Mul(h, images) }}",
    "divides a constant": f"{X} {{ {CONV.format(bias='')} y = Div(c, h) }}",
    "half precision": "(float16[2,3,5,6] x) => (float16[2,4,5,6] y)"
    " { h = Conv <pads=[1,1,1,1]> (x, w16) y = Mul(h, c16) }",
    "division by zero": f"{X} {{ {CONV.format(bias='')} y = Div(h, zeros) }}",
    "bias by row": "(float[3,5] x) => (float[3,4] y) { h = Gemm(x, g, rows) y = Mul(h, single) }",
}


@pytest.mark.parametrize("case", KEPT)
def test_not_folded(case: str) -> None:
    constants = {
        "w": random(4, 3, 3, 3),
        "c": random(4, 1, 1),
        "columns": random(6),
        "images": random(2, 1, 1, 1),
        "w16": random(4, 3, 3, 3, dtype=np.float16),
        "c16": random(4, 1, 1, dtype=np.float16),
        "zeros": np.zeros((4, 1, 1), np.float32),
        "g": random(5, 4),
        "rows": random(3, 1),
        "single": random(1),
    }
    graph = graph_of(model_of(KEPT[case], constants))
    after, _ = run_passes(graph, PASSES)
    assert count(after) == count(graph)


def test_training_is_not_folded() -> None:
    text = (
        "(float[2,3,5,6] x) => (float[2,4,3,4] y)"
        f" {{ h = Conv(x, w) y, m, v = BatchNormalization <training_mode=1> (h, {PARAMETERS}) }}"
    )
    graph = graph_of(model_of(text, {"w": random(4, 3, 3, 3), **normalisation(4)}))
    after, _ = run_passes(graph, PASSES)
    assert count(after) == count(graph)
