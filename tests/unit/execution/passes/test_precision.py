"""Half precision changes types in between, and nothing that can be seen from outside."""

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from aegis_pipe.clock import SystemClock
from aegis_pipe.device import open_device
from aegis_pipe.errors import PermanentError
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.passes.precision import HALF_DTYPES, convert, rounded
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


NORMALISATION = """
sum = ReduceSum (x, axis) mean = Mul (sum, share) q = Mul (x, x) squares = ReduceSum (q, axis)
s = Mul (squares, share) m = Mul (mean, mean) v = Sub (s, m) e = Add (v, eps) r = Sqrt (e)
i = Reciprocal (r) wide = Expand (mean, shape) d = Sub (x, wide) n = Mul (d, i) y = Mul (n, two)
"""


def test_statistics_stay_in_float32() -> None:
    """Squares are beyond float16 here, and variances a difference of nearly equal numbers."""
    rows, width = 4, 512
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 17]> net (float[{rows},{width}] a) '
        f"=> (float[{rows},{width}] y) "
        f"<int64[1] axis = {{1}}, int64[2] shape = {{{rows}, {width}}}, float two = {{2.0}}, "
        f"float share = {{{1 / width}}}, float eps = {{0.000001}}> "
        f"{{ x = Mul(a, two) {NORMALISATION} }}"
    )
    graph = ModelLoader().load_proto(model, LoadOptions())
    half = convert(graph, "fp16")
    types = {
        node.operator + node.outputs[0]: {half.spec(tensor).dtype.name for tensor in node.outputs}
        for node in half.operators
    }
    for name in ("Mulq", "Mulmean", "Mulm", "Subv", "Expandwide", "Subd", "Muln"):
        assert types[name] == {"float32"}
    assert types["Mulx.float16"] == types["Muly.float16"] == {"float16"}
    a = 150 + np.random.default_rng(5).standard_normal((rows, width)).astype(np.float32)
    clock = SystemClock()
    with open_device("cpu", clock=clock).context as context:
        stream = context.create_stream(0)
        results = []
        for each in (graph, half):
            with StandaloneGraph(each, context, stream, clock) as standalone:
                results.append(standalone.run({"a": a})["y"])
        stream.close()
    # Of 300, float16 tells quarters; a deviation is 2.
    np.testing.assert_allclose(results[1], results[0], 0, 0.2)


def test_norms_stay_in_float32() -> None:
    """A root of a mean of squares alone: 300 squared is beyond float16."""
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17]> net (float[2,64] x) => (float[2,64] y) '
        "<float two = {2.0}> { p = Pow (x, two) m = ReduceMean <axes=[1]> (p) r = Sqrt (m) "
        "d = Div (x, r) y = Relu (d) }"
    )
    half = convert(ModelLoader().load_proto(model, LoadOptions()), "fp16")
    types = {node.operator: half.spec(node.outputs[0]).dtype.name for node in half.operators}
    assert types["ReduceMean"] == types["Div"] == "float32"
    assert types["Relu"] == "float16"


def test_means_that_are_not_computed_with_are_halves() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17]> net (float[1,8,4,4] x) => (float[1,8,4,4] y) '
        "{ m = ReduceMean <axes=[2,3]> (x) s = Sigmoid (m) y = Mul (x, s) }"
    )
    half = convert(ModelLoader().load_proto(model, LoadOptions()), "fp16")
    kinds = [node.operator for node in half.operators]
    assert kinds == ["Cast", "ReduceMean", "Sigmoid", "Mul", "Cast"]


def test_a_device_that_is_not_made_for_it_says_so() -> None:
    clock = SystemClock()
    with open_device("cpu", clock=clock).context as context:
        stream = context.create_stream(0)
        with pytest.raises(PermanentError, match="precision `fp16` is not supported by cpu"):
            StandaloneGraph(_graph(), context, stream, clock, "fp16")
        stream.close()


def _plainly(array: np.ndarray, half: np.dtype) -> np.ndarray:
    largest = float(ml_dtypes.finfo(half).max)  # type: ignore[no-untyped-call]
    finite = np.where(np.isfinite(array), np.clip(array, -largest, largest), array)
    with np.errstate(invalid="ignore"):
        return finite.astype(half)


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint16)


@pytest.mark.parametrize("half", HALF_DTYPES.values(), ids=HALF_DTYPES.keys())
def test_constants_are_rounded_to_the_nearest_that_is_finite(half: np.dtype) -> None:
    """Every sign, exponent and upper half of a mantissa, next to all ties of both types."""
    upper = np.arange(1 << 16, dtype=np.uint32)[:, None] << 16
    lower = (0, 1, 0xFFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xF000, 0xFFFF)
    every = (upper | np.array(lower, np.uint32)).view(np.float32)
    largest = np.float32(ml_dtypes.finfo(half).max)  # type: ignore[no-untyped-call]
    arrays = [
        every,
        np.asfortranarray(every),
        every[np.abs(every) < 1],
        every[:, ::3],
        # Too large alone, of one sign each, and what is infinite or no number among finite ones.
        np.array([1, np.nextafter(largest, np.float32(np.inf))], np.float32),
        np.array([-1, -np.finfo(np.float32).max], np.float32),
        np.array([-1, np.inf, 2], np.float32),
        np.array([-np.inf, -0.0], np.float32),
        np.array([0xFFC00000], np.uint32).view(np.float32),
        np.array(-1e39, np.float64).clip(-3e38).astype(np.float32),
        np.empty((0, 4), np.float32),
    ]
    found = rounded(arrays, half)
    for array, halves in zip(arrays, found, strict=True):
        assert halves.dtype == half
        np.testing.assert_array_equal(_bits(halves), _bits(_plainly(array, half)))


def test_large_constants_are_rounded_in_parts() -> None:
    """Parts meet without a gap, whatever the shape; all that is too large is found in each."""
    array = np.arange(3 * 333_337, dtype=np.float32) % 70_001 - 1
    half = np.dtype(np.float16)
    shaped = [array.reshape(3, -1), array.reshape(-1, 3), array.reshape(1, -1), array]
    for one, halves in zip(shaped, rounded(shaped, half), strict=True):
        np.testing.assert_array_equal(_bits(halves), _bits(_plainly(one, half)))
