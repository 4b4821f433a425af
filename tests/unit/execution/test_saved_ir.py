from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from models import load, parse, random_inputs
from onnx import TensorProto, helper

from aegis_pipe.errors import InvalidModelError
from aegis_pipe.execution.evaluation import evaluate_graph
from aegis_pipe.execution.graph import ExecutionGraph, Subgraph
from aegis_pipe.execution.saved_ir import load_graph, save_graph

TEXT = """
agraph (float[2, 3] x, int64 count) => (float[2, 3] y, bfloat16[2, 3] z, float[2, 3] leaky)
<float[3] w = {1.0, 2.0, 3.0}, float[3] same = {1.0, 2.0, 3.0}> {
    a = Add (x, w)
    b = Mul (a, same)
    y = Loop (count, , b) <
        body = step (int64 i, bool going, float[2, 3] s) => (bool on, float[2, 3] t) {
            on = Identity (going)
            t = Sub (s, a)
        }
    >
    z = Cast <to = 16> (b)
    leaky = LeakyRelu <alpha = 0.1> (b)
}
"""


@pytest.fixture
def graph() -> ExecutionGraph:
    return load(TEXT)


@pytest.fixture
def path(graph: ExecutionGraph, tmp_path: Path) -> Path:
    save_graph(graph, tmp_path / "graph.aegis")
    return tmp_path / "graph.aegis"


def plain(graph: ExecutionGraph) -> object:
    """Everything in a graph, in values that compare."""
    return (
        graph.name,
        dict(graph.metadata),
        graph.inputs,
        graph.outputs,
        dict(graph.specs),
        dict(graph.producers),
        {tensor: tuple(readers) for tensor, readers in graph.consumers.items()},
        {tensor: (a.dtype, a.shape, a.tobytes()) for tensor, a in graph.constants.items()},
        [
            (node.name, node.operator, node.domain, node.opset, node.inputs, node.outputs)
            for node in graph.operators
        ],
        [
            (key, plain_attribute(value))
            for node in graph.operators
            for key, value in node.attributes.items()
        ],
    )


def plain_attribute(value: object) -> object:
    if isinstance(value, Subgraph):
        return value.serialised, value.captures
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tolist()
    return type(value), repr(value)


def test_a_graph_comes_back_as_it_was(graph: ExecutionGraph, path: Path) -> None:
    loaded = load_graph(path)
    assert plain(loaded) == plain(graph)
    inputs = random_inputs(graph) | {"count": np.array(2)}
    for one, other in zip(
        evaluate_graph(graph, inputs), evaluate_graph(loaded, inputs), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_attributes_of_every_kind_come_back(tmp_path: Path) -> None:
    text = "agraph (float[4] x) => (float[4] y) { y = Identity (x) }"
    graph = load(text)
    (node,) = graph.operators
    attributes = {
        "int": -3,
        "float": 0.1,
        "infinite": float("-inf"),
        "text": "Ü\n",
        "bytes": b"\xff\x00",
        "empty": (),
        "ints": (1, -2),
        "floats": (1.0, -0.0),
        "words": ("a", b"\xfe"),
        "array": np.array([[1.5, 2.5]], ml_dtypes.bfloat16),
        "small": np.array([1, -2, 7], ml_dtypes.int4),
        "strings": np.array([["a", "b"]], object),
    }
    object.__setattr__(node, "attributes", attributes)
    save_graph(graph, tmp_path / "g.aegis")
    assert plain(load_graph(tmp_path / "g.aegis")) == plain(graph)


def test_equal_weights_are_stored_once_and_aligned(path: Path) -> None:
    weights = np.float32([1, 2, 3]).tobytes()
    content = path.read_bytes()
    assert content.count(weights) == 1
    assert content.index(weights) % 64 == 0


def test_saving_is_deterministic(graph: ExecutionGraph, path: Path, tmp_path: Path) -> None:
    save_graph(load(parse(TEXT)), tmp_path / "again.aegis")
    assert (tmp_path / "again.aegis").read_bytes() == path.read_bytes()


def test_every_damaged_byte_is_found(path: Path) -> None:
    content = path.read_bytes()
    weights = content.index(np.float32([1, 2, 3]).tobytes())
    for position in (0, 8, 12, 20, 60, 200, weights, weights + 11):
        damaged = bytearray(content)
        damaged[position] ^= 0x40
        path.write_bytes(damaged)
        with pytest.raises(InvalidModelError):
            load_graph(path)


@pytest.mark.parametrize("length", [0, 5, 47, 48, 500, -1])
def test_cut_files_are_found(path: Path, length: int) -> None:
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content[:length])
    with pytest.raises(InvalidModelError):
        load_graph(path)


def test_another_format_version(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8] = 2
    path.write_bytes(content)
    with pytest.raises(InvalidModelError, match="format version 2, this runtime reads 1"):
        load_graph(path)


def test_loads_without_onnx(path: Path) -> None:
    program = (
        "import sys; sys.modules['onnx'] = None\n"
        "from pathlib import Path\n"
        "from aegis_pipe.execution.model_loader import ModelLoader\n"
        "from aegis_pipe.execution.model_inspection import inspect_model\n"
        f"graph = ModelLoader().load(Path({str(path)!r}))\n"
        f"facts = inspect_model(Path({str(path)!r}))\n"
        "print(len(graph.operators), facts.weight_bytes)\n"
        "from aegis_pipe.execution.evaluation import evaluate_graph\n"
        "import numpy as np\n"
        "from aegis_pipe.errors import PermanentError\n"
        "try:\n"
        "    evaluate_graph(graph, {'x': np.zeros((2, 3), 'f'), 'count': np.array(2)})\n"
        "except PermanentError as error: print(error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "5 24",
        "reference operators need the `onnx` package, which is not installed",
    ]


def test_strings_in_attributes_survive(tmp_path: Path) -> None:
    node = helper.make_node(
        "LabelEncoder",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        keys_int64s=[1, 2],
        values_floats=[0.5, 1.5],
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [value("x", TensorProto.INT64, [3])],
        [value("y", TensorProto.FLOAT, [3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 2)])
    loaded = load(model)
    save_graph(loaded, tmp_path / "g.aegis")
    (result,) = evaluate_graph(
        load_graph(tmp_path / "g.aegis"), {"x": np.array([2, 1, 9], np.int64)}
    )
    assert result.tolist()[:2] == [1.5, 0.5]
