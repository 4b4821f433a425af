"""A folder of small models and data for manifests to refer to, the same bytes every time."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from aegis_pipe.errors import InvalidModelError
from aegis_pipe.manifest.model import ModelFacts, TensorFacts

RUNNABLE = {"Add", "Conv", "Gather", "Gelu", "Identity", "MatMul"}


def _weights(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.zeros(shape, np.float32), name)


def _value(name: str, dtype: int, *shape: int | str | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto],
) -> None:
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("acme", 1)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString(
            deterministic=True
        )
    )


def write_models(folder: Path) -> None:
    folder.mkdir()
    node = helper.make_node
    float32, int64 = TensorProto.FLOAT, TensorProto.INT64
    _save(
        folder / "classifier.onnx",
        [node("MatMul", ["pixels", "w"], ["scores"], "fc")],
        [_value("pixels", float32, 1, 3, 4, 4)],
        [_value("scores", float32, 1, 3, 4, 10)],
        [_weights("w", 4, 10)],
    )
    _save(
        folder / "detector.onnx",
        [
            node("Conv", ["images", "w"], ["features"], "conv"),
            node("Identity", ["features"], ["boxes"]),
            node("Identity", ["features"], ["confidences"]),
        ],
        [_value("images", float32, "batch", 3, "height", "width")],
        [_value("boxes", float32, "batch", 4, None, None), _value("confidences", float32, None)],
        [_weights("w", 4, 3, 1, 1)],
    )
    _save(
        folder / "encoder.onnx",
        [
            node("Gather", ["table", "tokens"], ["looked_up"], "look_up"),
            node("Add", ["looked_up", "scale"], ["embedding"], "add"),
        ],
        [
            _value("tokens", int64, "batch", "sequence"),
            _value("scale", float32),
            _value("training", TensorProto.BOOL),
        ],
        [_value("embedding", float32, "batch", "sequence", 64)],
        [_weights("table", 1000, 64)],
    )
    _save(
        folder / "exotic.onnx",
        [
            node("Gelu", ["x"], ["a"], "activation"),
            node("Quantum", ["a"], ["b"], "quantum_1", domain="acme"),
            node("Quantum", ["b"], ["c"], "quantum_2", domain="acme"),
            node("FastGelu", ["c"], ["y"], "fast", domain="acme"),
        ],
        [_value("x", float32, 1, 8)],
        [_value("y", float32, 1, 8)],
        [],
    )
    (folder / "damaged.onnx").write_bytes(b"this is no protobuf")


def write_data(folder: Path) -> None:
    """Write what sources and transforms of the test manifests read."""
    (folder / "frames").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "frames" / "0001.png")
    (folder / "empty").mkdir()
    (folder / "batches").mkdir()
    np.savez(folder / "batches" / "0001.npz", pixels=np.zeros((1, 3, 4, 4), np.float32))
    (folder / "broken.npz").write_bytes(b"no archive")
    (folder / "labels.txt").write_text("cat\ndog\n")


def inspect_model(path: Path) -> ModelFacts:
    """Read the facts of a model file with the onnx package."""
    try:
        model = onnx.load(path)
    except DecodeError as error:
        raise InvalidModelError("this is not an ONNX file", hint="export it again") from error
    names = [(node.name, f"{node.domain}.{node.op_type}".lstrip(".")) for node in model.graph.node]
    return ModelFacts(
        inputs={value.name: _facts(value) for value in model.graph.input},
        outputs={value.name: _facts(value) for value in model.graph.output},
        weight_bytes=sum(numpy_helper.to_array(w).nbytes for w in model.graph.initializer),
        operators=tuple(names),
        unknown_operators=tuple(
            (node, operator, "Gelu" if "Gelu" in operator else "")
            for node, operator in names
            if operator not in RUNNABLE
        ),
    )


def _facts(value: onnx.ValueInfoProto) -> TensorFacts:
    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim
    )
    return TensorFacts(dtype, shape)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with models and data in it."""
    write_models(tmp_path / "models")
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def inspector():
    """What reads a model file's facts."""
    return inspect_model
