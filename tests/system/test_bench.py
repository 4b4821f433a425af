"""`aegis-pipe bench` on small real models, alone, together and beside ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from aegis_pipe.cli import main
from tests.system.running import ROOT, save_model, small_nodes

DIGITS = ROOT / "manifests" / "quickstart" / "digits.onnx"
HEAD = """
manifest_version = 1
name = "bench"
[streams]
count = 2
"""


def model(name: str, path: Path, more: str = "") -> str:
    return f'[[models]]\nname = "{name}"\npath = "{path}"\n{more}\n'


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return save_model(tmp_path / "small.onnx", *small_nodes())


def write(folder: Path, *models: str) -> str:
    path = folder / "bench.toml"
    path.write_text(HEAD + "".join(models))
    return str(path)


def figures(
    capsys: pytest.CaptureFixture[str], manifest: str, *options: str
) -> list[dict[str, Any]]:
    assert main(["bench", manifest, "--requests", "40", "--json", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device"]["name"] == "cpu"
    assert found["streams"] == 2
    models: list[dict[str, Any]] = found["models"]
    for each in models:
        for times in filter(None, (each["alone"], each["together"], each["onnxruntime"])):
            assert 0 < times["min_ns"] <= times["p50_ns"] <= times["p99_ns"] <= times["max_ns"]
        assert each["alone"]["requests"] == 40
        assert each["saturated"]["per_second"] > 0
    return models


def test_models_alone_together_and_beside_onnxruntime(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write(tmp_path, model("digits", DIGITS), model("small", small))
    digits, other = figures(capsys, manifest, "--beside", "onnxruntime")
    assert (digits["name"], other["name"]) == ("digits", "small")
    assert digits["together"]["requests"] >= 40
    assert other["together"]["requests"] >= 40
    assert digits["onnxruntime"]["requests"] == 40
    assert digits["problem"] is None
    # Two streams, and one that waits.
    assert digits["saturated"]["outstanding"] == 3


def test_one_model_of_several(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write(tmp_path, model("digits", DIGITS), model("small", small))
    (only,) = figures(capsys, manifest, "--only", "small")
    assert (only["name"], only["together"], only["onnxruntime"]) == ("small", None, None)
    assert main(["bench", manifest, "--only", "smal"]) == 1
    error = capsys.readouterr().err
    assert "error: the manifest has no model `smal`" in error
    assert "it has `digits`, `small`" in error


def test_deadlines_do_not_end_requests_and_batches_are_filled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_model(
        tmp_path / "batched.onnx",
        *small_nodes(),
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    batched = 'shapes = { x = [1, 4] }\ndeadline = "1 us"\nbatching = { max_batch = 4 }'
    (only,) = figures(capsys, write(tmp_path, model("batched", path, batched)))
    assert only["saturated"]["outstanding"] == 12


def summing(folder: Path) -> str:
    """Return a model that keeps a sum; theirs gets none from anybody."""
    nodes = [helper.make_node("Add", ["x", "before"], ["after"])]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("x", "before")]
    outputs = [helper.make_tensor_value_info("after", TensorProto.FLOAT, [1, 4])]
    path = save_model(folder / "sum.onnx", nodes, (), values, outputs)
    return model("sum", path, 'state = { before = "after" }')


def test_what_the_peer_can_not_run_has_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write(tmp_path, summing(tmp_path))
    (only,) = figures(capsys, manifest, "--beside", "onnxruntime")
    assert only["onnxruntime"] is None
    assert "before" in only["problem"]


def test_what_binds_inputs_does_so_for_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [helper.make_node("Mul", ["x", "factor"], ["y"])]
    shapes = {"x": [1, 4], "factor": []}
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    path = save_model(tmp_path / "scaled.onnx", nodes, (), values)
    manifest = write(tmp_path, model("scaled", path, "bind = { factor = 2.0 }"))
    (only,) = figures(capsys, manifest, "--beside", "onnxruntime")
    assert only["onnxruntime"]["requests"] == 40


def test_as_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write(tmp_path, model("digits", DIGITS), summing(tmp_path))
    arguments = ["bench", manifest, "--requests", "10", "--beside", "onnxruntime"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    first, _, header, *rows, problem = captured.out.splitlines()
    assert first.startswith("cpu (")
    assert first.endswith(", 2 streams; times in ms")
    assert header.split() == [
        *("model", "precision", "requests", "p50", "p99", "saturated", "together", "p50", "p99"),
        *("onnxruntime", "p50", "p99", "times", "as", "fast"),
    ]
    assert [row.split()[:3] for row in rows] == [["digits", "fp32", "10"], ["sum", "fp32", "10"]]
    assert float(rows[0].split()[-1]) > 0
    assert rows[1].split()[-3:] == ["-", "-", "-"]
    assert problem.startswith("onnxruntime, sum: ValueError: Required inputs (['before'])")
    assert "digits: p50 " in captured.err


def test_a_limit_ends_a_measurement(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write(tmp_path, model("digits", DIGITS), model("small", small))
    many = ["--requests", str(10**9), "--limit", "50 ms", "--json"]
    assert main(["bench", manifest, *many]) == 0
    for each in json.loads(capsys.readouterr().out)["models"]:
        assert 0 < each["alone"]["requests"] < 10**6
        assert 0 < each["together"]["requests"] < 10**6


def test_what_requests_raise_ends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [
        helper.make_node("Abs", ["x"], ["number"]),
        helper.make_node("Add", ["number", "many"], ["row"]),
        helper.make_node("Gather", ["table", "row"], ["y"], name="look_up"),
    ]
    constants = {"table": np.ones((2, 4), np.float32), "many": np.array([2])}
    values = [helper.make_tensor_value_info("x", TensorProto.INT64, [8])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 4])]
    initialisers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    path = save_model(tmp_path / "rows.onnx", nodes, initialisers, values, outputs)
    manifest = write(tmp_path, model("rows", path), model("digits", DIGITS))
    assert main(["bench", manifest, "--requests", "5"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "look_up" in error
    assert "Traceback" not in error
