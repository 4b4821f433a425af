"""The tools that make networks and measure ONNX Runtime's memory, as they are called."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx

from aegis_pipe.onnx_backend import AegisBackend

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def call(tool: str, *arguments: object) -> str:
    environment = os.environ | {"PYTHONPATH": str(TOOLS.parent)}
    command = [sys.executable, TOOLS / tool, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout


def test_networks_are_the_same_every_time_and_run(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        call("make_networks.py", tmp_path / folder, "lstm")
    one, two = ((tmp_path / folder / "lstm.onnx").read_bytes() for folder in ("one", "two"))
    assert one == two
    assert "lstm" in (tmp_path / "one" / "networks.toml").read_text()
    features = np.zeros((1, 100, 80), np.float32)
    np.savez(tmp_path / "inputs.npz", features=features)
    held = call("onnxruntime_arena.py", tmp_path / "one" / "lstm.onnx", tmp_path / "inputs.npz")
    # At least one layer's output has to be somewhere.
    assert int(held) >= 100 * 256 * 4


def test_a_quantised_network_is_near_what_it_was_made_of(tmp_path: Path) -> None:
    call("make_networks.py", tmp_path, "resnet50", "resnet50-qdq")
    # As smooth as what its ranges are of.
    coarse = np.random.default_rng(3).standard_normal((1, 3, 8, 8), np.float32)
    image = coarse.repeat(28, 2).repeat(28, 3)
    found = []
    for name in ("resnet50", "resnet50-qdq"):
        model = AegisBackend.prepare(onnx.load(tmp_path / f"{name}.onnx"))
        found.append(model.run([image])[0].ravel())
        assert model.reference_operators == ()
    assert np.corrcoef(*found)[0, 1] > 0.95
    kinds = {node.op_type for node in onnx.load(tmp_path / "resnet50-qdq.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv", "Gemm"} <= kinds
    assert "BatchNormalization" not in kinds
