"""Every official ONNX node case of elementwise, reducing, moving and indexing operators."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case import node as node_cases

from aegis_pipe.errors import DynamicShapeError
from aegis_pipe.execution.operators import (
    casting,
    classic_ml,
    data_dependent,
    elementwise,
    generators,
    indexing,
    layout,
    quantisation,
    reductions,
    reshaping,
    resizing,
)
from tests.unit.kernel_driver import drive, lower, operator_node

FAMILIES = (
    casting,
    classic_ml,
    data_dependent,
    elementwise,
    generators,
    indexing,
    layout,
    quantisation,
    reductions,
    reshaping,
    resizing,
)
NAMES = frozenset(
    entry.name
    for family in FAMILIES
    for entry in family.ENTRIES
    if not entry.name.startswith("aegis.")
)

# Gelu runs on the kernel of the transformer blocks, which has its own tests.
ELSEWHERE = frozenset({"Gelu"})

WITHOUT_OFFICIAL_CASE = frozenset(
    {
        "ai.onnx.ml.Imputer",
        "ai.onnx.ml.Normalizer",
        "ai.onnx.ml.Scaler",
        "com.microsoft.DequantizeLinear",
        "com.microsoft.QuantizeLinear",
        "com.microsoft.QuickGelu",
    }
)

# Text is the reference's.
LEFT_TO_REFERENCE = frozenset({"test_equal_string", "test_equal_string_broadcast"})


def _qualified(proto: onnx.NodeProto) -> str:
    return f"{proto.domain}.{proto.op_type}" if proto.domain else proto.op_type


def _cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = node_cases.collect_testcases(None)
    return {
        case.name: case
        for case in every
        if len(case.model.graph.node) == 1
        and _qualified(case.model.graph.node[0]) in NAMES - ELSEWHERE
    }


CASES = _cases()


def _array(value):
    is_tensor = isinstance(value, onnx.TensorProto)
    return numpy_helper.to_array(value) if is_tensor else np.asarray(value)


def test_no_operator_has_lost_its_cases():
    driven = {_qualified(case.model.graph.node[0]) for case in CASES.values()}
    assert NAMES - driven - ELSEWHERE == WITHOUT_OFFICIAL_CASE
    assert set(CASES) >= LEFT_TO_REFERENCE


@pytest.mark.parametrize("all_constant", [False, True], ids=["data", "constants"])
@pytest.mark.parametrize("name", CASES)
def test_official_case(name, all_constant):
    case = CASES[name]
    proto = case.model.graph.node[0]
    opset = next(o.version for o in case.model.opset_import if o.domain == proto.domain)
    node = operator_node(proto, opset)
    for given, expected in case.data_sets:
        feeds = dict(zip((v.name for v in case.model.graph.input), given, strict=True))
        values = [_array(feeds[tensor]) if tensor else None for tensor in proto.input]
        constants = range(1, len(values)) if all_constant else ()
        if _qualified(proto) in {entry.name for entry in data_dependent.ENTRIES}:
            with pytest.raises(DynamicShapeError, match="which only the data can tell"):
                lower(node, values, constants)
            continue
        driven = drive(node, values, constants)
        assert (driven is None) == (name in LEFT_TO_REFERENCE)
        if driven is not None:
            _assert_close(driven.outputs, expected, case)


def _assert_close(outputs, expected, case):
    results = [array for array in outputs if array is not None]
    for actual, value in zip(results, expected, strict=True):
        wanted = _array(value)
        assert (actual.dtype, actual.shape) == (wanted.dtype, wanted.shape)
        if wanted.dtype != np.bool_:
            actual, wanted = actual.astype(np.float64), wanted.astype(np.float64)
        np.testing.assert_allclose(actual, wanted, rtol=case.rtol, atol=case.atol)
