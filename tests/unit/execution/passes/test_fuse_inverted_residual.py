"""Inverted residual blocks become one operator, and its bits are those of the three."""

from __future__ import annotations

import numpy as np
import onnx

from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.passes import CHANNELS_LAST_PASSES, INVERTED_RESIDUAL_PASSES, PASSES
from tests.unit.pass_driver import (
    check,
    count,
    feeds_of,
    graph_of,
    model_of,
    run_on_cpu,
    run_passes,
)

BEFORE = (*PASSES, *CHANNELS_LAST_PASSES)
BLOCK = "aegis.InvertedResidual"
CONVOLUTION = "com.microsoft.NhwcFusedConv"
SAME = "pads=[1,1,1,1]"


def _values(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(0, 0.2, shape).astype(np.float32)


def _model(text: str, *, size: int = 96, result: str = "float[1,8,48,48] y") -> onnx.ModelProto:
    """Return a model whose wide images, of 64 channels, have half the size of its input."""
    constants = {
        "stem": _values(8, 3, 3, 3),
        "widen": _values(64, 8, 1, 1),
        "a": _values(64),
        "depthwise": _values(64, 1, 3, 3),
        "b": _values(64) + 1,
        "narrow": _values(8, 64, 1, 1),
        "low": np.array(0, np.float32),
        "high": np.array(6, np.float32),
    }
    head = (
        f"(float[1,3,{size},{size}] x) => ({result}) {{ s = Conv <strides=[2,2], {SAME}> (x, stem)"
    )
    return model_of(f"{head} {text} }}", constants)


WIDENED = "u = Conv (s, widen, a) v = Clip (u, low, high)"
DEPTHWISE = f"d = Conv <group=64, {SAME}> (v, depthwise, b) e = Clip (d, low, high)"


def _fused(model: onnx.ModelProto) -> ExecutionGraph:
    return check(model, (*BEFORE, *INVERTED_RESIDUAL_PASSES), rtol=1e-4, atol=1e-5)


def _bits(model: onnx.ModelProto, passes) -> list[bytes]:
    graph, _ = run_passes(graph_of(model), passes)
    return [result.tobytes() for result in run_on_cpu(graph, feeds_of(model))]


def test_a_block_with_what_is_added_is_one_operator_with_the_same_bits() -> None:
    model = _model(f"{WIDENED} {DEPTHWISE} n = Conv (e, narrow) y = Add (n, s)")
    graph = _fused(model)
    assert count(graph)[BLOCK] == count(graph)[CONVOLUTION] == 1
    assert _bits(model, BEFORE) == _bits(model, (*BEFORE, *INVERTED_RESIDUAL_PASSES))


def test_it_begins_with_the_depthwise_convolution_if_what_it_reads_is_needed_elsewhere() -> None:
    model = _model(
        f"{WIDENED} {DEPTHWISE} y = Conv (e, narrow) z = GlobalAveragePool (v)",
        result="float[1,8,48,48] y, float[1,64,1,1] z",
    )
    graph = _fused(model)
    assert count(graph)[BLOCK] == 1
    assert count(graph)[CONVOLUTION] == 2
    assert _bits(model, BEFORE) == _bits(model, (*BEFORE, *INVERTED_RESIDUAL_PASSES))


def test_by_two_and_one_after_the_other() -> None:
    second = (
        f"u2 = Conv (n, widen) v2 = Relu (u2) d2 = Conv <group=64, {SAME}> (v2, depthwise)"
        " y = Conv (d2, narrow)"
    )
    strided = DEPTHWISE.replace("group=64", "strides=[2,2], group=64")
    model = _model(
        f"{WIDENED} {strided} n = Conv (e, narrow) {second}",
        size=192,
        result="float[1,8,48,48] y",
    )
    assert count(_fused(model))[BLOCK] == 2
    assert _bits(model, BEFORE) == _bits(model, (*BEFORE, *INVERTED_RESIDUAL_PASSES))


def test_small_images_stay_in_the_cache_anyway() -> None:
    model = _model(
        f"{WIDENED} {DEPTHWISE} y = Conv (e, narrow)", size=64, result="float[1,8,32,32] y"
    )
    assert BLOCK not in count(_fused(model))


def test_what_is_no_clip_or_read_twice_stays_apart() -> None:
    model = _model(f"{WIDENED} {DEPTHWISE} h = HardSwish (e) y = Conv (h, narrow)")
    assert BLOCK not in count(_fused(model))
    model = _model(
        f"{WIDENED} {DEPTHWISE} y = Conv (e, narrow) z = GlobalMaxPool (e)",
        result="float[1,8,48,48] y, float[1,64,1,1] z",
    )
    assert BLOCK not in count(_fused(model))
