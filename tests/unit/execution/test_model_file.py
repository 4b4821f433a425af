from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
from onnx import helper

from aegis_pipe.errors import InvalidModelError
from aegis_pipe.execution.model_file import mapped_file
from aegis_pipe.execution.model_inspection import inspect_model
from aegis_pipe.execution.model_loader import ModelLoader

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def test_a_file_is_mapped(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"abc")
    assert bytes(mapped_file(tmp_path / "m.onnx")) == b"abc"


@pytest.mark.parametrize("read", [inspect_model, ModelLoader().load])
def test_what_is_no_model_is_told_apart(tmp_path: Path, read) -> None:
    (tmp_path / "pointer").write_bytes(POINTER)
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, words, hint in (
        ("pointer", "Git LFS pointer", "git lfs pull"),
        ("empty", "is empty", "export"),
        ("folder", "is a directory", "name the file"),
        ("pipe", "no regular file", "name a file"),
        ("nothing", "No such file", "check the path"),
    ):
        with pytest.raises(InvalidModelError, match=words) as caught:
            read(tmp_path / name)
        assert hint in caught.value.hint
        assert name in caught.value.context


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("pipe", "is no regular file"),
        ("pointer", "is a Git LFS pointer"),
        ("missing", "can not be read: No such file"),
        ("../elsewhere", "leads out of the model's folder"),
        ("a\0b", "the name of its file is none"),
    ],
)
def test_external_data_that_is_none(tmp_path: Path, location: str, words: str) -> None:
    (tmp_path / "pointer").write_bytes(POINTER)
    os.mkfifo(tmp_path / "pipe")
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[64, 64])
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 64]) for name in "xy"]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModelError, match=words) as caught:
        ModelLoader().load(tmp_path / "m.onnx")
    assert "tensor `w`" in caught.value.context + caught.value.message
    assert caught.value.hint
