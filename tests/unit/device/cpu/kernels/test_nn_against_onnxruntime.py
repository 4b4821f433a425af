"""Random cases, larger than ONNX's own, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from tests.unit.kernel_driver import drive, make_node, operator_node, run_onnxruntime

OPSET = 21


def _random(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def _integers(dtype: type, *shape: int, seed: int = 0) -> np.ndarray:
    limits = np.iinfo(dtype)
    generator = np.random.default_rng([seed, *shape])
    return generator.integers(limits.min, limits.max + 1, shape).astype(dtype)


def _compare(
    proto: onnx.NodeProto,
    values: Sequence[np.ndarray | None],
    *,
    opset: int = OPSET,
    kernel: str | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    constants: Sequence[int] | None = None,
) -> None:
    given = range(1, len(values)) if constants is None else constants
    driven = drive(operator_node(proto, opset), values, given)
    assert driven is not None
    assert kernel is None or driven.kernel == kernel
    expected = run_onnxruntime(proto, values, opset)
    results = [array for array in driven.outputs if array is not None]
    for actual, wanted in zip(results, expected, strict=True):
        assert (actual.dtype, actual.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_allclose(
            actual.astype(np.float64), wanted.astype(np.float64), rtol=rtol, atol=atol
        )


CONVOLUTIONS = {
    "pointwise": ((2, 16, 9, 11), (24, 16, 1, 1), {}, "conv.pointwise"),
    "pointwise_grouped": ((2, 16, 9, 11), (24, 4, 1, 1), {"group": 4}, "conv.pointwise"),
    "pointwise_strided": ((1, 8, 9, 11), (4, 8, 1, 1), {"strides": [2, 2]}, "conv.columns"),
    "padded": ((2, 5, 13, 10), (7, 5, 3, 3), {"pads": [1, 1, 1, 1]}, "conv.columns"),
    "asymmetric": (
        (1, 3, 17, 12),
        (4, 3, 3, 5),
        {"pads": [0, 3, 2, 1], "strides": [2, 3]},
        "conv.columns",
    ),
    "dilated_grouped": (
        (2, 6, 15, 15),
        (9, 2, 3, 3),
        {"group": 3, "dilations": [2, 3], "pads": [2, 3, 2, 3]},
        "conv.columns",
    ),
    "many_blocks": ((1, 64, 40, 50), (8, 64, 3, 3), {"pads": [1, 1, 1, 1]}, "conv.columns"),
    "same_upper": ((1, 3, 14, 9), (4, 3, 4, 2), {"auto_pad": "SAME_UPPER"}, "conv.columns"),
    "same_lower": (
        (1, 3, 14, 9),
        (4, 3, 4, 2),
        {"auto_pad": "SAME_LOWER", "strides": [3, 2]},
        "conv.columns",
    ),
    "depthwise": (
        (2, 40, 30, 31),
        (40, 1, 3, 3),
        {"group": 40, "pads": [1, 1, 1, 1], "strides": [2, 1]},
        "conv.depthwise",
    ),
    "depthwise_multiplied": (
        (1, 6, 12, 9),
        (18, 1, 5, 3),
        {"group": 6, "pads": [4, 0, 1, 2], "dilations": [2, 1]},
        "conv.depthwise",
    ),
    "one_dimension": (
        (2, 4, 300),
        (6, 4, 7),
        {"pads": [3, 3], "strides": [2]},
        "conv.columns",
    ),
    "three_dimensions": (
        (1, 3, 7, 8, 9),
        (4, 3, 3, 2, 3),
        {"pads": [1, 0, 1, 1, 0, 1]},
        "conv.columns",
    ),
}


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv(name: str, with_bias: bool) -> None:
    data, weights, attributes, kernel = CONVOLUTIONS[name]
    depth = np.sqrt(np.prod(weights[1:], dtype=np.float32))
    values = [_random(*data), _random(*weights, seed=1) / depth]
    values += [_random(weights[0], seed=2)] * with_bias
    _compare(make_node("Conv", len(values), **attributes), values, kernel=kernel)


@pytest.mark.parametrize("weights", [(8, 8, 3, 3), (8, 8, 1, 1), (8, 1, 3, 3)])
@pytest.mark.parametrize(
    ("activation", "parameters"),
    [("Relu", []), ("LeakyRelu", [0.2]), ("Clip", [-0.5, 0.75]), ("HardSigmoid", [0.3, 0.4])],
)
def test_fused_conv(weights: tuple[int, ...], activation: str, parameters: list[float]) -> None:
    pads = [weights[-1] // 2] * 4
    attributes = {"pads": pads, "group": 8 // weights[1], "activation": activation}
    if parameters:
        attributes["activation_params"] = parameters
    values = [_random(2, 8, 20, 21), _random(*weights, seed=1), _random(8, seed=2)]
    with_sum = [*values, _random(2, 8, 20, 21, seed=3)]
    for operands in (values, with_sum) if activation == "Relu" else (values,):
        proto = make_node("FusedConv", len(operands), domain="com.microsoft", **attributes)
        _compare(proto, operands, atol=2e-5)


TRANSPOSED = {
    "plain": ((2, 6, 7, 5), (6, 4, 3, 3), {}),
    "strided": ((1, 6, 7, 5), (6, 4, 3, 3), {"strides": [2, 3], "pads": [1, 0, 2, 1]}),
    "output_padding": (
        (1, 6, 7, 5),
        (6, 4, 3, 3),
        {"strides": [2, 2], "output_padding": [1, 1], "pads": [1, 1, 1, 1]},
    ),
    "grouped_dilated": (
        (2, 6, 9, 8),
        (6, 2, 3, 2),
        {"group": 3, "dilations": [2, 3], "pads": [1, 1, 1, 1]},
    ),
    "output_shape": (
        (1, 3, 8, 8),
        (3, 2, 3, 3),
        {"strides": [3, 2], "output_shape": [23, 16]},
    ),
    "many_blocks": ((1, 4, 60, 70), (4, 32, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "one_dimension": ((1, 4, 100), (4, 3, 8), {"strides": [4], "pads": [2, 2]}),
    "three_dimensions": ((1, 2, 4, 3, 5), (2, 3, 2, 3, 2), {"strides": [2, 1, 2]}),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_transpose(name: str) -> None:
    data, weights, attributes = TRANSPOSED[name]
    maps = weights[1] * attributes.get("group", 1)
    values = [_random(*data), _random(*weights, seed=1), _random(maps, seed=2)]
    _compare(make_node("ConvTranspose", 3, **attributes), values, atol=2e-5)


POOLS = {
    "plain": ((2, 3, 12, 13), {"kernel_shape": [3, 3], "strides": [2, 2]}),
    "padded": (
        (2, 3, 12, 13),
        {"kernel_shape": [3, 4], "strides": [2, 1], "pads": [1, 2, 1, 1]},
    ),
    "ceil": (
        (1, 3, 12, 13),
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    ),
    "dilated": ((1, 3, 20, 19), {"kernel_shape": [3, 3], "dilations": [2, 3]}),
    "lacking_a_row": ((1, 3, 2, 13), {"kernel_shape": [3, 3], "strides": [2, 2]}),
    "same": ((1, 2, 11, 10), {"kernel_shape": [4, 3], "strides": [3, 2], "auto_pad": "SAME_UPPER"}),
    "one_dimension": ((2, 3, 40), {"kernel_shape": [5], "strides": [3], "pads": [2, 2]}),
    "three_dimensions": (
        (1, 2, 8, 9, 7),
        {"kernel_shape": [2, 3, 2], "strides": [2, 2, 1], "pads": [0, 1, 1, 1, 1, 0]},
    ),
}


@pytest.mark.parametrize("name", POOLS)
def test_max_pool(name: str) -> None:
    data, attributes = POOLS[name]
    _compare(make_node("MaxPool", 1, **attributes), [_random(*data)], kernel="pool.max", rtol=0)


@pytest.mark.parametrize("name", [name for name in POOLS if name != "dilated"])
@pytest.mark.parametrize("storage_order", [0, 1])
def test_max_pool_indices(name: str, storage_order: int) -> None:
    data, attributes = POOLS[name]
    if storage_order and len(data) == 3:
        storage_order = 0
    proto = make_node("MaxPool", 1, 2, storage_order=storage_order, **attributes)
    _compare(proto, [_random(*data)], kernel="pool.max_indices", rtol=0)


def test_max_pool_of_bytes() -> None:
    proto = make_node("MaxPool", 1, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    _compare(proto, [_integers(np.int8, 1, 2, 9, 8)], rtol=0)
    _compare(proto, [_integers(np.uint8, 1, 2, 9, 8)], rtol=0)


@pytest.mark.parametrize("count_include_pad", [0, 1])
@pytest.mark.parametrize("name", POOLS)
def test_average_pool(name: str, count_include_pad: int) -> None:
    data, attributes = POOLS[name]
    proto = make_node("AveragePool", 1, count_include_pad=count_include_pad, **attributes)
    _compare(proto, [_random(*data)], atol=1e-6)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("name", ["plain", "padded", "one_dimension"])
def test_lp_pool(name: str, p: int) -> None:
    data, attributes = POOLS[name]
    _compare(make_node("LpPool", 1, p=p, **attributes), [_random(*data)])


@pytest.mark.parametrize("operator", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
def test_global_pools(operator: str) -> None:
    _compare(make_node(operator, 1), [_random(3, 5, 14, 15)])
    _compare(make_node(operator, 1), [_random(3, 5, 14)])


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((7,), (7,)),
        ((7,), (7, 4)),
        ((5, 7), (7,)),
        ((5, 7), (7, 4)),
        ((2, 3, 5, 7), (7, 4)),
        ((2, 3, 5, 7), (3, 7, 4)),
        ((5, 7), (2, 3, 7, 4)),
        ((2, 1, 5, 7), (3, 7, 4)),
        ((7,), (2, 7, 4)),
        ((2, 5, 7), (7,)),
    ],
)
def test_matmul(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    for dtype in (np.float32, np.float64):
        values = [_random(*left, dtype=dtype), _random(*right, seed=1, dtype=dtype)]
        _compare(make_node("MatMul", 2), values)
    _compare(make_node("MatMul", 2), [_integers(np.int32, *left), _integers(np.int32, *right)])


@pytest.mark.parametrize("transposed", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("bias", [None, (4,), (5, 1), (1,), (5, 4)])
def test_gemm(transposed: tuple[int, int], bias: tuple[int, ...] | None) -> None:
    left = _random(*((7, 5) if transposed[0] else (5, 7)))
    right = _random(*((4, 7) if transposed[1] else (7, 4)), seed=1)
    values = [left, right] + ([] if bias is None else [_random(*bias, seed=2)])
    for scales in ({}, {"alpha": 0.5, "beta": 0.25}):
        proto = make_node("Gemm", len(values), transA=transposed[0], transB=transposed[1], **scales)
        _compare(proto, values)


@pytest.mark.parametrize("batch", [0, 1])
def test_fused_matmul(batch: int) -> None:
    attributes = {"transA": 1, "transB": 1, "alpha": 0.125, "transBatchA": batch}
    left = _random(2, 3, 7, 5)
    left = np.ascontiguousarray(left.transpose(2, 0, 1, 3)) if batch else left
    proto = make_node("FusedMatMul", 2, domain="com.microsoft", **attributes)
    _compare(proto, [left, _random(2, 3, 4, 7)])


@pytest.mark.parametrize("constants", [(), (1, 2, 3)])
@pytest.mark.parametrize("weights", [np.int8, np.uint8])
def test_matmul_integer(weights: type, constants: Sequence[int]) -> None:
    # Deep enough that float32 sums would not be exact.
    values = [
        _integers(np.uint8, 3, 10, 700),
        _integers(weights, 700, 12),
        np.array(131, np.uint8),
        _integers(weights, 12),
    ]
    proto = make_node("MatMulInteger", 4)
    _compare(proto, values, opset=10, rtol=0, atol=0, constants=constants)


@pytest.mark.parametrize("constants", [(), range(1, 4)])
@pytest.mark.parametrize("channels", [5, 300])
def test_conv_integer(channels: int, constants: Sequence[int]) -> None:
    values = [
        _integers(np.uint8, 2, channels, 9, 8),
        _integers(np.uint8, 6, channels, 3, 3),
        np.array(117, np.uint8),
        np.array(140, np.uint8),
    ]
    proto = make_node("ConvInteger", 4, pads=[1, 1, 0, 2], strides=[1, 2])
    _compare(proto, values, opset=10, rtol=0, atol=0, constants=constants)


@pytest.mark.parametrize("constants", [(), range(1, 9)])
@pytest.mark.parametrize(("group", "per_channel"), [(1, False), (1, True), (4, True)])
def test_qlinear_conv(group: int, per_channel: bool, constants: Sequence[int]) -> None:
    maps = 8
    scales = np.linspace(0.01, 0.03, maps).astype(np.float32)
    values = [
        _integers(np.uint8, 2, 16, 15, 12),
        np.array(0.02, np.float32),
        np.array(121, np.uint8),
        _integers(np.int8, maps, 16 // group, 3, 3),
        scales if per_channel else scales[3:4].reshape(()),
        np.zeros(maps if per_channel else (), np.int8),
        np.array(0.9, np.float32),
        np.array(100, np.uint8),
        _integers(np.int16, maps).astype(np.int32),
    ]
    proto = make_node("QLinearConv", 9, pads=[1, 1, 1, 1], group=group)
    # Ties may round either way: ONNX Runtime multiplies in another order.
    _compare(proto, values, opset=10, rtol=0, atol=1, constants=constants)


@pytest.mark.parametrize("constants", [(), range(1, 8)])
def test_qlinear_matmul(constants: Sequence[int]) -> None:
    values = [
        _integers(np.uint8, 4, 10, 64),
        np.array(0.02, np.float32),
        np.array(121, np.uint8),
        _integers(np.int8, 64, 12),
        np.array(0.013, np.float32),
        np.array(3, np.int8),
        np.array(0.3, np.float32),
        np.array(100, np.uint8),
    ]
    _compare(make_node("QLinearMatMul", 8), values, opset=10, rtol=0, atol=1, constants=constants)


def test_normalisations_of_channels() -> None:
    data, scale, bias, mean = _random(3, 8, 9, 10), *(_random(8, seed=i) for i in range(3))
    variance = np.abs(_random(8, seed=4)) + 0.1
    _compare(make_node("BatchNormalization", 5), [data, scale, bias, mean, variance])
    _compare(make_node("InstanceNormalization", 3), [data, scale, bias])
    _compare(make_node("GroupNormalization", 3, num_groups=4), [data, scale, bias], atol=1e-4)
    _compare(make_node("LRN", 1, size=3, alpha=0.01), [data])
    _compare(make_node("LRN", 1, size=5, beta=0.5, bias=2.0), [data])


@pytest.mark.parametrize("axis", [-1, 1])
def test_layer_normalisation(axis: int) -> None:
    shape = (4, 6, 10)
    data, scale, bias = _random(*shape), *(_random(*shape[axis:], seed=i) for i in (1, 2))
    _compare(make_node("LayerNormalization", 3, 3, axis=axis), [data, scale, bias])
    _compare(make_node("LayerNormalization", 2, axis=axis), [data + 100, scale], atol=1e-4)
    _compare(make_node("SimplifiedLayerNormalization", 2, axis=axis), [data, scale])


@pytest.mark.parametrize("operand_count", [3, 4, 5])
def test_skip_layer_normalisation(operand_count: int) -> None:
    hidden = 24
    values = [_random(2, 5, hidden), _random(2, 5, hidden, seed=1)]
    values += [_random(hidden, seed=i) for i in range(operand_count - 2)]
    names = [f"i{i}" for i in range(operand_count)]
    proto = make_node("SkipLayerNormalization", names, domain="com.microsoft", epsilon=1e-5)
    _compare(proto, values)
    proto.output.extend(["", "", "sum"])
    _compare(proto, values)


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_softmax(operator: str, opset: int, axis: int) -> None:
    proto = make_node(operator, 1, axis=axis)
    _compare(proto, [_random(3, 7, 11) * 20], opset=opset, atol=1e-4)


RECURRENT_SIZES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("operator", RECURRENT_SIZES)
@pytest.mark.parametrize("full", [False, True])
def test_recurrent(operator: str, direction: str, full: bool) -> None:
    time, batch, width, hidden = 7, 3, 5, 6
    gates = RECURRENT_SIZES[operator]
    directions = 2 if direction == "bidirectional" else 1
    values: list[np.ndarray | None] = [
        _random(time, batch, width),
        _random(directions, gates * hidden, width, seed=1),
        _random(directions, gates * hidden, hidden, seed=2),
    ]
    names = ["x", "w", "r"]
    attributes: dict[str, object] = {}
    if full:
        values += [
            _random(directions, 2 * gates * hidden, seed=3),
            np.array([7, 4, 1], np.int32),
            _random(directions, batch, hidden, seed=4),
        ]
        names += ["b", "lengths", "h"]
        if operator == "LSTM":
            values += [
                _random(directions, batch, hidden, seed=5),
                _random(directions, 3 * hidden, seed=6),
            ]
            names += ["c", "p"]
        if operator == "GRU":
            attributes["linear_before_reset"] = 1
    outputs = 3 if operator == "LSTM" else 2
    proto = make_node(
        operator, names, outputs, hidden_size=hidden, direction=direction, **attributes
    )
    _compare(proto, values, opset=14)


def test_recurrent_with_other_activations_and_clip() -> None:
    values = [_random(5, 2, 3), _random(1, 16, 3, seed=1), _random(1, 16, 4, seed=2)]
    proto = make_node(
        "LSTM",
        3,
        3,
        hidden_size=4,
        clip=0.7,
        activations=["HardSigmoid", "Softsign", "ScaledTanh"],
        activation_alpha=[0.3, 0.9],
        activation_beta=[0.4, 1.1],
    )
    _compare(proto, values, opset=14)


@pytest.mark.parametrize(
    "equation",
    ["bhid,bhjd->bhij", "bij,jk->bik", "ij,kj->ki", "i,j->ij", "ij->ji", "ij,ij->", "...ij,...jk"],
)
def test_einsum(equation: str) -> None:
    sizes = dict.fromkeys("bhijkd", 0) | {"b": 3, "h": 4, "i": 6, "j": 5, "k": 7, "d": 8}
    terms = equation.split("->")[0].split(",")
    values = [
        _random(*((2, 3) if "..." in term else ()), *(sizes[x] for x in term if x != "."), seed=i)
        for i, term in enumerate(terms)
    ]
    _compare(make_node("Einsum", len(values), equation=equation), values)


@pytest.mark.parametrize("operator", ["Gelu", "FastGelu", "BiasGelu"])
def test_gelu(operator: str) -> None:
    data = np.linspace(-9, 9, 6 * 4001, dtype=np.float32).reshape(6, 4001)
    values = [data] if operator == "Gelu" else [data, _random(4001)]
    proto = make_node(operator, len(values), domain="com.microsoft")
    _compare(proto, values, atol=1e-6)


def test_embed_layer_normalisation() -> None:
    ids = np.array([[1, 5, 9, 0], [3, 3, 2, 7]], np.int32)
    tables = [_random(rows, 12, seed=i) for i, rows in enumerate((10, 6, 2))]
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.int32)
    values = [ids, ids % 2, *tables, _random(12, seed=4), _random(12, seed=5), mask]
    proto = make_node("EmbedLayerNormalization", 8, 2, domain="com.microsoft")
    _compare(proto, values, constants=range(2, 7))


@pytest.mark.parametrize("mask", [None, np.bool_, np.float32])
@pytest.mark.parametrize("is_causal", [0, 1])
@pytest.mark.parametrize("heads", [8, 4, 1])
def test_attention_in_several_blocks(heads: int, is_causal: int, mask: type | None) -> None:
    values: list[np.ndarray | None] = [
        _random(2, 8, 160, 16),
        _random(2, heads, 300, 16, seed=1),
        _random(2, heads, 300, 24, seed=2),
    ]
    if mask is not None:
        noise = _random(2, 1, 160, 300, seed=3)
        values.append(noise > -1 if mask is np.bool_ else noise)
    proto = make_node("Attention", len(values), is_causal=is_causal, softcap=3.0)
    _compare(proto, values, opset=23, constants=())


@pytest.mark.parametrize("with_past", [False, True])
def test_multi_head_attention(with_past: bool) -> None:
    values: list[np.ndarray | None] = [_random(2, 9, 24), _random(2, 11, 24), _random(2, 11, 24)]
    names = ["q", "k", "v", "", "", "added"]
    values += [None, None, _random(2, 4, 9, 14 if with_past else 11)]
    if with_past:
        values += [_random(2, 4, 3, 6, seed=1), _random(2, 4, 3, 6, seed=2)]
        names += ["past_k", "past_v"]
    outputs = 3 if with_past else 1
    proto = make_node("MultiHeadAttention", names, outputs, domain="com.microsoft", num_heads=4)
    _compare(proto, values, kernel="attention", constants=())


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("with_mask", [False, True])
def test_attention_with_projection(with_mask: bool, causal: int) -> None:
    values = [_random(2, 9, 20), _random(20, 72, seed=1) / 4, _random(72, seed=2)]
    values += [np.array([[1] * 9, [1] * 6 + [0] * 3], np.int32)] * with_mask
    proto = make_node(
        "Attention", len(values), domain="com.microsoft", num_heads=4, unidirectional=causal
    )
    _compare(proto, values)


@pytest.mark.parametrize("operator", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_quantised_arithmetic(operator: str, dtype: type) -> None:
    scales = [np.array(scale, np.float32) for scale in (0.02, 0.03, 0.05)]
    zeros = [np.array(zero, dtype) for zero in (12, 3, 7)]
    for left, right in [((2, 5, 7), (2, 5, 7)), ((2, 5, 7), (7,)), ((5, 1), (2, 1, 7))]:
        values = [_integers(dtype, *left), scales[0], zeros[0]]
        values += [_integers(dtype, *right), scales[1], zeros[1], scales[2], zeros[2]]
        proto = make_node(operator, 8, domain="com.microsoft")
        # Ties may round either way: ONNX Runtime multiplies in another order.
        _compare(proto, values, rtol=0, atol=1)


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("dtype", [np.float16])
def test_half_precision_runs_through_float32(rank: int, dtype: type) -> None:
    data = _random(2, 6, *(9,) * (rank - 2)).astype(dtype)
    weights = _random(4, 6, *(3,) * (rank - 2), seed=1).astype(dtype)
    node = operator_node(make_node("Conv", 2), OPSET)
    for constants in ((), (1,)):
        half = drive(node, [data, weights], constants)
        single = drive(node, [data.astype(np.float32), weights.astype(np.float32)], constants)
        assert half is not None
        assert single is not None
        np.testing.assert_array_equal(half.outputs[0], single.outputs[0].astype(dtype))
