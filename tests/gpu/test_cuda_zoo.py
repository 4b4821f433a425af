"""Every model of the zoo on the GPU and on the CPU: the same outputs, and the same bits each time.

`manifests/zoo.toml` lists them with their shapes; `pip install 'aegis-pipe[zoo]'` brings them.
"""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.registry import open_device
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.input_generation import generate_inputs
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.output_comparison import arithmetic_of, compare
from aegis_pipe.execution.standalone import StandaloneGraph
from aegis_pipe.manifest.model import PACKAGE_SCHEME, resolve_path

MANIFEST = Path(__file__).resolve().parents[2] / "manifests" / "zoo.toml"
MODELS = tomllib.loads(MANIFEST.read_text(encoding="utf-8"))["models"]


def _load(model: dict[str, Any]) -> ExecutionGraph:
    package = model["path"].removeprefix(PACKAGE_SCHEME).partition("/")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"package `{package}` is not installed")
    shapes = {name: tuple(shape) for name, shape in model["shapes"].items()}
    options = LoadOptions(shapes, model.get("bind", {}), model["name"])
    return ModelLoader().load(resolve_path(model["path"], MANIFEST.parent), options)


def _run(
    graph: ExecutionGraph, kind: str, requests: list[dict[str, np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    clock = SystemClock()
    with open_device(kind, clock=clock).context as context:
        stream = context.create_stream(0)
        with StandaloneGraph(graph, context, stream, clock) as standalone:
            assert not standalone.compiled.reference_steps
            results = [standalone.run(inputs) for inputs in requests]
        stream.close()
    return results


@pytest.mark.parametrize("model", MODELS, ids=[model["name"] for model in MODELS])
def test_as_the_cpu_and_the_same_bits(model: dict[str, Any]) -> None:
    graph = _load(model)
    requests = [generate_inputs(graph, seed) for seed in (0, 1, 0)]
    wanted, found = _run(graph, "cpu", requests), _run(graph, "cuda", requests)
    arithmetic = arithmetic_of(graph)
    for one, other in zip(found, wanted, strict=True):
        for name in other:
            difference = compare(one[name], other[name], arithmetic)
            print(f"{model['name']}, {name}: {difference}")
            assert difference.passed, (name, difference)
    assert all(found[0][name].tobytes() == found[2][name].tobytes() for name in found[0])
