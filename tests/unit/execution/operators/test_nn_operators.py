from __future__ import annotations

import math

import numpy as np
import pytest

from aegis_pipe.errors import InvalidModelError
from tests.unit.kernel_driver import lower, make_node, operator_node

FLOAT32 = np.float32


def _lower(operator: str, *shapes: tuple[int, ...], opset: int = 22, **attributes: object):
    node = operator_node(make_node(operator, len(shapes), **attributes), opset)
    return lower(node, [np.zeros(shape, FLOAT32) for shape in shapes])[0]


def test_conv_defaults_are_filled_in() -> None:
    request = _lower("Conv", (1, 2, 8, 8), (4, 2, 3, 2))
    assert request.attributes == {
        "kernel_shape": (3, 2),
        "strides": (1, 1),
        "dilations": (1, 1),
        "pads": (0, 0, 0, 0),
        "group": 1,
    }
    assert request.outputs[0].shape == (1, 4, 6, 7)
    assert request.inputs[2] is None


@pytest.mark.parametrize(
    ("auto_pad", "pads", "spatial"),
    [
        ("NOTSET", (0, 0, 0, 0), (4, 7)),
        ("VALID", (0, 0, 0, 0), (4, 7)),
        ("SAME_UPPER", (1, 0, 1, 1), (5, 8)),
        ("SAME_LOWER", (1, 1, 1, 0), (5, 8)),
    ],
)
def test_auto_pad_becomes_pads(
    auto_pad: str, pads: tuple[int, ...], spatial: tuple[int, ...]
) -> None:
    request = _lower("Conv", (1, 1, 9, 8), (1, 1, 3, 2), auto_pad=auto_pad, strides=[2, 1])
    assert (request.attributes["pads"], request.outputs[0].shape[2:]) == (pads, spatial)


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("ceil_mode", [0, 1])
def test_a_single_window_may_lack_less_than_a_stride(operator: str, ceil_mode: int) -> None:
    attributes = {"kernel_shape": [3, 1], "strides": [2, 1], "ceil_mode": ceil_mode}
    assert _lower(operator, (1, 1, 2, 5), **attributes).outputs[0].shape == (1, 1, 1, 5)
    with pytest.raises(InvalidModelError, match="windows are larger") as caught:
        _lower(operator, (1, 1, 1, 5), **attributes)
    assert "larger inputs" in caught.value.hint


def test_a_convolution_needs_a_whole_window() -> None:
    with pytest.raises(InvalidModelError, match="windows are larger"):
        _lower("Conv", (1, 1, 2, 5), (1, 1, 3, 1), strides=[2, 1])
    assert _lower("Conv", (0, 1, 2, 5), (1, 1, 1, 1)).outputs[0].shape == (0, 1, 2, 5)


def test_ceil_mode_drops_a_window_that_starts_in_the_padding_after() -> None:
    attributes = {"kernel_shape": [1], "strides": [2], "pads": [0, 1], "ceil_mode": 1}
    assert _lower("MaxPool", (1, 1, 2), **attributes).outputs[0].shape == (1, 1, 1)
    attributes |= {"kernel_shape": [3], "pads": [0, 0]}
    assert _lower("MaxPool", (1, 1, 6), **attributes).outputs[0].shape == (1, 1, 3)


def test_conv_transpose_output_shape_becomes_pads() -> None:
    request = _lower("ConvTranspose", (1, 1, 3), (1, 1, 3), strides=[3], output_shape=[8])
    assert request.outputs[0].shape == (1, 1, 8)
    assert request.attributes["pads"] == (1, 0)


@pytest.mark.parametrize(
    ("opset", "axis", "axes"),
    [(11, None, (1, 2)), (11, 0, (0, 1, 2)), (11, -1, (2,)), (13, None, (2,)), (13, -2, (1,))],
)
def test_softmax_axes(opset: int, axis: int | None, axes: tuple[int, ...]) -> None:
    attributes = {} if axis is None else {"axis": axis}
    request = _lower("Softmax", (2, 3, 4), opset=opset, **attributes)
    assert request.attributes == {"axes": axes}


