"""`aegis-pipe verify` as users run it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from tests.system.running import aegis, save_model, small_nodes


def test_a_model_passes(model_file: Path) -> None:
    result = aegis("verify", model_file)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "model: passed (fp32, tolerance 0.001 x std)"
    assert lines[2].split()[:5] == ["y", "float32[1,", "4]", "fp32", "onnxruntime"]
    assert lines[3].split()[3:5] == ["fp32", "onnx"]


def test_a_manifest_with_given_inputs(write_manifest, model_file: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, x=np.ones((1, 4), np.float32))
    result = aegis("verify", write_manifest(), "--inputs", inputs, "--json")
    assert result.returncode == 0, result.stderr
    (model,) = json.loads(result.stdout)["models"]
    assert (model["name"], model["precision"]) == ("m", "fp32")
    assert model["passed"] is True
    assert model["first_difference"] is None
    (output,) = model["outputs"]
    assert (output["name"], output["dtype"], output["shape"]) == ("y", "float32", [1, 4])
    assert output["references"]["onnx"]["max_absolute"] == 0
    # A constant output correlates with nothing: what can not be said is null.
    assert output["references"]["onnx"]["correlation"] is None


def test_shapes_and_constants_of_a_file(tmp_path: Path) -> None:
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
        helper.make_tensor_value_info("factor", TensorProto.FLOAT, []),
    ]
    nodes, initialisers = small_nodes()
    nodes[1] = helper.make_node("Mul", ["product", "factor"], ["y"])
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])]
    path = save_model(tmp_path / "open.onnx", nodes, initialisers, inputs, outputs)
    done = aegis("verify", path, "--shape", "x=3,4", "--bind", "factor=0.5", "--seed", "7")
    assert done.returncode == 0, done.stderr
    assert "float32[3, 4]" in done.stdout
    missing = aegis("verify", path)
    assert missing.returncode == 1
    assert "the shapes of these inputs are open" in missing.stderr


def test_a_random_model_fails(tmp_path: Path) -> None:
    """What ONNX Runtime draws is not what we draw: the one difference that is sure to be there."""
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"], name="noise"),
        helper.make_node("Add", ["x", "noise"], ["y"], name="add"),
    ]
    path = save_model(tmp_path / "random.onnx", nodes)
    result = aegis("verify", path, "--reference", "onnxruntime")
    assert result.returncode == 1, result.stderr
    assert result.stdout.startswith("random: FAILED")
    assert "parts from onnxruntime at node `noise` (RandomNormalLike" in result.stdout


def test_wrong_usage_has_one_clear_error(write_manifest, model_file: Path, tmp_path: Path) -> None:
    manifest = write_manifest()
    cases = [
        (2, model_file, ("--shape", "x"), "expected INPUT=VALUE"),
        (2, model_file, ("--shape", "x=a,b"), "`a,b` is no shape"),
        (2, model_file, ("--bind", "x=maybe"), "`maybe` is no number"),
        (2, model_file, ("--reference", "torch"), "invalid choice: 'torch'"),
        (2, model_file, ("--precision", "fp8"), "invalid choice: 'fp8'"),
        (
            1,
            model_file,
            ("--precision", "fp32", "fp16", "tf32"),
            "cpu does not compute in fp16, tf32",
        ),
        (1, model_file, ("--only", "m"), "among the models of a manifest"),
        (1, model_file, ("--inputs", model_file), "can not be read"),
        (1, manifest, ("--shape", "x=1,4"), "a manifest says itself"),
        (1, manifest, ("--only", "n"), "the manifest has no model `n`"),
        (1, tmp_path / "none.onnx", (), "can not be read"),
    ]
    for status, path, options, message in cases:
        result = aegis("verify", path, *options)
        assert result.returncode == status, (options, result.stdout)
        assert message in result.stderr, (options, result.stderr)
        assert "Traceback" not in result.stderr
