"""Quantised models in QDQ form, computed in integers, with channels last."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from aegis_pipe.execution.passes import (
    PASSES,
    constant_folding,
    fuse_quantised,
    quantised_channels_last,
    sink_transposes,
)
from tests.unit.pass_driver import check, count, feeds_of, model_of

ONE_LEVEL = 2.5 / 255
"""Sums of integers and of floats may round to neighbouring levels, which later layers pass on."""
UNSIGNED, SIGNED = (QuantType.QUInt8, False), (QuantType.QInt8, True)


class _Samples(CalibrationDataReader):
    def __init__(self, model: onnx.ModelProto) -> None:
        self._feeds = iter([feeds_of(model, seed) for seed in range(4)])

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        return next(self._feeds, None)


def _random(seed: int, *shape: int) -> np.ndarray:
    fan = max(1, int(np.prod(shape[1:])))
    array = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(fan)
    return array.astype(np.float32)


def quantised(
    text: str,
    constants: Mapping[str, np.ndarray],
    folder: Path,
    kind: tuple[QuantType, bool] = UNSIGNED,
    form: QuantFormat = QuantFormat.QDQ,
) -> onnx.ModelProto:
    """Return the model as ONNX Runtime's static quantiser writes it."""
    model = model_of(text, constants)
    source, target = folder / "float.onnx", folder / "quantised.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), source)
    activations, is_symmetric = kind
    quantize_static(
        source,
        target,
        _Samples(model),
        quant_format=form,
        per_channel=form is QuantFormat.QDQ,
        activation_type=activations,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": is_symmetric},
    )
    return onnx.load(target)


IMAGES = {
    "w1": _random(1, 12, 3, 3, 3),
    "b1": _random(2, 12),
    "w2": _random(3, 12, 1, 3, 3),
    "b2": _random(4, 12),
    "w3": _random(5, 12, 12, 1, 1),
    "b3": _random(6, 12),
    "low": np.float32(0),
    "high": np.float32(6),
    "weights": _random(7, 12, 5),
    "bias": _random(8, 5),
}
NETWORK = """(float[2,3,12,13] x) => (float[2,5] y) {
    c1 = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]> (x, w1, b1)
    a1 = Relu(c1)
    c2 = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=12> (a1, w2, b2)
    a2 = Clip(c2, low, high)
    c3 = Conv <kernel_shape=[1,1]> (a2, w3, b3)
    s = Add(c3, a1)
    r = Relu(s)
    p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r)
    g = GlobalAveragePool(p)
    f = Flatten(g)
    y = Gemm(f, weights, bias)
}"""


@pytest.mark.parametrize("kind", [UNSIGNED, SIGNED])
def test_convolutional_network(tmp_path: Path, kind: tuple[QuantType, bool]) -> None:
    model = quantised(NETWORK, IMAGES, tmp_path, kind)
    graph = check(model, [fuse_quantised], rtol=0, atol=2 * ONE_LEVEL)
    # With signed levels the quantiser leaves activations apart from what they follow.
    clips = {"aegis.QLinearClip": 3} if kind == SIGNED else {}
    assert count(graph) == {
        **clips,
        "QuantizeLinear": 1,
        "com.microsoft.QLinearConv": 3,
        "com.microsoft.QLinearAdd": 1,
        "MaxPool": 1,
        "com.microsoft.QLinearGlobalAveragePool": 1,
        "Flatten": 1,
        "com.microsoft.QGemm": 1,
        "DequantizeLinear": 1,
    }
    turned = check(
        model,
        [fuse_quantised, quantised_channels_last, sink_transposes],
        rtol=0,
        atol=2 * ONE_LEVEL,
    )
    # The image is turned once; the pooled result has nothing to turn.
    assert count(turned)["Transpose"] == 1
    assert count(turned)["com.microsoft.NhwcMaxPool"] == 1
    check(model, PASSES, rtol=0, atol=2 * ONE_LEVEL)


def test_operators_on_integers_get_channels_last(tmp_path: Path) -> None:
    model = quantised(NETWORK, IMAGES, tmp_path, form=QuantFormat.QOperator)
    graph = check(model, [quantised_channels_last, sink_transposes], rtol=0, atol=2 * ONE_LEVEL)
    assert count(graph)["com.microsoft.QLinearConv"] == 3
    assert count(graph)["Transpose"] == 1


POOLED = """(float[1,4,9,8] x) => (float[1,6,3,3] y) {
    xq = QuantizeLinear (x, x_scale, zero)
    xd = DequantizeLinear (xq, x_scale, zero)
    wd = DequantizeLinear <axis = 0> (w, w_scale)
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (xd, wd)
    r = Relu (c)
    p = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 0, 1], strides = [3, 3]> (r)
    yq = QuantizeLinear (p, y_scale, zero)
    y = DequantizeLinear (yq, y_scale, zero)
}"""


