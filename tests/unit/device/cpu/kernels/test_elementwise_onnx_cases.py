"""Every official ONNX node case of the families this room covers, through infer to bound kernel."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case import node as node_cases

from aegis_pipe.errors import DynamicShapeError
from aegis_pipe.execution.operators import OPERATORS
from tests.unit.kernel_driver import drive, lower, operator_node


def _cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = node_cases.collect_testcases(None)
    return {
        c.name: c
        for c in every
        if len(c.model.graph.node) == 1
        and (c.model.graph.node[0].domain + "." if c.model.graph.node[0].domain else "")
        + c.model.graph.node[0].op_type
        in OPERATORS.names()
    }


CASES = _cases()


def _array(value):
    return (
        numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
    )


@pytest.mark.parametrize("name", CASES)
def test_official_case(name):
    case = CASES[name]
    proto = case.model.graph.node[0]
    opset = next(o.version for o in case.model.opset_import if o.domain == proto.domain)
    node = operator_node(proto, opset)
    for given, expected in case.data_sets:
        names = [value.name for value in case.model.graph.input]
        feeds = dict(zip(names, given, strict=True))
        values = [_array(feeds[t]) if t else None for t in proto.input]
        if node.operator in ("NonZero", "Unique", "NonMaxSuppression"):
            with pytest.raises(DynamicShapeError):
                lower(node, values)
            continue
        with np.errstate(all="ignore"):
            driven = drive(node, values)
        assert driven is not None
        results = [a for a in driven.outputs if a is not None]
        for actual, want in zip(results, map(_array, expected), strict=True):
            assert (actual.dtype, actual.shape) == (want.dtype, want.shape)
            if want.dtype.kind not in "bO":
                actual, want = actual.astype(np.float64), want.astype(np.float64)
            np.testing.assert_allclose(
                actual, want, rtol=1e-3 if case.rtol is None else case.rtol, atol=case.atol or 1e-7
            )
