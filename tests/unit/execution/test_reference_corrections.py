"""Corrected reference operators beside ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from aegis_pipe.execution.graph import OperatorNode
from aegis_pipe.execution.reference_operators import reference_function
from aegis_pipe.tensor import TensorId

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("opset", [9, 11, 13])
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_axis_of_the_softmax_family(operator: str, opset: int, axis: int | None) -> None:
    attributes = {} if axis is None else {"axis": axis}
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, X.shape) for n in "xy"]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], **attributes)], "g", values[:1], values[1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (expected,) = session.run(None, {"x": X})
    node = OperatorNode("n", operator, "", opset, attributes, (TensorId("x"),), (TensorId("y"),))
    (found,) = reference_function(node, (0,), {})([X])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)
