"""Official ONNX node cases of sampling, regions, spectra, losses and placement."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case import node as node_cases

from tests.unit.kernel_driver import drive, lower, operator_node

_NAMES = """
    AffineGrid CausalConvWithState CenterCropPad DeformConv Det DFT GridSample LinearAttention
    MaxUnpool NegativeLogLikelihoodLoss RoiAlign SoftmaxCrossEntropyLoss STFT SwiGLU TensorScatter
"""
OPERATORS = frozenset(_NAMES.split())
CONSTANTS = frozenset(["BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"])


def _cases(operators: frozenset[str]) -> dict[str, object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = node_cases.collect_testcases(None)
    return {
        case.name: case
        for case in every
        if len(case.model.graph.node) == 1
        and case.model.graph.node[0].op_type in operators
        and case.model.graph.node[0].domain == ""
    }


CASES = _cases(OPERATORS)
CONSTANT_CASES = _cases(CONSTANTS)


def _array(value: object) -> np.ndarray:
    is_proto = isinstance(value, onnx.TensorProto)
    return numpy_helper.to_array(value) if is_proto else np.asarray(value)


def _operands(case: object, given: object) -> list[np.ndarray | None]:
    names = [value.name for value in case.model.graph.input]
    feeds = dict(zip(names, given, strict=True))
    proto = case.model.graph.node[0]
    return [_array(feeds[tensor]) if tensor else None for tensor in proto.input]


def _node(case: object) -> object:
    proto = case.model.graph.node[0]
    opset = next(o.version for o in case.model.opset_import if o.domain == proto.domain)
    return operator_node(proto, opset)


def test_no_operator_has_lost_its_cases() -> None:
    assert {case.model.graph.node[0].op_type for case in CASES.values()} == OPERATORS
    assert {case.model.graph.node[0].op_type for case in CONSTANT_CASES.values()} == CONSTANTS


@pytest.mark.parametrize("weights_are_constant", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_official_case(name: str, weights_are_constant: bool) -> None:
    case = CASES[name]
    for given, expected in case.data_sets:
        values = _operands(case, given)
        constant = range(1, len(values)) if weights_are_constant else ()
        driven = drive(_node(case), values, constant)
        assert driven is not None
        results = [array for array in driven.outputs if array is not None]
        for actual, wanted in zip(results, map(_array, expected), strict=True):
            assert (actual.dtype, actual.shape) == (wanted.dtype, wanted.shape)
            np.testing.assert_allclose(
                actual.astype(np.float64),
                wanted.astype(np.float64),
                rtol=case.rtol,
                atol=max(case.atol, 1e-5),
            )


@pytest.mark.parametrize("name", CONSTANT_CASES)
def test_constants_are_known_at_load(name: str) -> None:
    case = CONSTANT_CASES[name]
    for given, expected in case.data_sets:
        request, positions = lower(_node(case), _operands(case, given))
        assert (request.operator, positions) == ("Constant", ())
        wanted, value = _array(expected[0]), request.attributes["value"]
        assert (value.dtype, value.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_allclose(value, wanted, rtol=case.rtol, atol=1e-6)