def test_a_pool_between_a_product_and_its_levels(tmp_path: Path) -> None:
    constants = {
        "x_scale": np.float32(0.04),
        "y_scale": np.float32(0.05),
        "zero": np.uint8(60),
        "w": np.random.default_rng(1).integers(-128, 128, (6, 4, 3, 3)).astype(np.int8),
        "w_scale": np.linspace(0.001, 0.004, 6, dtype=np.float32),
    }
    model = model_of(POOLED, constants)
    graph = check(model, [fuse_quantised], rtol=0, atol=ONE_LEVEL)
    assert [node.operator for node in graph.operators] == [
        "QuantizeLinear",
        "QLinearConv",
        "MaxPool",
        "DequantizeLinear",
    ]
    assert graph.spec(graph.operators[2].inputs[0]).dtype == np.uint8
    turned = check(model, PASSES, rtol=0, atol=ONE_LEVEL)
    assert count(turned)["com.microsoft.NhwcMaxPool"] == 1
    # Where somebody else reads the pooled floats, they stay.
    both = POOLED.replace("=> (float[1,6,3,3] y)", "=> (float[1,6,3,3] y, float[1,6,3,3] p)")
    kept = check(model_of(both, constants), [fuse_quantised], rtol=0, atol=ONE_LEVEL)
    assert count(kept)["Conv"] == 1


def test_branches_that_meet(tmp_path: Path) -> None:
    text = """(float[1,3,8,9] x) => (float[1,24,4,5] y) {
        a = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]> (x, w1, b1)
        b = Sigmoid(a)
        c = LeakyRelu <alpha=0.1> (a)
        y = Concat <axis=1> (b, c)
    }"""
    model = quantised(text, IMAGES, tmp_path)
    graph = check(model, [fuse_quantised, quantised_channels_last], rtol=0, atol=ONE_LEVEL)
    assert count(graph)["com.microsoft.QLinearConcat"] == 1
    assert count(graph)["com.microsoft.QLinearSigmoid"] == 1


def test_attention(tmp_path: Path) -> None:
    constants = {
        "q": _random(1, 16, 16),
        "k": _random(2, 16, 16),
        "bias": _random(3, 16),
        "half": np.float32(0.5),
    }
    text = """(float[2,7,16] x) => (float[2,7,16] y) {
        a = MatMul(x, q)
        b = Add(a, bias)
        c = MatMul(x, k)
        d = Transpose <perm=[0,2,1]> (c)
        e = MatMul(b, d)
        f = Mul(e, half)
        g = Softmax <axis=-1> (f)
        y = MatMul(g, x)
    }"""
    model = quantised(text, constants, tmp_path)
    graph = check(model, [fuse_quantised], rtol=0, atol=2 * ONE_LEVEL)
    found = count(graph)
    assert found["QLinearMatMul"] == 4
    assert found["com.microsoft.QLinearAdd"] == found["com.microsoft.QLinearMul"] == 1
    assert found["com.microsoft.QLinearSoftmax"] == 1
    # One for the input, which several operators share, and one for the output.
    assert found["DequantizeLinear"] == 1


def test_float_results_stay_floats() -> None:
    constants = {
        "scale": np.float32(0.02),
        "zero": np.uint8(128),
        "w": np.random.default_rng(0).integers(-127, 128, (9, 6)).astype(np.int8),
        "w_scale": np.full(6, 0.01, np.float32),
        "w_zero": np.zeros(6, np.int8),
    }
    text = """(float[4,9] x) => (float[4,6] y) {
        q = QuantizeLinear(x, scale, zero)
        d = DequantizeLinear(q, scale, zero)
        e = DequantizeLinear <axis=1> (w, w_scale, w_zero)
        y = MatMul(d, e)
    }"""
    graph = check(model_of(text, constants), [fuse_quantised], atol=1e-6)
    assert count(graph) == {"QuantizeLinear": 1, "com.microsoft.MatMulIntegerToFloat": 1}


KEPT = {
    "another reader of the float": """
        a = Relu(d) q2 = QuantizeLinear(a, s, z) t = DequantizeLinear(q2, s, z) y = Add(t, a)""",
    "scales that are computed": """
        m = ReduceMax <keepdims=0> (x) r = Abs(m) a = Relu(d)
        q2 = QuantizeLinear(a, r, z) y = DequantizeLinear(q2, r, z)""",
    "another grid behind a mover": """
        a = Transpose <perm=[1,0]> (d) q2 = QuantizeLinear(a, s2, z)
        b = DequantizeLinear(q2, s2, z) y = Transpose <perm=[1,0]> (b)""",
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_left_alone(name: str) -> None:
    text = f"""(float[4,9] x) => (float[4,9] y) {{
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) {KEPT[name]}
    }}"""
    constants = {"s": np.float32(0.02), "s2": np.float32(0.03), "z": np.uint8(120)}
    model = model_of(text, constants)
    graph = check(model, [fuse_quantised], identical=True)
    assert not any("QLinear" in operator for operator in count(graph))


def test_without_the_pass_weights_are_folded(tmp_path: Path) -> None:
    """Which is why the pass comes first."""
    model = quantised(NETWORK, IMAGES, tmp_path)
    graph = check(model, [constant_folding, fuse_quantised], rtol=0, atol=ONE_LEVEL)
    assert count(graph)["com.microsoft.QLinearConv"] == 0
    assert PASSES.index(fuse_quantised) < PASSES.index(constant_folding)
