"""Contributed operators of quantised and language models, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from aegis_pipe.errors import InvalidModelError, KernelError
from tests.unit.kernel_driver import drive, lower, make_node, operator_node, run_onnxruntime

DOMAIN = "com.microsoft"


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def _bytes(dtype: type, *shape: int, seed: int = 0) -> np.ndarray:
    limits = np.iinfo(dtype)
    generator = np.random.default_rng([seed, *shape])
    return generator.integers(limits.min, limits.max + 1, shape).astype(dtype)


def _compare(
    proto: onnx.NodeProto,
    values: Sequence[np.ndarray | None],
    *,
    constants: Sequence[int] = (),
    atol: float = 1e-5,
    rtol: float = 1e-5,
) -> list[np.ndarray]:
    driven = drive(operator_node(proto, 1), values, constants)
    assert driven is not None
    expected = run_onnxruntime(proto, values, 21)
    results = [array for array in driven.outputs if array is not None]
    for actual, wanted in zip(results, expected, strict=True):
        assert (actual.dtype, actual.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_allclose(
            actual.astype(np.float64), wanted.astype(np.float64), rtol=rtol, atol=atol
        )
    return results


def _node(operator: str, count: int | Sequence[str], outputs: int = 1, **attributes: object):
    return make_node(operator, count, outputs, domain=DOMAIN, **attributes)


def _scalar(value: float, dtype: type = np.float32) -> np.ndarray:
    return np.array(value, dtype)


# Layers on quantised tensors


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("operator", ["QLinearSigmoid", "QLinearLeakyRelu"])
def test_table_of_a_function(operator: str, dtype: type) -> None:
    data = _bytes(dtype, 3, 70, 120)
    scale, zero = _scalar(0.03), _scalar(7, dtype)
    attributes = {"alpha": 0.2} if operator == "QLinearLeakyRelu" else {}
    values = [data, scale, zero, _scalar(0.01), _scalar(3, dtype)]
    _compare(_node(operator, 5, **attributes), values, atol=1)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize(("opset", "axis"), [(13, -1), (13, 1), (12, 1)])
def test_softmax_of_bytes(opset: int, axis: int, dtype: type) -> None:
    values = [_bytes(dtype, 3, 5, 40), _scalar(0.05), _scalar(2, dtype)]
    values += [_scalar(1 / 256), _scalar(np.iinfo(dtype).min, dtype)]
    proto = _node("QLinearSoftmax", 5, axis=axis)
    proto.attribute.append(onnx.helper.make_attribute("opset", opset))
    _compare(proto, values, atol=1, rtol=0)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("channels_last", [0, 1])
def test_average_pools_of_bytes(channels_last: int, dtype: type) -> None:
    shape = (2, 13, 12, 5) if channels_last else (2, 5, 13, 12)
    values = [_bytes(dtype, *shape), _scalar(0.05), _scalar(2, dtype)]
    values += [_scalar(0.03), _scalar(-1 if dtype is np.int8 else 9, dtype)]
    everywhere = _node("QLinearGlobalAveragePool", 5, channels_last=channels_last)
    _compare(everywhere, values, atol=1, rtol=0)
    windows = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}
    pool = _node("QLinearAveragePool", 5, channels_last=channels_last, **windows)
    _compare(pool, values, atol=1, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat_of_bytes(axis: int) -> None:
    shapes = [[2, 30, 400], [2, 30, 400], [2, 30, 400]]
    for size, shape in enumerate(shapes, 1):
        shape[axis] = size
    values = [_scalar(0.05), _scalar(100, np.uint8)]
    for index, shape in enumerate(shapes):
        scale = 0.05 if index == 1 else 0.02
        values += [_bytes(np.uint8, *shape, seed=index), _scalar(scale), _scalar(100, np.uint8)]
    _compare(_node("QLinearConcat", 11, axis=axis), values, atol=1, rtol=0)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("per_column", [False, True])
def test_lstm_with_quantised_weights(per_column: bool, direction: str) -> None:
    directions, hidden, width = 1 + (direction == "bidirectional"), 16, 10
    columns = (directions, 4 * hidden) if per_column else (directions,)
    scale = np.full(columns, 0.004, np.float32)
    zero = np.zeros(columns, np.int8)
    values = [
        _random(7, 3, width),
        _bytes(np.int8, directions, width, 4 * hidden),
        _bytes(np.int8, directions, hidden, 4 * hidden, seed=1),
        _random(directions, 8 * hidden, seed=2) * 0.1,
    ]
    names = ["x", "w", "r", "b", "", "", "", "", "ws", "wz", "rs", "rz"]
    values += [None] * 4 + [scale, zero, scale, zero]
    proto = _node("DynamicQuantizeLSTM", names, 3, hidden_size=hidden, direction=direction)
    # An activation that falls to another level, for tanh's last digits, moves all gates a little.
    _compare(proto, values, constants=range(1, 12), atol=1e-3)


# Products


@pytest.mark.parametrize("constants", [(), (1,), (1, 5)])
@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("left", [(9, 33), (2, 4, 33)])
def test_integer_product_to_float(
    left: tuple[int, ...], per_column: bool, constants: Sequence[int]
) -> None:
    columns = (17,) if per_column else ()
    scale = np.abs(_random(*columns, seed=2)) / 100
    zero = _bytes(np.int8, *columns, seed=3)
    values = [_bytes(np.uint8, *left), _bytes(np.int8, 33, 17, seed=1), _scalar(0.02)]
    values += [np.asarray(scale, np.float32), _scalar(120, np.uint8), zero, _random(17, seed=4)]
    proto = _node("MatMulIntegerToFloat", 7)
    _compare(proto, values, constants=constants, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("weights", [np.int8, np.uint8])
def test_product_quantised_on_the_way_in(weights: type, with_bias: bool) -> None:
    values = [_random(2, 6, 40), _bytes(weights, 40, 12, seed=1), _scalar(0.02)]
    values += [_scalar(3, weights)] + [_random(12, seed=2)] * with_bias
    proto = _node("DynamicQuantizeMatMul", len(values))
    _compare(proto, values, constants=(1, 2, 3), atol=1e-3, rtol=1e-4)
    values[0] = np.zeros_like(values[0])
    _compare(proto, values, constants=(1, 2, 3), atol=1e-4)


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("transposed", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_gemm_of_bytes(transposed: tuple[int, int], quantised: bool) -> None:
    left = (30, 7) if transposed[0] else (7, 30)
    right = (11, 30) if transposed[1] else (30, 11)
    bias = np.random.default_rng(0).integers(-5000, 5000, 11).astype(np.int32)
    values = [_bytes(np.uint8, *left), _scalar(0.02), _scalar(120, np.uint8)]
    values += [_bytes(np.int8, *right, seed=1), _scalar(0.01), _scalar(-3, np.int8), bias]
    values += [_scalar(0.4), _scalar(130, np.uint8)] * quantised
    proto = _node("QGemm", len(values), transA=transposed[0], transB=transposed[1])
    for constants in ((), range(3, 7)):
        _compare(proto, values, constants=constants, atol=1 if quantised else 1e-3, rtol=1e-5)


# Blocks of few bits


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    # ONNX Runtime takes float zero points for 4 bits only.
    ("bits", "zeros"),
    [(4, None), (4, np.uint8), (4, np.float32), (8, None), (8, np.uint8)],
)
@pytest.mark.parametrize(("depth", "columns", "size"), [(64, 10, 32), (80, 700, 32), (128, 3, 128)])
def test_product_with_weights_in_blocks(
    depth: int, columns: int, size: int, bits: int, with_bias: bool, zeros: type | None
) -> None:
    blocks = -(-depth // size)
    values = [
        _random(2, 5, depth),
        _bytes(np.uint8, columns, blocks, size * bits // 8),
        np.abs(_random(columns * blocks, seed=1)) / 50,
    ]
    if zeros is np.uint8:
        values.append(_bytes(np.uint8, columns * -(-blocks * bits // 8), seed=2))
    elif zeros is np.float32:
        values.append(_random(columns * blocks, seed=2) + 8)
    else:
        values.append(None)
    values += [None, _random(columns, seed=3)] if with_bias else []
    names = ["" if value is None else f"i{i}" for i, value in enumerate(values)]
    attributes = {"K": depth, "N": columns, "bits": bits, "block_size": size}
    proto = _node("MatMulNBits", names, **attributes)
    constants = [i for i in range(1, len(values)) if values[i] is not None]
    _compare(proto, values, constants=constants, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("with_zeros", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_of_weights_in_blocks(bits: int, with_zeros: bool) -> None:
    per_byte = 8 // bits
    values = [
        _bytes(np.uint8, 50, 96 // per_byte),
        np.array([[4, 49, 0], [7, 7, 12]]),
        np.abs(_random(50, 3)),
    ]
    values += [_bytes(np.uint8, 50, -(-3 // per_byte), seed=1)] * with_zeros
    attributes = {"bits": bits, "block_size": 32, "gather_axis": 0, "quantize_axis": 1}
    proto = _node("GatherBlockQuantized", len(values), **attributes)
    _compare(proto, values, constants=(0, 2, 3)[: len(values) - 1])
    values[1] = np.array([50])
    with pytest.raises(KernelError, match="the table has 50 rows"):
        drive(operator_node(proto, 1), values)


# Channels last


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_max_pool_with_channels_last(dtype: type) -> None:
    windows = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}
    _compare(_node("NhwcMaxPool", 1, **windows), [_bytes(dtype, 2, 13, 12, 5)], rtol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_conv_with_channels_last(dtype: type) -> None:
    """Nothing here runs NhwcFusedConv but us: the same layer with channels first tells."""
    image, addend = _random(2, 9, 8, 6), _random(2, 9, 8, 4, seed=3)
    weights, bias = _random(4, 3, 3, 3, seed=1) / 5, _random(4, seed=2)
    attributes = {"pads": [1] * 4, "group": 2, "activation": "Relu"}
    values = [each.astype(dtype) for each in (image, weights, bias, addend)]
    driven = drive(operator_node(_node("NhwcFusedConv", 4, **attributes), 1), values, (1, 2))
    assert driven is not None
    turned = [np.moveaxis(image, -1, 1), weights, bias, np.moveaxis(addend, -1, 1)]
    (expected,) = run_onnxruntime(_node("FusedConv", 4, **attributes), turned, 21)
    tolerance = 1e-5 if dtype is np.float32 else 2e-2
    np.testing.assert_allclose(
        driven.outputs[0].astype(np.float32), np.moveaxis(expected, 1, -1), atol=tolerance
    )


# Language models


def _caches(rows: int, half: int) -> list[np.ndarray]:
    angles = np.arange(rows)[:, None] / 10 ** np.linspace(0, 2, half)
    return [np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)]


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("four_dimensions", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_rotary_embedding(first: bool, four_dimensions: bool, interleaved: int) -> None:
    data = _random(2, 3, 5, 16) if four_dimensions else _random(2, 5, 48)
    positions = np.array([4]) if first else np.array([[0, 1, 2, 3, 4], [7, 8, 9, 3, 0]])
    proto = _node("RotaryEmbedding", 4, interleaved=interleaved)
    _compare(proto, [data, positions, *_caches(20, 8)])


def test_rotary_embedding_of_part_of_a_head() -> None:
    positions = np.array([[0, 1, 2, 3, 4], [7, 8, 9, 3, 0]])
    attributes = {"num_heads": 3, "rotary_embedding_dim": 8}
    proto = _node("RotaryEmbedding", 4, **attributes)
    _compare(proto, [_random(2, 5, 48), positions, *_caches(20, 4)])


def _group_query(
    length: int,
    past: int,
    *,
    packed: bool = False,
    rotary: bool = False,
    valid: Sequence[int] | None = None,
    **attributes: object,
) -> tuple[onnx.NodeProto, list[np.ndarray | None]]:
    batch, heads, kv_heads, size = 2, 4, 2, 16
    query = _random(batch, length, (heads + 2 * kv_heads if packed else heads) * size)
    key, value = (_random(batch, length, kv_heads * size, seed=i) for i in (1, 2))
    total = past + length
    lengths = np.array(valid or [total] * batch, np.int32) - 1
    values = [query, None if packed else key, None if packed else value]
    caches = [_random(batch, kv_heads, past, size, seed=i) for i in (3, 4)]
    values += caches if past else [None, None]
    values += [lengths, np.array(total, np.int32)]
    values += _caches(64, size // 2) if rotary else []
    names = ["" if value is None else f"i{i}" for i, value in enumerate(values)]
    attributes |= {"num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": int(rotary)}
    return _node("GroupQueryAttention", names, 3, **attributes), values


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("length", "past"), [(9, 0), (1, 12), (1, 0)])
def test_group_query_attention(length: int, past: int, packed: bool, rotary: bool) -> None:
    _compare(*_group_query(length, past, packed=packed, rotary=rotary))


@pytest.mark.parametrize(
    "attributes",
    [
        {"local_window_size": 4},
        {"softcap": 1.5},
        {"scale": 0.7},
        {"rotary_interleaved": 1, "rotary": True},
    ],
)
@pytest.mark.parametrize(("length", "past"), [(9, 0), (1, 12)])
def test_group_query_attention_options(
    length: int, past: int, attributes: dict[str, object]
) -> None:
    _compare(*_group_query(length, past, **attributes))


def test_group_query_attention_over_pasts_of_different_length() -> None:
    proto, values = _group_query(1, 12, rotary=True, valid=[13, 6])
    driven = drive(operator_node(proto, 1), values)
    expected = run_onnxruntime(proto, values, 21)
    np.testing.assert_allclose(driven.outputs[0], expected[0], atol=1e-5)
    for actual, wanted in zip(driven.outputs[1:], expected[1:], strict=True):
        # Beyond an image's keys the cache holds nothing.
        np.testing.assert_allclose(actual[0], wanted[0], atol=1e-5)
        np.testing.assert_allclose(actual[1, :, :6], wanted[1, :, :6], atol=1e-5)


def test_group_query_attention_in_half_precision() -> None:
    proto, values = _group_query(1, 12, rotary=True)
    expected = drive(operator_node(proto, 1), values)
    halves = [
        value.astype(np.float16) if value is not None and value.dtype == np.float32 else value
        for value in values
    ]
    driven = drive(operator_node(proto, 1), halves)
    for actual, wanted in zip(driven.outputs, expected.outputs, strict=True):
        assert actual.dtype == np.float16
        np.testing.assert_allclose(actual.astype(np.float32), wanted, atol=5e-3)


def test_group_query_attention_checks_its_operands() -> None:
    proto, values = _group_query(1, 12, valid=[13, 14])
    with pytest.raises(KernelError, match="has to be within 1 and 13"):
        drive(operator_node(proto, 1), values)
    values[0] = values[0][:, :, :50]
    with pytest.raises(InvalidModelError, match="does not hold 4 heads for 2 key heads"):
        lower(operator_node(proto, 1), values)


HIDDEN_BYTES_MAX = 200 << 10
IMAGE = _bytes(np.uint8, 2, 64, 64, 64)
SCALE, ZERO = _scalar(0.02), _scalar(120, np.uint8)
LEVELS = [IMAGE, SCALE, ZERO, SCALE, ZERO]
WORDS = _random(4, 100, 512)
LARGE = {
    "QLinearSigmoid": ({}, LEVELS),
    "QLinearSoftmax": ({"axis": 1}, LEVELS),
    "QLinearAveragePool": ({"kernel_shape": [2, 2], "channels_last": 1}, LEVELS),
    "QLinearConcat": ({"axis": 1}, [SCALE, ZERO, *LEVELS[:3], *LEVELS[:3]]),
    "MatMulIntegerToFloat": (
        {},
        [_bytes(np.uint8, 400, 512), _bytes(np.int8, 512, 600), SCALE, SCALE],
    ),
    "DynamicQuantizeMatMul": ({}, [WORDS, _bytes(np.int8, 512, 600), SCALE]),
    "MatMulNBits": (
        {"K": 512, "N": 600, "bits": 4, "block_size": 32},
        [WORDS, _bytes(np.uint8, 600, 16, 16), _random(9600)],
    ),
    "GatherBlockQuantized": (
        {"bits": 4, "block_size": 32},
        [_bytes(np.uint8, 90, 512), np.arange(90), _random(90, 32)],
    ),
    "NhwcMaxPool": ({"kernel_shape": [2, 2]}, [IMAGE]),
    "RotaryEmbedding": ({}, [WORDS, np.array([3]), *_caches(200, 32)]),
}


@pytest.mark.parametrize("operator", LARGE)
def test_nothing_large_is_hidden(operator: str) -> None:
    attributes, values = LARGE[operator]
    driven = drive(operator_node(_node(operator, len(values), **attributes), 1), values)
    assert driven is not None
    assert driven.outputs[0].nbytes + values[0].nbytes > HIDDEN_BYTES_MAX
    assert driven.hidden_bytes < HIDDEN_BYTES_MAX


def test_group_query_attention_hides_nothing_large() -> None:
    proto, values = _group_query(40, 0, rotary=True)
    driven = drive(operator_node(proto, 1), values)
    assert driven is not None
    assert driven.hidden_bytes < HIDDEN_BYTES_MAX


# Quantisation to 16 bits


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint8])
@pytest.mark.parametrize("per_channel", [False, True])
def test_contributed_quantisation(dtype: type, per_channel: bool) -> None:
    size = (5,) if per_channel else ()
    scale = np.random.default_rng(0).uniform(1e-4, 1e-3, size).astype(np.float32)
    zero = np.full(size, 3, dtype)
    attributes = {"axis": 1} if per_channel else {}
    (quantised,) = _compare(
        _node("QuantizeLinear", 3, **attributes), [_random(2, 5, 7), scale, zero], atol=0, rtol=0
    )
    _compare(_node("DequantizeLinear", 3, **attributes), [quantised, scale, zero])
