from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import onnx
import pytest

from aegis_pipe.errors import InvalidModelError, KernelError, UnsupportedOperatorError
from aegis_pipe.execution.graph import GraphAttribute, OperatorNode
from aegis_pipe.execution.onnx_types import DTYPE_OF_ELEMENT_TYPE
from aegis_pipe.execution.reference_operators import infer_with_onnx, reference_function
from aegis_pipe.tensor import TensorId, TensorSpec


def node(
    operator: str, inputs: int, outputs: int = 1, opset: int = 17, **attributes: GraphAttribute
) -> OperatorNode:
    return OperatorNode(
        "n",
        operator,
        "",
        opset,
        attributes,
        tuple(TensorId(f"i{k}") for k in range(inputs)),
        tuple(TensorId(f"o{k}") for k in range(outputs)),
    )


def test_operands_come_from_data_and_constants() -> None:
    # Sub(i0, i1) with i0 known: only position 1 is data.
    function = reference_function(node("Sub", 2), (1,), {0: np.float32([10, 20])})
    (result,) = function([np.float32([1, 2])])
    assert result.tolist() == [9, 18]
    assert function([np.float32([0, 0])])[0].tolist() == [10, 20]


def test_operands_in_canonical_order() -> None:
    function = reference_function(node("Sub", 2), (1, 0, -1), {})
    (result,) = function([np.float32([1]), np.float32([5]), None])
    assert result.tolist() == [4]


def test_results_are_contiguous_and_of_the_defined_dtype() -> None:
    transpose = reference_function(node("Transpose", 1), (0,), {})
    (result,) = transpose([np.zeros((2, 3), np.float16)])
    assert result.flags.c_contiguous
    assert result.dtype == np.float16
    softmax = reference_function(node("ReduceMean", 1, axes=(0,)), (0,), {})
    (mean,) = softmax([np.zeros(3, ml_dtypes.bfloat16)])
    assert mean.dtype == ml_dtypes.bfloat16


def test_scalars_stay_scalars() -> None:
    (result,) = reference_function(node("Neg", 1), (0,), {})([np.array(2.0, np.float32)])
    assert result.shape == ()


def test_a_refusal_is_a_kernel_error_that_names_the_node() -> None:
    gather = reference_function(node("Gather", 2), (0, 1), {})
    with pytest.raises(KernelError, match=r"node `n` \(Gather\)"):
        gather([np.zeros(3, np.float32), np.array([7])])


def test_operators_nobody_defines() -> None:
    unknown = OperatorNode("n", "Gelu", "com.microsoft", 1, {}, (TensorId("x"),), (TensorId("y"),))
    with pytest.raises(UnsupportedOperatorError, match="has no reference kernel"):
        reference_function(unknown, (0,), {})([np.zeros(2, np.float32)])


def test_inference_with_known_operands() -> None:
    spec = TensorSpec(np.dtype(np.float32), (2, 6))
    target = TensorSpec(np.dtype(np.int64), (3,))
    found = infer_with_onnx(node("Reshape", 2), [spec, target], {1: np.array([3, -1, 2])})
    assert found == ((np.dtype(np.float32), (3, 2, 2)),)
    (unknown,) = infer_with_onnx(node("Reshape", 2), [spec, target], {})
    assert unknown[1] != (3, 2, 2)


def test_inference_of_operands_that_do_not_fit() -> None:
    one, two = (TensorSpec(np.dtype(np.float32), (n,)) for n in (2, 3))
    with pytest.raises(InvalidModelError, match=r"node `n` \(Add\)"):
        infer_with_onnx(node("Add", 2), [one, two], {})


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("opset", [11, 13])
def test_softmax_family_of_both_meanings(operator: str, opset: int) -> None:
    import onnxruntime

    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, ["x"], ["y"])],
        "g",
        [value("x", 1, x.shape)],
        [value("y", 1, x.shape)],
    )
    imports = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (expected,) = session.run(None, {"x": x})
    (result,) = reference_function(node(operator, 1, opset=opset), (0,), {})([x])
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_batch_normalisation_of_old_opsets_uses_the_given_moments() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    vectors = [np.float32(v) for v in ([1, 2, 3], [0, 1, 0], [1, 0, 2], [4, 1, 9])]
    function = reference_function(node("BatchNormalization", 5, opset=9), (0, 1, 2, 3, 4), {})
    (result,) = function([x, *vectors])
    scale, bias, mean, variance = (v.reshape(1, 3, 1) for v in vectors)
    expected = (x - mean) / np.sqrt(variance + 1e-5) * scale + bias
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_onnx_is_imported_at_the_first_call_only() -> None:
    program = (
        "import sys\n"
        "from aegis_pipe.execution.reference_operators import reference_function\n"
        "from aegis_pipe.execution.graph import OperatorNode\n"
        "node = OperatorNode('n', 'Neg', '', 17, {}, ('x',), ('y',))\n"
        "function = reference_function(node, (0,), {})\n"
        "print('onnx' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_element_types_are_those_of_onnx() -> None:
    numbers = set(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}
    expected = {n: np.dtype(onnx.helper.tensor_dtype_to_np_dtype(n)) for n in numbers}
    assert expected == DTYPE_OF_ELEMENT_TYPE
