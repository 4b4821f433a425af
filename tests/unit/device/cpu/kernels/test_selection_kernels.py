"""What a comparison of results does not show: errors, scratch, accuracy, odd dtypes."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from aegis_pipe.device.cpu.kernels.tiles import TILE, tile_views
from aegis_pipe.errors import KernelError
from tests.unit.kernel_driver import drive, make_node, operator_node

RANDOM = np.random.default_rng(11)
MEGA = 1 << 20


def _drive(operator, values, constants=(), outputs=1, opset=21, **attributes):
    proto = make_node(operator, len(values), outputs, **attributes)
    driven = drive(operator_node(proto, opset), values, constants)
    assert driven is not None
    return driven


FLOATS = np.zeros((3, 4), np.float32)
OUTSIDE = [
    ("Gather", [FLOATS, np.array([0, 3])], {}, "index 3 is outside of a dimension of size 3"),
    ("Gather", [FLOATS, np.array([-5], np.int32)], {"axis": 1}, "index -5 .* of size 4"),
    ("GatherElements", [FLOATS, np.array([[4]])], {"axis": 1}, "index 4 .* of size 4"),
    ("GatherND", [FLOATS, np.array([[0, 7]])], {}, "index 7 .* of size 4"),
    ("ScatterElements", [FLOATS, np.array([[-4]]), FLOATS[:1, :1]], {}, "index -4 .* of size 3"),
    ("ScatterND", [FLOATS, np.array([[3, 0]]), FLOATS[0, :1]], {}, "index 3 .* of size 3"),
    (
        "ReverseSequence",
        [FLOATS, np.array([1, 2, 3, 4])],
        {},
        "sequence 3 has length 4, but there are 3 steps",
    ),
]


@pytest.mark.parametrize("constants", [(), (1,)], ids=["data", "constant"])
@pytest.mark.parametrize(("operator", "values", "attributes", "message"), OUTSIDE)
def test_indices_are_checked(operator, values, attributes, message, constants):
    with pytest.raises(KernelError, match=message) as caught:
        _drive(operator, values, constants, **attributes)
    assert "node `node`" in str(caught.value)
    assert caught.value.hint


def test_erf_is_accurate():
    x = np.concatenate([np.linspace(-7, 7, 200001), [1e-30, -1e-8, 1e-4]])
    expected = np.array([math.erf(each) for each in x])
    error = np.abs(_drive("Erf", [x]).outputs[0] - expected)
    assert error.max() < 3e-14
    narrow = x.astype(np.float32)
    expected = np.array([math.erf(each) for each in narrow])
    actual = _drive("Erf", [narrow]).outputs[0].astype(np.float64)
    assert np.abs(actual - expected).max() < 6e-7
    assert np.abs(actual).max() <= 1
    # Relative accuracy near 0, where erf is almost linear.
    np.testing.assert_allclose(actual, expected, rtol=8e-7)


BIG = RANDOM.standard_normal((64, MEGA // 64)).astype(np.float32)
LEAN = {
    "Sigmoid": [BIG],
    "Softplus": [BIG],
    "Mish": [BIG],
    "Erf": [BIG],
    "Selu": [BIG],
    "Add": [BIG, BIG[:1]],
    "Pow": [BIG, np.array(2.5, np.float32)],
    "Where": [BIG > 0, BIG, BIG],
    "Clip": [BIG, np.float32(-1).reshape(()), np.float32(1).reshape(())],
    "ReduceL2": [BIG, np.array([1])],
    "ReduceLogSumExp": [BIG, np.array([0, 1])],
    "ReduceMean": [BIG, np.array([0])],
    "ArgMax": [BIG],
    "Transpose": [BIG],
    "Gather": [BIG, RANDOM.integers(-64, 64, 100)],
    "GatherElements": [BIG, RANDOM.integers(-64, 64, BIG.shape)],
    "Concat": [BIG, BIG],
    "QuantizeLinear": [BIG, np.float32(0.1).reshape(()), np.uint8(3).reshape(())],
    "DequantizeLinear": [BIG.astype(np.int8), np.float32(0.1).reshape(())],
    "CumSum": [BIG, np.array(1)],
}


@pytest.mark.parametrize("operator", LEAN)
def test_nothing_large_beside_the_plan(operator):
    attributes = {"axis": 0} if operator == "Concat" else {}
    driven = _drive(operator, LEAN[operator], **attributes)
    assert driven.hidden_bytes < 256 << 10
    assert driven.workspace_bytes <= 1 << 20


@pytest.mark.parametrize("operator", ["Abs", "Add", "Mul", "Max", "Equal", "ReduceSum", "Exp"])
def test_bfloat16(operator):
    count = 2 if operator in ("Add", "Mul", "Max", "Equal") else 1
    values = [RANDOM.standard_normal((5, 40)).astype(ml_dtypes.bfloat16) for _ in range(count)]
    wide = _drive(operator, [value.astype(np.float32) for value in values]).outputs[0]
    narrow = _drive(operator, values).outputs[0]
    dtype = wide.dtype if operator == "Equal" else ml_dtypes.bfloat16
    assert narrow.dtype == dtype
    assert narrow.tobytes() == wide.astype(dtype).tobytes()


DTYPES = [np.bool_, np.int8, np.float16, np.float64, np.complex64, ml_dtypes.bfloat16]
DTYPES += [ml_dtypes.float8_e5m2, ml_dtypes.int4]


@pytest.mark.parametrize(
    "shape",
    [
        (24, 196),
        (40, 49),
        (3, 150),
        (3, 33),
        (5, 9),
        (17, 33),
        (16, 16),
        (1, 40),
        (8, 64),
        (900, 96),
    ],
)
def test_bytes_are_turned_round(shape):
    """Whole blocks, what is left of them, and rows shorter than a register."""
    data = RANDOM.integers(0, 256, (2, *shape), np.uint8)
    turned = _drive("Transpose", [data], perm=[0, 2, 1]).outputs[0]
    assert turned.tobytes() == data.swapaxes(1, 2).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_moving_takes_every_dtype(dtype):
    data = RANDOM.integers(0, 2, (3, 4)).astype(dtype)
    indices = np.array([2, 0])
    assert _drive("Transpose", [data]).outputs[0].tobytes() == data.T.tobytes()
    assert _drive("Gather", [data, indices]).outputs[0].tobytes() == data[[2, 0]].tobytes()
    halves = _drive("Split", [data, np.array([1, 3])], outputs=2, axis=1).outputs
    assert [half.tobytes() for half in halves] == [data[:, :1].tobytes(), data[:, 1:].tobytes()]
    condition = np.array([[True], [False], [True]])
    expected = np.where(condition, data, data[::-1])
    other = np.ascontiguousarray(data[::-1])
    assert _drive("Where", [condition, data, other]).outputs[0].tobytes() == expected.tobytes()
    updated = _drive("ScatterND", [data, np.array([[1]]), data[:1]]).outputs[0]
    assert updated.tobytes() == np.concatenate([data[:1], data[:1], data[2:]]).tobytes()


EMPTY = np.zeros((0, 3), np.float32)


@pytest.mark.parametrize(
    ("operator", "values", "attributes", "expected"),
    [
        ("Add", [EMPTY, EMPTY], {}, EMPTY),
        ("Sigmoid", [EMPTY], {}, EMPTY),
        ("Transpose", [EMPTY], {}, EMPTY.T),
        ("ReduceSum", [EMPTY], {"keepdims": 0}, np.float32(0)),
        ("ReduceMax", [EMPTY, np.array([0])], {"keepdims": 0}, np.full(3, -np.inf, np.float32)),
        ("ReduceL1", [EMPTY, np.array([0])], {"keepdims": 0}, np.zeros(3, np.float32)),
        ("ReduceSumSquare", [EMPTY], {"keepdims": 0}, np.float32(0)),
        ("Gather", [FLOATS, np.zeros((0,), np.int64)], {}, np.zeros((0, 4), np.float32)),
        ("Gather", [EMPTY, np.zeros((2, 0), np.int64)], {}, np.zeros((2, 0, 3), np.float32)),
        ("GatherElements", [EMPTY, np.zeros((0, 3), np.int64)], {}, EMPTY),
        ("GatherND", [EMPTY, np.zeros((0, 1), np.int64)], {}, EMPTY),
        ("ScatterND", [FLOATS, np.zeros((0, 1), int), FLOATS[:0]], {}, FLOATS),
        ("Pad", [EMPTY, np.array([1, 0, 1, 0])], {}, np.zeros((2, 3), np.float32)),
        ("Tile", [EMPTY, np.array([2, 2])], {}, np.zeros((0, 6), np.float32)),
        ("CumSum", [EMPTY, np.array(0)], {"exclusive": 1}, EMPTY),
        ("Cast", [EMPTY], {"to": 7}, EMPTY.astype(np.int64)),
        ("OneHot", [np.zeros(0, np.int64), np.array(3), np.arange(2)], {}, np.zeros((0, 3), int)),
    ],
)  # fmt: skip
def test_nothing_to_do(operator, values, attributes, expected):
    (actual,) = _drive(operator, values, **attributes).outputs
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("limit", [1, 7, 24, 1000])
def test_tiles_cover_the_shape_once_in_order(limit):
    shape = (3, 4, 5, 2)
    target = np.zeros(shape, np.int64)
    row, column = np.arange(5).reshape(5, 1), np.arange(4).reshape(4, 1, 1)
    seen = []
    for part, r, c in tile_views(shape, [target, row, column], limit):
        assert part.flags.c_contiguous
        assert part.size <= limit
        np.add(r * 10, c, out=part)
        seen.append(part.ctypes.data)
    assert seen == sorted(seen)
    np.testing.assert_array_equal(target, np.broadcast_to(row * 10 + column, shape))


def test_one_tile_of_what_is_small():
    array = np.zeros((2, 3, 4), np.float32)
    ((view,),) = tile_views(array.shape, [array], TILE)
    assert view.shape == (24,)
    assert not list(tile_views((0, 3), [np.zeros((0, 3))], TILE))


def test_gather_of_constant_indices_checks_them_once():
    indices = np.array([1, -1], np.int32)
    driven = _drive("Gather", [FLOATS + np.arange(3, dtype=np.float32)[:, None], indices], (1,))
    np.testing.assert_array_equal(driven.outputs[0][:, 0], [1, 2])
