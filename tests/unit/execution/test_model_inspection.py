from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import load, parse
from onnx import TensorProto, helper

from aegis_pipe.errors import InvalidModelError
from aegis_pipe.execution.known_operators import KNOWN_OPERATORS
from aegis_pipe.execution.model_inspection import TensorFacts, inspect_model
from aegis_pipe.execution.saved_ir import save_graph

TEXT = """
agraph (float[N, 3] x, int64[2, 3] ids, float[3] w, float16 s) => (float[N, 3] y)
<float[3] w = {1.0, 2.0, 3.0}> {
    yes = Constant <value = bool {1}> ()
    a = Add (x, w)
    y = If (yes) <
        then_branch = one () => (float[N, 3] p) { p = Relu (a) },
        else_branch = two () => (float[N, 3] q) <float[1] c = {4.0}> { q = Mul (a, c) }
    >
}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(parse(TEXT), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_the_facts_of_a_model(path: Path) -> None:
    facts = inspect_model(path)
    assert facts.inputs == {
        "x": TensorFacts("float32", ("N", 3)),
        "ids": TensorFacts("int64", (2, 3)),
        "s": TensorFacts("float16", ()),
    }
    assert facts.outputs == {"y": TensorFacts("float32", ("N", 3))}
    # Three floats, the bool of `Constant`, and the float of a branch.
    assert facts.weight_bytes == 12 + 1 + 4
    operators = sorted(operator for _, operator in facts.operators)
    assert operators == ["Add", "Constant", "If", "Mul", "Relu"]
    assert facts.unknown_operators == ()
    assert facts.opsets == {"": 17}


def test_unknown_operators_name_the_nearest(tmp_path: Path) -> None:
    model = parse(
        """
        <ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        agraph (float[2] x) => (float[2] y) { a = Reluu (x) b = mine.Known (a) y = mine.Other (b) }
        <domain: "mine", opset_import: ["" : 17]>
        Known (p) => (q) { q = Neg (p) }
        """,
        "",
    )
    onnx.save(model, tmp_path / "odd.onnx")
    facts = inspect_model(tmp_path / "odd.onnx")
    assert facts.unknown_operators[0][1:] == ("Reluu", "Relu")
    assert [operator for _, operator, _ in facts.unknown_operators] == ["Reluu", "mine.Other"]
    operators = sorted(operator for _, operator in facts.operators)
    assert operators == ["Neg", "Reluu", "mine.Other"]


def test_kinds_that_are_no_tensors(tmp_path: Path) -> None:
    text = "agraph (seq(float[2]) x, string[2] t) => (float[2] y) { y = SequenceAt (x, t) }"
    onnx.save(parse(text), tmp_path / "s.onnx")
    facts = inspect_model(tmp_path / "s.onnx")
    assert facts.inputs == {"x": TensorFacts("sequence", ()), "t": TensorFacts("object", (2,))}


def test_weights_count_whatever_their_encoding(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    weights = [
        helper.make_tensor("a", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]),
        onnx.numpy_helper.from_array(np.ones((2, 2), np.float16), "b"),
        helper.make_tensor("c", TensorProto.INT64, [2], [1, -1]),
        helper.make_tensor("d", TensorProto.DOUBLE, [], [1.0]),
    ]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, None)],
        [value("y", TensorProto.FLOAT, [-1])],
        weights,
    )
    onnx.save(helper.make_model(graph), tmp_path / "w.onnx")
    facts = inspect_model(tmp_path / "w.onnx")
    assert facts.weight_bytes == 12 + 8 + 16 + 8
    assert facts.inputs == {"x": TensorFacts("float32", ())}
    assert facts.outputs == {"y": TensorFacts("float32", (None,))}


def test_saved_graphs(tmp_path: Path) -> None:
    text = "agraph (float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}> { y = Add (x, w) }"
    save_graph(load(text), tmp_path / "g.aegis")
    facts = inspect_model(tmp_path / "g.aegis")
    assert facts.inputs == {"x": TensorFacts("float32", (2,))}
    assert facts.outputs == {"y": TensorFacts("float32", (2,))}
    assert facts.weight_bytes == 8
    assert [operator for _, operator in facts.operators] == ["Add"]
    assert facts.opsets == {"": 17}


def test_truncation_raises_no_other_error(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    cut = tmp_path / "cut.onnx"
    found = 0
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        try:
            inspect_model(cut)
        except InvalidModelError:
            found += 1
    # Only between two fields of the model itself a cut leaves a whole message.
    assert found > len(content) - 30


def test_a_file_cut_in_its_weights_is_found(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(InvalidModelError, match="cut short"):
        inspect_model(tmp_path / "cut.onnx")


@pytest.mark.parametrize("content", [b"", b"hello, this is text", bytes(64), b"\xff" * 64])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.onnx").write_bytes(content)
    with pytest.raises(InvalidModelError):
        inspect_model(tmp_path / "other.onnx")
    with pytest.raises(InvalidModelError):
        inspect_model(tmp_path)


def test_inspection_imports_no_onnx(path: Path) -> None:
    program = (
        "import sys; sys.modules['onnx'] = None\n"
        "from pathlib import Path\n"
        "from aegis_pipe.execution.model_inspection import inspect_model\n"
        f"print(inspect_model(Path({str(path)!r})).weight_bytes)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "17\n"


def test_known_operators_are_those_of_onnx() -> None:
    schemas = onnx.defs.get_all_schemas()
    names = sorted({f"{s.domain}.{s.name}" if s.domain else s.name for s in schemas})
    assert list(KNOWN_OPERATORS) == names, "\n".join(names)