def test_recurrent_activations_are_listed_with_their_parameters() -> None:
    request = _lower(
        "GRU",
        (5, 2, 3),
        (2, 12, 3),
        (2, 12, 4),
        hidden_size=4,
        direction="bidirectional",
        activations=["HardSigmoid", "Tanh", "Sigmoid", "LeakyRelu"],
        activation_alpha=[0.3],
    )
    assert request.attributes["reverse"] == (0, 1)
    assert request.attributes["activation_alpha"] == pytest.approx((0.3, 0, 0, 0.01))
    assert request.attributes["activation_beta"] == (0.5, 0, 0, 0)
    assert request.attributes["clip"] == math.inf


@pytest.mark.parametrize(
    ("equation", "shapes", "explicit", "shape"),
    [
        ("ij,jk", [(2, 3), (3, 4)], "ij,jk->ik", (2, 4)),
        ("...ij, jk -> ...ik", [(5, 2, 3), (3, 4)], "aij,jk->aik", (5, 2, 4)),
        ("...a,...a", [(7, 2, 3), (2, 3)], "bca,ca->bc", (7, 2)),
        ("ii", [(3, 3)], "ii->", ()),
        ("ba", [(3, 4)], "ba->ab", (4, 3)),
    ],
)
def test_einsum_is_made_explicit(
    equation: str, shapes: list[tuple[int, ...]], explicit: str, shape: tuple[int, ...]
) -> None:
    request = _lower("Einsum", *shapes, equation=equation)
    assert (request.attributes["equation"], request.outputs[0].shape) == (explicit, shape)


@pytest.mark.parametrize(
    ("operator", "shapes", "attributes"),
    [
        ("Conv", [(1, 3, 8, 8), (4, 2, 3, 3)], {}),
        ("Conv", [(1, 4, 8, 8), (3, 2, 3, 3)], {"group": 2}),
        ("Conv", [(1, 3, 8), (4, 3, 3, 3)], {}),
        ("Conv", [(1, 3, 8, 8), (4, 3, 3, 3)], {"strides": [0, 1]}),
        ("Conv", [(1, 3, 8, 8), (4, 3, 3, 3)], {"pads": [1, 1]}),
        ("MaxPool", [(1, 3, 8, 8)], {}),
        ("MatMul", [(2, 3), (4, 5)], {}),
        ("MatMul", [(2, 3, 4), (3, 4, 5)], {}),
        ("Gemm", [(2, 3), (3, 4)], {"transA": 1}),
        ("Softmax", [(2, 3)], {"axis": 2}),
        ("DepthToSpace", [(1, 6, 2, 2)], {"blocksize": 2}),
        ("LSTM", [(5, 2, 3), (1, 16, 4), (1, 16, 4)], {"hidden_size": 4}),
        ("Einsum", [(2, 3), (4, 5)], {"equation": "ij,jk->ik"}),
        ("Attention", [(1, 4, 12)] * 3, {"q_num_heads": 5, "kv_num_heads": 3}),
    ],
)
def test_operands_that_do_not_fit_are_refused(
    operator: str, shapes: list[tuple[int, ...]], attributes: dict[str, object]
) -> None:
    with pytest.raises(InvalidModelError) as error:
        _lower(operator, *shapes, **attributes)
    assert operator in error.value.context
    assert error.value.hint


def test_dropout_keeps_its_operands_only_if_it_may_train() -> None:
    node = operator_node(make_node("Dropout", 3), 22)
    values = [np.zeros(4, FLOAT32), np.array(0.5, FLOAT32), np.array(False)]
    assert lower(node, values, [2])[1] == (0,)
    assert lower(node, values)[1] == (0, 1, 2)
