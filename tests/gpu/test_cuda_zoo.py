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


LIMITS = {"file-type": 257}
"""What integers are below, where a graph does not tell: of zeros and ones alone, the variances
that this model takes are differences of nearly equal numbers."""


def _requests(graph: ExecutionGraph, name: str) -> list[dict[str, np.ndarray]]:
    """Return requests, of which the last is the first once more."""
    requests = [generate_inputs(graph, seed) for seed in range(4)]
    if name in LIMITS:
        for seed, inputs in enumerate(requests):
            for tensor, values in inputs.items():
                drawn = np.random.default_rng(seed).integers(0, LIMITS[name], values.shape)
                inputs[tensor] = drawn.astype(values.dtype)
    return [*requests, requests[0]]


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
    requests = _requests(graph, model["name"])
    wanted, found = _run(graph, "cpu", requests), _run(graph, "cuda", requests)
    arithmetic = arithmetic_of(graph)
    for name in wanted[0]:
        # Of all requests together: one number alone has no deviation to compare with.
        one, other = (np.stack([each[name] for each in results]) for results in (found, wanted))
        difference = compare(one, other, arithmetic)
        print(f"{model['name']}, {name}: {difference}")
        assert difference.passed, (name, difference)
        assert found[0][name].tobytes() == found[-1][name].tobytes()
