"""Shape rules, canonical forms and errors of elementwise, moving and reducing operators."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aegis_pipe.errors import DynamicShapeError, InvalidModelError
from aegis_pipe.execution.operators import OPERATORS
from aegis_pipe.tensor import TensorSpec
from tests.unit.kernel_driver import lower, make_node, operator_node

DATA = np.zeros((2, 3, 4), np.float32)


def _lower(operator, values, constants=(), opset=21, outputs=1, domain="", **attributes):
    proto = make_node(operator, len(values), outputs, domain=domain, **attributes)
    names = [n if v is not None else "" for n, v in zip(proto.input, values, strict=True)]
    proto = make_node(operator, names, outputs, domain=domain, **attributes)
    return lower(operator_node(proto, opset), values, constants)


def _ints(*values):
    return np.array(values, np.int64)


ZERO, SIX = np.zeros((), np.float32), np.full((), 6, np.float32)
SCALES = np.array([1, 2, 3], np.float32)
SAME_CANONICAL_FORM = [
    (
        ("Slice", [DATA, _ints(1), _ints(-1), _ints(-2)], 21, {}),
        ("Slice", [DATA], 9, {"starts": [1], "ends": [2], "axes": [1]}),
    ),
    (("ReduceMax", [DATA, _ints(-1, 0)], 21, {}), ("ReduceMax", [DATA], 11, {"axes": [0, 2]})),
    (("ReduceSum", [DATA], 21, {}), ("ReduceSum", [DATA], 11, {"axes": [0, 1, 2]})),
    (
        ("Split", [DATA, _ints(1, 2)], 21, {"axis": -2}),
        ("Split", [DATA], 11, {"axis": 1, "split": [1, 2]}),
    ),
    (
        ("Split", [DATA], 21, {"axis": 1, "num_outputs": 2}),
        ("Split", [DATA], 11, {"axis": 1, "split": [2, 1]}),
    ),
    (("Squeeze", [DATA[:1], _ints(0)], 21, {}), ("Squeeze", [DATA[:1]], 11, {"axes": [0]})),
    (("Unsqueeze", [DATA, _ints(-1)], 21, {}), ("Unsqueeze", [DATA], 11, {"axes": [3]})),
    (("TopK", [DATA, _ints(2)], 21, {}), ("TopK", [DATA], 9, {"k": 2, "axis": 2})),
    (
        ("Pad", [DATA, _ints(1, 2, 3, 4), None, _ints(2, 0)], 21, {}),
        ("Pad", [DATA], 10, {"pads": [2, 0, 1, 4, 0, 3]}),
    ),
    (("Clip", [DATA, ZERO, SIX], 21, {}), ("Clip", [DATA], 7, {"min": 0.0, "max": 6.0})),
    (("Upsample", [DATA, SCALES], 9, {}), ("Upsample", [DATA], 7, {"scales": [1.0, 2.0, 3.0]})),
    (("Upsample", [DATA, SCALES], 9, {}), ("Resize", [DATA, SCALES], 10, {})),
]


@pytest.mark.parametrize(("new", "old"), SAME_CANONICAL_FORM)
def test_opsets_share_one_canonical_form(new, old):
    requests = []
    for operator, values, opset, attributes in (new, old):
        outputs = {"Split": 2, "TopK": 2}.get(operator, 1)
        constants = range(1, len(values))
        requests.append(
            _lower(operator, values, constants, opset=opset, outputs=outputs, **attributes)[0]
        )
    one, other = requests
    assert (one.operator, one.outputs) == (other.operator, other.outputs)
    assert one.attributes == other.attributes
    assert [spec for spec in one.inputs if spec] == [spec for spec in other.inputs if spec]


VIEWS = [
    ("Identity", [DATA], {}, (2, 3, 4)),
    ("Reshape", [DATA, _ints(0, -1)], {}, (2, 12)),
    ("Reshape", [DATA[:0], _ints(0, 5)], {"allowzero": 1}, (0, 5)),
    ("Flatten", [DATA], {"axis": -1}, (6, 4)),
    ("Squeeze", [DATA[:1, :1]], {}, (4,)),
    ("Unsqueeze", [DATA, _ints(0, -1)], {}, (1, 2, 3, 4, 1)),
    ("Transpose", [DATA[:1]], {"perm": [1, 0, 2]}, (3, 1, 4)),
    ("Slice", [DATA, _ints(0), _ints(100)], {}, (2, 3, 4)),
    ("Expand", [DATA, _ints(1, 1)], {}, (2, 3, 4)),
    ("Tile", [DATA, _ints(1, 1, 1)], {}, (2, 3, 4)),
    ("Pad", [DATA, _ints(0, 0, 0, 0, 0, 0)], {}, (2, 3, 4)),
    ("Concat", [DATA], {"axis": 0}, (2, 3, 4)),
    ("Max", [DATA], {}, (2, 3, 4)),
    ("Cast", [DATA], {"to": 1}, (2, 3, 4)),
]


@pytest.mark.parametrize(("operator", "values", "attributes", "shape"), VIEWS)
def test_what_moves_nothing_is_a_reshape(operator, values, attributes, shape):
    request, positions = _lower(operator, values, **attributes)
    assert (request.operator, positions, request.outputs[0].shape) == ("Reshape", (0,), shape)


def test_a_bound_of_clip_that_is_data_stays_an_operand():
    bounds = [np.zeros((), np.float32), np.ones((), np.float32)]
    request, positions = _lower("Clip", [DATA, *bounds], (2,))
    assert request.attributes == {"min": None, "max": 1.0}
    assert positions == (0, 1, -1)


def test_slice_is_resolved():
    values = [DATA, _ints(-1, 0), _ints(-9, 9), _ints(2, 0), _ints(-2, 5)]
    request, _ = _lower("Slice", values)
    assert request.attributes == {"starts": (0, 0, 3), "steps": (1, 1, -2)}
    assert request.outputs[0].shape == (1, 3, 2)


@pytest.mark.parametrize(
    ("policy", "shape"),
    [("stretch", (2, 6, 4)), ("not_larger", (2, 3, 4)), ("not_smaller", (4, 6, 4))],
)
def test_resize_keeps_the_aspect_ratio(policy, shape):
    values = [DATA, None, None, _ints(2, 6)]
    request, _ = _lower("Resize", values, axes=[0, 1], keep_aspect_ratio_policy=policy)
    assert request.outputs[0].shape == shape


def test_range_counts_up_to_its_limit():
    for start, limit, delta in ((0, 5, 2), (5, -1, -3), (3, 3, 1), (4, 0, 1)):
        request, positions = _lower("Range", [np.array(v) for v in (start, limit, delta)])
        assert positions == ()
        assert request.outputs[0].shape == (len(range(start, limit, delta)),)
    floats = [np.array(v, np.float32) for v in (0, 1, 0.3)]
    assert _lower("Range", floats)[0].outputs[0].shape == (math.ceil(1 / np.float32(0.3)),)


def test_compress_with_a_constant_condition_has_a_shape():
    condition = np.array([False, True, True])
    request, positions = _lower("Compress", [DATA, condition], axis=1)
    assert request.outputs[0] == TensorSpec(DATA.dtype, (2, 2, 4))
    assert (positions, request.attributes["indices"].tolist()) == ((0,), [1, 2])
    assert OPERATORS.get("Compress").static_inputs == (1,)


@pytest.mark.parametrize("operator", ["NonZero", "Unique", "NonMaxSuppression"])
def test_data_dependent_shapes_are_refused(operator):
    with pytest.raises(DynamicShapeError, match="which only the data can tell") as caught:
        _lower(operator, [DATA])
    assert "transform" in caught.value.hint


WRONG = [
    ("Add", [DATA, DATA[:, :2]], {}, "do not broadcast"),
    ("Add", [DATA, DATA.astype(np.int32)], {}, "differ in dtype"),
    ("Where", [DATA, DATA, DATA], {}, "not a condition"),
    ("PRelu", [DATA, np.zeros((5, 1, 1, 1), np.float32)], {}, "does not broadcast to"),
    ("Reshape", [DATA, _ints(5, -1)], {}, "can not be reshaped"),
    ("Reshape", [DATA, _ints(2, 3, 4, 0)], {}, "has not"),
    ("Squeeze", [DATA, _ints(0)], {}, "not all 1"),
    ("Unsqueeze", [DATA, _ints(0, 0)], {}, "repeat"),
    ("Transpose", [DATA], {"perm": [0, 0, 1]}, "does not permute"),
    ("Concat", [DATA, DATA[:, :2]], {"axis": 0}, "differ beside axis 0"),
    ("Concat", [DATA, DATA], {"axis": 3}, "axis 3 is outside"),
    ("Split", [DATA, _ints(1, 1)], {"axis": 0, "outputs": 3}, "can not be split"),
    ("Slice", [DATA, _ints(0), _ints(1), _ints(0), _ints(0)], {}, "do not fit"),
    ("Expand", [DATA, _ints(5, 4)], {}, "does not broadcast"),
    ("Tile", [DATA, _ints(2)], {}, "do not fit"),
    ("Pad", [DATA, _ints(-2, 0, 0, -1, 0, 0)], {}, "leave nothing"),
    ("Gather", [DATA, DATA], {}, "are no integers"),
    ("GatherElements", [DATA, np.zeros((3, 3, 4), np.int64)], {"axis": 1}, "do not fit"),
    ("GatherND", [DATA, np.zeros((2, 4), np.int64)], {}, "do not fit"),
    ("ScatterElements", [DATA, _ints(0).reshape(1, 1, 1), DATA], {}, "do not fit"),
    ("ScatterND", [DATA, _ints(0).reshape(1, 1), DATA], {}, "do not fit"),
    ("ReduceSum", [DATA, _ints(3)], {}, "axis 3 is outside"),
    ("ReduceSum", [DATA, _ints(0, 0)], {}, "repeat"),
    ("TopK", [DATA, _ints(5)], {"outputs": 2}, "has not 5 elements"),
    ("ArgMax", [DATA[:0]], {}, "is empty"),
    ("OneHot", [_ints(0), _ints(-1), DATA[0, 0, :2]], {}, "negative"),
    ("Cast", [DATA], {"to": 99}, "not an element type"),
    ("BitCast", [DATA], {"to": 7}, "differ in width"),
    ("Resize", [DATA, None, np.float32([1, 2])], {}, "do not fit"),
    ("QuantizeLinear", [DATA, np.float32([1, 2])], {}, "does not fit axis 1"),
    ("Range", [_ints(0)[0:1], _ints(1), _ints(0)], {}, "delta is 0"),
    ("ConstantOfShape", [_ints(-1)], {}, "is no shape"),
    ("Trilu", [DATA[0, 0]], {}, "is no matrix"),
    ("EyeLike", [DATA], {}, "is no matrix"),
]


@pytest.mark.parametrize(("operator", "values", "attributes", "message"), WRONG)
def test_what_does_not_fit_is_refused(operator, values, attributes, message):
    with pytest.raises(InvalidModelError, match=message) as caught:
        _lower(operator, values, **attributes)
    assert f"node `node` ({operator})" in str(caught.value)
