"""Small real models and manifests, and the command run as users run it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]

Write = Callable[..., Path]


def small_nodes():
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32) * 2, "weight")
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"], name="product"),
        helper.make_node("Relu", ["product"], ["y"], name="relu"),
    ]
    return nodes, [weight]


def save_model(path: Path, nodes, initialisers=(), inputs=None, outputs=None, **options) -> Path:
    graph = helper.make_graph(
        nodes,
        "small",
        inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        outputs or [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        list(initialisers),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, **options)
    return path


CROSSING = """
manifest_version = 1
name = "crossing"
[streams]
count = 2
[scheduler]
policy = "priority"
queue_capacity = 8
[[models]]
name = "urgent"
path = "{model}"
priority = 10
[[models]]
name = "patient"
path = "{model}"
[telemetry]
file = "traces.jsonl"
log = {{ path = "events.jsonl" }}
"""
"""Two models on two streams that get in each other's way; `{model}` is a path."""

LOAD = """
[[pipelines]]
name = "load"
source = { kind = "synthetic", like = "m", count = 20 }
stages = [{ name = "infer", model = "m" }]
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def aegis(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `aegis-pipe` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "aegis_pipe", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env=environment(),
        check=False,
    )


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start `aegis-pipe` and leave it running."""
    return subprocess.Popen(
        [sys.executable, "-m", "aegis_pipe", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
