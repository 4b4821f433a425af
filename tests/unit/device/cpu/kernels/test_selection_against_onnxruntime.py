"""Operators against ONNX Runtime: broadcasting, odd shapes, all dtypes, old opsets."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.kernel_driver import drive, make_node, operator_node, run_onnxruntime

RANDOM = np.random.default_rng(7)
LATEST = 21


def _values(shape, dtype=np.float32, low=-4.0, high=4.0):
    return RANDOM.uniform(low, high, shape).astype(dtype)


def _compare(operator, values, *, opset=LATEST, outputs=1, rtol=2e-6, atol=1e-6, **attributes):
    domain = attributes.pop("domain", "")
    proto = make_node(operator, len(values), outputs, domain=domain, **attributes)
    names = [n if v is not None else "" for n, v in zip(proto.input, values, strict=True)]
    proto = make_node(operator, names, outputs, domain=domain, **attributes)
    driven = drive(operator_node(proto, opset), values)
    assert driven is not None
    expected = run_onnxruntime(proto, values, opset)
    for actual, wanted in zip(driven.outputs, expected, strict=True):
        assert (actual.dtype, actual.shape) == (wanted.dtype, wanted.shape)
        if wanted.dtype == np.bool_:
            np.testing.assert_array_equal(actual, wanted)
        else:
            actual, wanted = actual.astype(np.float64), wanted.astype(np.float64)
            np.testing.assert_allclose(actual, wanted, rtol=rtol, atol=atol)


SHAPES = [
    ((), ()),
    ((5,), ()),
    ((3, 1, 5), (4, 1)),
    ((2, 3, 4, 5), (3, 1, 1)),
    ((1, 7), (6, 1)),
    ((70000,), (70000,)),
    ((3, 1, 9000), (1, 8, 1)),
]


@pytest.mark.parametrize(("left", "right"), SHAPES)
@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum"])
def test_arithmetic_broadcasts(operator, left, right):
    _compare(operator, [_values(left), _values(right)])


@pytest.mark.parametrize(("left", "right"), SHAPES)
@pytest.mark.parametrize("operator", ["Less", "GreaterOrEqual", "Equal"])
def test_comparisons_broadcast(operator, left, right):
    _compare(operator, [np.asarray(np.rint(_values(shape))) for shape in (left, right)])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul"])
def test_integer_arithmetic(operator, dtype):
    low = 0 if np.issubdtype(dtype, np.unsignedinteger) else -20
    values = [RANDOM.integers(low, 20, shape).astype(dtype) for shape in ((9, 5), (5,))]
    expected = getattr(np, {"Add": "add", "Sub": "subtract", "Mul": "multiply"}[operator])(*values)
    driven = drive(operator_node(make_node(operator, 2), LATEST), values)
    np.testing.assert_array_equal(driven.outputs[0], expected)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_integer_division_truncates(dtype):
    a = np.array([7, -7, 7, -7, 0, -(2**31)], dtype)
    _compare("Div", [a, np.array([2, 2, -2, -2, 5, 3], dtype)])


@pytest.mark.parametrize("fmod", [0, 1])
def test_mod_of_integers(fmod):
    a, b = np.array([7, -7, 7, -7], np.int32), np.array([3, 3, -3, -3], np.int32)
    _compare("Mod", [a, b], fmod=fmod)


@pytest.mark.parametrize("exponent", [2.0, 0.5, 3.0, -1.0, 1.7])
@pytest.mark.parametrize("known", [False, True])
def test_pow(exponent, known):
    values = [_values((33, 5), low=0.1), np.array(exponent, np.float32)]
    node = operator_node(make_node("Pow", 2), LATEST)
    driven = drive(node, values, (1,) if known else ())
    np.testing.assert_allclose(driven.outputs[0], values[0] ** exponent, rtol=2e-6)


def test_pow_of_integers_knows_fractions():
    base = np.array([2, -1, 1, -1, 3, 0], np.int64)
    exponent = np.array([-1, -1, -3, -2, 30, 0], np.int64)
    driven = drive(operator_node(make_node("Pow", 2), LATEST), [base, exponent])
    np.testing.assert_array_equal(driven.outputs[0], [0, -1, 1, 1, 3**30, 1])


UNARY = {
    "Abs": {}, "Neg": {}, "Sign": {}, "Floor": {}, "Ceil": {}, "Round": {}, "Exp": {},
    "Sin": {}, "Cos": {}, "Atan": {}, "Sinh": {}, "Tanh": {}, "Asinh": {}, "Erf": {},
    "Relu": {}, "Sigmoid": {}, "Softplus": {}, "Softsign": {}, "HardSwish": {}, "Mish": {},
    "LeakyRelu": {"alpha": 0.3}, "Elu": {"alpha": 1.5}, "Selu": {}, "Celu": {"alpha": 0.7},
    "HardSigmoid": {}, "ThresholdedRelu": {"alpha": 0.5},
    "Shrink": {"lambd": 0.6, "bias": 0.2}, "IsNaN": {}, "IsInf": {"detect_negative": 0},
}  # fmt: skip


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (3, 40001)])
@pytest.mark.parametrize("operator", UNARY)
def test_unary(operator, shape):
    _compare(operator, [_values(shape, high=9)], rtol=2e-5, **UNARY[operator])


HALF_CAPABLE = sorted(set(UNARY) - {"IsNaN", "IsInf"})


@pytest.mark.parametrize("operator", HALF_CAPABLE)
def test_half_precision_is_float32_rounded_once(operator):
    node = operator_node(make_node(operator, 1, **UNARY[operator]), LATEST)
    half = _values((3, 9000), np.float16)
    wide = drive(node, [half.astype(np.float32)]).outputs[0]
    driven = drive(node, [half])
    assert driven.outputs[0].tobytes() == wide.astype(np.float16).tobytes()
    assert driven.workspace_bytes <= 7 * 65536


@pytest.mark.parametrize(
    "operator", ["Sigmoid", "Softplus", "Mish", "Elu", "Selu", "Erf", "Relu", "Tanh", "HardSwish"]
)
def test_activations_at_the_ends(operator):
    ends = np.array([-np.inf, -1e30, -100, -0.0, 0, 1e-30, 100, 1e30], np.float32)
    _compare(operator, [ends])
    nan = drive(operator_node(make_node(operator, 1), LATEST), [np.array([np.nan], np.float32)])
    assert np.isnan(nan.outputs[0]).all()


@pytest.mark.parametrize("shape", [(3, 1, 1), (1,), (4, 5), ()])
def test_prelu(shape):
    _compare("PRelu", [_values((2, 3, 4, 5)), _values(shape)])


@pytest.mark.parametrize("bounds", [(None, None), (-1, None), (None, 1), (-1, 1), (2, -2)])
@pytest.mark.parametrize("known", [False, True])
def test_clip(bounds, known):
    values = [_values((5, 6)), *(None if b is None else np.array(b, np.float32) for b in bounds)]
    names = [n if v is not None else "" for n, v in zip("xab", values, strict=True)]
    proto = make_node("Clip", names)
    driven = drive(operator_node(proto, LATEST), values, (1, 2) if known else ())
    (expected,) = run_onnxruntime(proto, values, LATEST)
    np.testing.assert_array_equal(driven.outputs[0], expected)


def test_where_broadcasts():
    condition = RANDOM.random((4, 1)) < 0.5
    _compare("Where", [condition, _values((3, 1, 5)), _values((1, 4, 5))])


REDUCTIONS = ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1"]
REDUCTIONS += ["ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"]


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [None, (0,), (1,), (-1,), (0, 2), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("operator", REDUCTIONS)
def test_reduce(operator, axes, keepdims):
    data = _values((5, 7, 6), low=0.5, high=1.5)
    operand = None if axes is None else np.array(axes, np.int64)
    _compare(operator, [data, operand], rtol=1e-5, keepdims=keepdims)


@pytest.mark.parametrize("operator", REDUCTIONS)
@pytest.mark.parametrize("axes", [(0, 1), (0,), (1,)])
def test_reduce_beyond_one_block(operator, axes):
    high = 1.0001 if operator == "ReduceProd" else 1.5
    data = _values((37, 3001), low=1.0, high=high)
    _compare(operator, [data, np.array(axes, np.int64)], rtol=2e-5)


@pytest.mark.parametrize("operator", REDUCTIONS)
def test_reduce_by_attribute_in_opset_11(operator):
    _compare(operator, [_values((3, 4, 5), low=0.5)], opset=11, rtol=1e-5, axes=[-1, 0])


@pytest.mark.parametrize("operator", REDUCTIONS)
def test_reduce_over_no_axes_still_maps(operator):
    data = _values((3, 4), low=0.5)
    axes = np.zeros(0, np.int64)
    node = operator_node(make_node(operator, 2, noop_with_empty_axes=1), LATEST)
    mapped = {"ReduceL1": np.abs, "ReduceSumSquare": np.square, "ReduceLogSum": np.log}
    expected = mapped.get(operator, np.array)(data)
    np.testing.assert_allclose(drive(node, [data, axes]).outputs[0], expected, rtol=1e-6)


def test_log_sum_exp_of_infinities():
    data = np.array([[-np.inf, -np.inf], [np.inf, 0], [1e4, 1e4], [np.nan, 0]], np.float32)
    node = operator_node(make_node("ReduceLogSumExp", 2, keepdims=0), LATEST)
    (actual,) = drive(node, [data, np.array([1], np.int64)]).outputs
    np.testing.assert_array_equal(actual[:2], [-np.inf, np.inf])
    np.testing.assert_allclose(actual[2], 1e4 + np.log(2), rtol=1e-6)
    assert np.isnan(actual[3])


@pytest.mark.parametrize("shape", [(6, 5, 4), (1, 9, 3), (3, 20000), (300, 3, 70), (9,)])
@pytest.mark.parametrize("select_last", [0, 1])
@pytest.mark.parametrize("operator", ["ArgMax", "ArgMin"])
def test_arg(operator, select_last, shape):
    data = np.rint(_values(shape, low=-3, high=3))
    for axis in range(len(shape)):
        attributes = {"axis": axis, "select_last_index": select_last, "keepdims": axis % 2}
        _compare(operator, [data], **attributes)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("axis", [0, -1])
def test_cumulative_sum(exclusive, reverse, axis):
    values = [_values((4, 5)), np.array(axis, np.int64)]
    _compare("CumSum", values, exclusive=exclusive, reverse=reverse)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize(("k", "axis"), [(1, 0), (3, 1), (6, 1), (2, -1), (40, -1), (0, 0)])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_top_k(dtype, k, axis, largest):
    data = np.rint(_values((5, 6, 80), low=-30, high=30)).astype(dtype)
    values = [data, np.array([k], np.int64)]
    _compare("TopK", values, outputs=2, axis=axis, largest=largest)


@pytest.mark.parametrize("dtype", [np.int8, np.uint32, np.float16])
def test_top_k_of_narrow_dtypes(dtype):
    data = RANDOM.integers(0, 100, (7, 50)).astype(dtype)
    node = operator_node(make_node("TopK", 2, 2), LATEST)
    driven = drive(node, [data, np.array([5], np.int64)])
    order = np.argsort(-data.astype(np.float64), axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(driven.outputs[1], order)
    np.testing.assert_array_equal(driven.outputs[0], np.take_along_axis(data, order, 1))


def test_top_k_of_both_zeros_keeps_their_order_and_bits():
    data = np.array([0.0, -0.0, -0.0, 0.0], np.float32)
    node = operator_node(make_node("TopK", 2, 2), LATEST)
    driven = drive(node, [data, np.array([4], np.int64)])
    np.testing.assert_array_equal(driven.outputs[1], [0, 1, 2, 3])
    assert driven.outputs[0].tobytes() == data.tobytes()


@pytest.mark.parametrize("perm", [(0, 2, 1), (2, 0, 1), (1, 0, 2), (2, 1, 0)])
def test_transpose(perm):
    _compare("Transpose", [_values((4, 5, 6))], perm=perm)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat_with_empty_parts(axis):
    shapes = [[2, 3, 4] for _ in range(4)]
    shapes[0][axis], shapes[1][axis] = 0, 1
    _compare("Concat", [_values(shape) for shape in shapes], axis=axis)


SLICES = [
    ([0, 1], [2, 3], None, None),
    ([-1], [-100], [1], [-1]),
    ([1, 7], [1000, -9], [0, 2], [2, -2]),
    ([5], [2], [0], [1]),
    ([2**62, -(2**62)], [-(2**62), 2**62], [2, 0], [-3, 2]),
]


@pytest.mark.parametrize("operands", SLICES)
def test_slice(operands):
    values = [None if part is None else np.array(part, np.int64) for part in operands]
    _compare("Slice", [_values((4, 5, 9)), *values])


def test_slice_by_attributes_in_opset_9():
    _compare("Slice", [_values((4, 5))], opset=9, starts=[1, -4], ends=[9, -1], axes=[0, 1])


@pytest.mark.parametrize("opset", [11, LATEST])
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
@pytest.mark.parametrize("pads", [[1, 2, 0, 3], [0, 0, 2, 2], [2, 3, 2, 1], [-1, 1, 2, -2]])
def test_pad(mode, pads, opset):
    _compare("Pad", [_values((4, 5)), np.array(pads, np.int64)], mode=mode, opset=opset)


def test_pad_wraps_as_often_as_needed():
    data = _values((2, 3))
    pads = np.array([5, 4, 3, 7], np.int64)
    node = operator_node(make_node("Pad", 2, mode="wrap"), LATEST)
    expected = np.pad(data, ((5, 3), (4, 7)), mode="wrap")
    np.testing.assert_array_equal(drive(node, [data, pads]).outputs[0], expected)


def test_pad_by_attributes_in_opset_10():
    _compare("Pad", [_values((2, 3))], opset=10, pads=[1, 0, 0, 2], value=2.5)


def test_pad_of_some_axes():
    value, axes = np.array(7, np.float32), np.array([-1, 0], np.int64)
    _compare("Pad", [_values((2, 3, 4)), np.array([1, 2, 3, 0], np.int64), value, axes])


@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather(axis, index_dtype):
    data = _values((5, 6, 7))
    size = data.shape[axis]
    indices = RANDOM.integers(-size, size, (2, 3)).astype(index_dtype)
    _compare("Gather", [data, indices], axis=axis)
    _compare("Gather", [data, np.array(-1, index_dtype)], axis=axis)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gather_elements_beyond_one_tile(axis):
    data = _values((30, 40, 50))
    shape = [30, 40, 45]
    indices = RANDOM.integers(-30, 30, shape)
    _compare("GatherElements", [data, indices], axis=axis)


@pytest.mark.parametrize(("batch_dims", "shape"), [(0, (4, 2)), (1, (3, 2, 1)), (0, (2, 5, 3))])
def test_gather_nd(batch_dims, shape):
    _compare(
        "GatherND",
        [_values((3, 4, 5)), RANDOM.integers(-3, 3, shape)],
        batch_dims=batch_dims,
    )


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter_elements(reduction):
    data, updates = _values((40, 50)), _values((30, 600))[:, :50]
    rows = np.argsort(RANDOM.random((40, 50)), axis=0)[:30]
    _compare("ScatterElements", [data, rows, updates], axis=0, reduction=reduction)


def test_of_several_updates_the_last_stays():
    data, indices = np.zeros((1, 40000), np.float32), np.zeros((1, 40000), np.int64)
    updates = np.arange(40000, dtype=np.float32).reshape(1, -1)
    node = operator_node(make_node("ScatterElements", 3, axis=1), LATEST)
    (actual,) = drive(node, [data, indices, updates]).outputs
    assert actual[0, 0] == 39999
    assert not actual[0, 1:].any()


def test_scatter_of_opset_9():
    _compare(
        "Scatter", [_values((3, 4)), np.array([[1, 0, 2, -1]]), _values((1, 4))], opset=9, axis=0
    )


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter_nd(reduction):
    indices = np.array([[0, 1], [2, -1], [1, 0]])
    values = [_values((3, 4, 5)), indices, _values((3, 5))]
    _compare("ScatterND", values, reduction=reduction)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot(axis):
    indices = np.array([[0, 3, -1], [-4, 4, 9]], np.int64)
    values = np.array([2, 7], np.float32)
    _compare("OneHot", [indices, np.array([4], np.int64), values], axis=axis)


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [-9, -1, 0, 2, 9])
def test_trilu(upper, k):
    _compare("Trilu", [_values((2, 4, 6)), np.array(k, np.int64)], upper=upper)


def test_split_forms():
    data = _values((6, 7))
    _compare("Split", [data, np.array([1, 0, 5], np.int64)], outputs=3, axis=0)
    _compare("Split", [data], outputs=3, axis=1, num_outputs=3)
    _compare("Split", [data], opset=11, outputs=2, axis=0, split=[2, 4])
    _compare("Split", [data], opset=11, outputs=3, axis=0)


def test_shapes_by_attributes_in_old_opsets():
    data = _values((3, 1, 4))
    _compare("Squeeze", [data], opset=11, axes=[1])
    _compare("Squeeze", [data], opset=11)
    _compare("Unsqueeze", [data], opset=11, axes=[0, 4])
    _compare("Flatten", [data], opset=8, axis=2)
    _compare("Clip", [data], opset=10, min=-1.0, max=0.5)
    _compare("Clip", [data], opset=7)
    _compare("TopK", [data], opset=9, outputs=2, k=2, axis=-1)
    _compare("Upsample", [data[None]], opset=7, mode="nearest", scales=[1.0, 1.0, 2.0, 3.0])
    scales = np.array([1, 1, 2, 1.5], np.float32)
    _compare("Upsample", [data[None], scales], opset=9, mode="linear")
    _compare("Resize", [data[None], scales], opset=10, mode="nearest")


@pytest.mark.parametrize("size", [(9, 12), (4, 3), (5, 17), (1, 1)])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(
    "coordinates", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
)
def test_resize(mode, coordinates, size):
    sizes = np.array([2, 3, *size], np.int64)
    values = [_values((2, 3, 5, 6)), None, None, sizes]
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    _compare("Resize", values, atol=2e-5, rtol=1e-4, **attributes)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize_without_aliasing(mode):
    sizes = np.array([1, 2, 5, 13], np.int64)
    values = [_values((1, 2, 30, 20)), None, None, sizes]
    _compare("Resize", values, atol=1e-4, rtol=1e-4, mode=mode, antialias=1)


def test_resize_by_whole_factors_repeats():
    scales = np.array([1, 1, 2, 3], np.float32)
    data = RANDOM.integers(0, 255, (1, 3, 50, 60)).astype(np.uint8)
    attributes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    _compare("Resize", [data, None, scales], mode="nearest", **attributes)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_quantise_and_dequantise(dtype, axis):
    data = _values((5, 4, 900), high=300)
    shape = () if axis is None else (data.shape[axis],)
    scale = _values(shape, low=0.1, high=2)
    zero = RANDOM.integers(0, 20, shape).astype(dtype)
    attributes = {} if axis is None else {"axis": axis}
    _compare("QuantizeLinear", [data, scale, zero], **attributes)
    info = np.iinfo(dtype)
    quantised = RANDOM.integers(info.min, info.max, data.shape).astype(dtype)
    _compare("DequantizeLinear", [quantised, scale, zero], **attributes)


@pytest.mark.parametrize(("low", "high"), [(-4, 4), (0, 0), (1, 4), (-9, -2)])
def test_dynamic_quantise(low, high):
    _compare("DynamicQuantizeLinear", [_values((50, 900), low=low, high=high)], outputs=3)


@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
def test_normalizer(norm):
    data = np.vstack([_values((4, 3), low=0.1), np.zeros((1, 3), np.float32)])
    _compare("Normalizer", [data], domain="ai.onnx.ml", opset=1, norm=norm)


def test_scaler_binarizer_and_imputer():
    data = _values((4, 3))
    attributes = {"offset": [1.0, 2.0, 3.0], "scale": [0.5, 2.0, 0.1]}
    _compare("Scaler", [data], domain="ai.onnx.ml", opset=1, **attributes)
    _compare("Binarizer", [data], domain="ai.onnx.ml", opset=1, threshold=0.3)
    data[1, 1] = data[3, 0] = np.nan
    imputed = {"imputed_value_floats": [1.0, 2.0, 3.0], "replaced_value_float": float("nan")}
    _compare("Imputer", [data], domain="ai.onnx.ml", opset=1, **imputed)
