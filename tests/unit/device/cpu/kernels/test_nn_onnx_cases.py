"""Every official ONNX node case of the neural-network families, through infer to bound kernel."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case import node as node_cases

from tests.unit.kernel_driver import drive, operator_node

_NAMES = """
    Attention AveragePool BatchNormalization Col2Im Conv ConvInteger ConvTranspose DepthToSpace
    Dropout Einsum Gemm GlobalAveragePool GlobalMaxPool GRU GroupNormalization Hardmax
    InstanceNormalization LayerNormalization LogSoftmax LpNormalization LpPool LRN LSTM MatMul
    MatMulInteger MaxPool MeanVarianceNormalization QLinearConv QLinearMatMul RMSNormalization RNN
    RotaryEmbedding Softmax SpaceToDepth
"""
OPERATORS = frozenset(_NAMES.split())


def _cases() -> dict[str, object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = node_cases.collect_testcases(None)
    return {
        case.name: case
        for case in every
        if len(case.model.graph.node) == 1
        and case.model.graph.node[0].op_type in OPERATORS
        and case.model.graph.node[0].domain == ""
    }


CASES = _cases()


def _is_left_to_reference(name: str) -> bool:
    """Bfloat16 attention is specified rounding step by step."""
    return name.startswith("test_attention") and name.endswith("bf16")


def _array(value: object) -> np.ndarray:
    return (
        numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
    )


def _assert_close(actual: np.ndarray, expected: np.ndarray, rtol: float, atol: float) -> None:
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    if expected.dtype != np.bool_:
        actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def test_no_operator_has_lost_its_cases() -> None:
    assert {case.model.graph.node[0].op_type for case in CASES.values()} == OPERATORS


@pytest.mark.parametrize("weights_are_constant", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_official_case(name: str, weights_are_constant: bool) -> None:
    case = CASES[name]
    proto = case.model.graph.node[0]
    opset = next(o.version for o in case.model.opset_import if o.domain == proto.domain)
    node = operator_node(proto, opset)
    for given, expected in case.data_sets:
        names = [value.name for value in case.model.graph.input]
        feeds = dict(zip(names, given, strict=True))
        values = [_array(feeds[tensor]) if tensor else None for tensor in proto.input]
        driven = drive(node, values, range(1, len(values)) if weights_are_constant else ())
        if _is_left_to_reference(name):
            assert driven is None
            continue
        assert driven is not None
        results = [array for array in driven.outputs if array is not None]
        assert len(results) == len(expected)
        for actual, wanted in zip(results, expected, strict=True):
            _assert_close(actual, _array(wanted), case.rtol, case.atol)
