"""Generated inputs suit the operators that read them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.input_generation import generate_inputs
from aegis_pipe.execution.model_loader import ModelLoader


def load(nodes, inputs, constants=()) -> ExecutionGraph:
    graph = helper.make_graph(
        [helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes],
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(array, name) for name, array in dict(constants).items()],
    )
    return ModelLoader().load_proto(helper.make_model(graph, opset_imports=[_OPSET], ir_version=9))


_OPSET = helper.make_opsetid("", 18)
TABLE = np.zeros((7, 5), np.float32)
IDS = ("ids", TensorProto.INT64, [1, 400])


def test_indices_cover_the_table_and_stay_in_it() -> None:
    graph = load([("Gather", ["table", "ids"], ["y"])], [IDS], {"table": TABLE})
    ids = generate_inputs(graph, 0)["ids"]
    assert (ids.min(), ids.max(), ids.dtype) == (0, 6, np.int64)


def test_the_axis_decides_the_limit() -> None:
    graph = load([("Gather", ["table", "ids"], ["y"], {"axis": 1})], [IDS], {"table": TABLE})
    assert generate_inputs(graph, 0)["ids"].max() == 4


def test_indices_are_followed_through_moving_operators_and_the_smallest_table_counts() -> None:
    nodes = [
        ("Cast", ["ids"], ["small"], {"to": TensorProto.INT32}),
        ("Transpose", ["small"], ["turned"]),
        ("Gather", ["table", "turned"], ["one"]),
        ("Gather", ["three", "ids"], ["two"]),
        ("Transpose", ["two"], ["back"], {"perm": [1, 0, 2]}),
        ("Concat", ["one", "back"], ["y"], {"axis": 2}),
    ]
    three = np.zeros((3, 5), np.float32)
    graph = load(nodes, [IDS], {"table": TABLE, "three": three})
    assert generate_inputs(graph, 0)["ids"].max() == 2


def test_the_depth_of_one_hot_is_a_limit() -> None:
    nodes = [("OneHot", ["ids", "depth", "values"], ["y"])]
    constants = {"depth": np.array(257), "values": np.array([0, 1], np.float32)}
    assert 200 < generate_inputs(load(nodes, [IDS], constants), 0)["ids"].max() < 257


def test_arithmetic_ends_the_way_of_an_index() -> None:
    nodes = [("Add", ["ids", "ids"], ["sum"]), ("Gather", ["table", "sum"], ["y"])]
    graph = load(nodes, [IDS], {"table": TABLE})
    assert set(np.unique(generate_inputs(graph, 0)["ids"])) == {0, 1}


@pytest.mark.parametrize(
    ("element_type", "low", "high"),
    [
        (TensorProto.UINT8, 0, 255),
        (TensorProto.INT8, -128, 127),
        (TensorProto.INT32, 0, 1),
        (TensorProto.BOOL, 0, 1),
        (TensorProto.INT4, -8, 7),
        (TensorProto.UINT4, 0, 15),
    ],
)
def test_other_integers(element_type: int, low: int, high: int) -> None:
    graph = load([("Identity", ["x"], ["y"])], [("x", element_type, [9000])])
    x = generate_inputs(graph, 0)["x"].astype(np.int64)
    assert (x.min(), x.max()) == (low, high)


@pytest.mark.parametrize("element_type", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_floats_are_normal(element_type: int) -> None:
    graph = load([("Identity", ["x"], ["y"])], [("x", element_type, [9000])])
    x = generate_inputs(graph, 0)["x"].astype(np.float64)
    assert abs(x.mean()) < 0.05
    assert abs(x.std() - 1) < 0.05


def test_other_element_types() -> None:
    kinds = [("a", TensorProto.BFLOAT16, []), ("c", TensorProto.COMPLEX64, [3])]
    nodes = [("Identity", ["a"], ["b"]), ("Identity", ["c"], ["y"])]
    inputs = generate_inputs(load(nodes, kinds), 0)
    assert inputs["a"].dtype == ml_dtypes.bfloat16
    assert inputs["a"].shape == ()
    assert inputs["c"].imag.any()


def test_the_seed_decides() -> None:
    graph = load([("Identity", ["x"], ["y"])], [("x", TensorProto.FLOAT, [4])])
    first, again, other = (generate_inputs(graph, seed)["x"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
