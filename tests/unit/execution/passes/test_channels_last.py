"""Images get their channels last, and results stay."""

from __future__ import annotations

import numpy as np

from aegis_pipe.execution.passes import CHANNELS_LAST_PASSES, PASSES
from tests.unit.pass_driver import check, count, model_of

PADS = "pads=[1,1,1,1]"


def _values(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(0, 0.2, shape).astype(np.float32)


CONSTANTS = {
    "stem": _values(8, 3, 3, 3),
    "w": _values(8, 8, 3, 3),
    "depthwise": _values(8, 1, 3, 3),
    "narrow": _values(4, 8, 1, 1),
    "c": _values(8),
    "v": np.abs(_values(8)) + 1,
    "per_channel": _values(8, 1, 1),
}


def _after(text: str):
    model = model_of(f"(float[2,3,9,8] x) => {text}", CONSTANTS)
    return check(model, (*PASSES, *CHANNELS_LAST_PASSES), rtol=1e-4, atol=1e-5)


def test_a_network_turns_its_images_once_each_way() -> None:
    graph = _after(
        f"(float[2,8,9,8] y) {{ a = Conv <{PADS}> (x, stem) b = Relu (a)"
        f" d = Conv <{PADS}> (b, w) e = Add (b, d) f = Conv <group=8, {PADS}> (e, depthwise)"
        f" g = MaxPool <kernel_shape=[3,3], {PADS}> (f)"
        f" h = AveragePool <kernel_shape=[3,3], {PADS}> (f)"
        " i = Mul (g, per_channel) y = Sub (i, h) }"
    )
    assert count(graph)["Transpose"] == 2
    assert count(graph)["com.microsoft.NhwcFusedConv"] == 3
    assert count(graph)["Conv"] == 0


def test_pooled_images_are_led_back_without_a_move() -> None:
    graph = _after(
        f"(float[2,8] y) {{ a = Conv <{PADS}> (x, stem)"
        " b = GlobalAveragePool (a) y = Flatten (b) }"
    )
    assert count(graph)["Transpose"] == 1
    assert count(graph)["aegis.NhwcAveragePool"] == 1


def test_channels_are_joined_where_they_are_now() -> None:
    graph = _after(
        f"(float[2,12,9,8] y) {{ a = Conv <{PADS}> (x, stem) b = Conv (a, narrow)"
        " y = Concat <axis=1> (a, b) }"
    )
    joined = next(node for node in graph.operators if node.operator == "Concat")
    assert joined.attributes["axis"] == 3


def test_a_normalisation_with_its_relu_becomes_a_convolution() -> None:
    graph = _after(
        f"(float[2,8,9,8] y, float[2,8,9,8] z) {{ z = Conv <{PADS}> (x, stem)"
        " b = BatchNormalization (z, c, c, c, v) y = Relu (b) }"
    )
    assert count(graph)["com.microsoft.NhwcFusedConv"] == 2
    assert count(graph)["Relu"] == count(graph)["BatchNormalization"] == 0


def test_grouped_convolutions_stay_as_they_are() -> None:
    model = model_of(
        "(float[1,8,5,5] x) => (float[1,8,5,5] y) { y = Conv <group=2> (x, grouped) }",
        {"grouped": _values(8, 4, 1, 1)},
    )
    graph = check(model, (*PASSES, *CHANNELS_LAST_PASSES))
    assert count(graph) == {"Conv": 1}
