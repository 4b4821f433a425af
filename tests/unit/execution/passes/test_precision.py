"""Half precision changes types in between, and nothing that can be seen from outside."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from aegis_pipe.clock import SystemClock
from aegis_pipe.device import open_device
from aegis_pipe.errors import PermanentError
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.passes.precision import convert
from aegis_pipe.execution.standalone import StandaloneGraph


def _graph() -> ExecutionGraph:
    rng = np.random.default_rng(3)
    weights = numpy_helper.from_array(rng.standard_normal((8, 8)).astype(np.float32), "w")
    mask = numpy_helper.from_array(np.array([0, -3.4e38] * 4, np.float32), "mask")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["y"], axis=-1),
        helper.make_node("Exp", ["product"], ["e"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "attention",
        [value("x", TensorProto.FLOAT, [4, 8])],
        [value("y", TensorProto.FLOAT, [4, 8]), value("e", TensorProto.FLOAT, [4, 8])],
        [weights, mask],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    return ModelLoader().load_proto(model, LoadOptions())


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_types(precision: str, dtype: str) -> None:
    graph = _graph()
    half = convert(graph, precision)
    assert half.inputs == graph.inputs
    assert half.outputs == graph.outputs
    for tensor in (*half.inputs, *half.outputs):
        assert half.spec(tensor) == graph.spec(tensor), "the interface stays float32"
    by_operator = {node.operator: node for node in half.operators if node.operator != "Cast"}
    for operator in ("MatMul", "Add", "Softmax"):
        node = by_operator[operator]
        assert {half.spec(tensor).dtype.name for tensor in (*node.inputs, *node.outputs)} == {dtype}
    (read,) = by_operator["Exp"].inputs
    assert half.spec(read).dtype == np.float32, "what may grow large stays float32"
    assert all(np.isfinite(array.astype(np.float32)).all() for array in half.constants.values())


def test_same_results() -> None:
    graph = _graph()
    x = np.random.default_rng(5).standard_normal((4, 8)).astype(np.float32)
    clock = SystemClock()
    with open_device("cpu", clock=clock).context as context:
        stream = context.create_stream(0)
        results = []
        for each in (graph, convert(graph, "fp16")):
            with StandaloneGraph(each, context, stream, clock) as standalone:
                results.append(standalone.run({"x": x}))
        stream.close()
    for name, tolerance in (("y", 4e-3), ("e", 2e-2)):
        np.testing.assert_allclose(results[1][name], results[0][name], tolerance, tolerance)


def test_a_device_that_is_not_made_for_it_says_so() -> None:
    clock = SystemClock()
    with open_device("cpu", clock=clock).context as context:
        stream = context.create_stream(0)
        with pytest.raises(PermanentError, match="precision `fp16` is not supported by cpu"):
            StandaloneGraph(_graph(), context, stream, clock, "fp16")
        stream.close()
