"""Real models from Python packages, each against ONNX Runtime and ONNX's reference evaluator.

`manifests/zoo.toml` lists them with their shapes; `pip install 'aegis-pipe[zoo]'` brings them.
"""

from __future__ import annotations

import importlib.util
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis_pipe.clock import Clock, SystemClock
from aegis_pipe.device.protocols import DeviceContext, DeviceStream
from aegis_pipe.device.registry import open_device
from aegis_pipe.execution.deployment import ModelOrder
from aegis_pipe.execution.model_loader import LoadOptions
from aegis_pipe.manifest.model import PACKAGE_SCHEME, resolve_path
from aegis_pipe.onnx_verification import VerificationOptions, verify_model

MANIFEST = Path(__file__).resolve().parents[2] / "manifests" / "zoo.toml"
MODELS = tomllib.loads(MANIFEST.read_text(encoding="utf-8"))["models"]

Place = tuple[DeviceContext, DeviceStream, Clock]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    clock = SystemClock()
    with open_device("cpu", clock=clock).context as context:
        stream = context.create_stream(0)
        yield context, stream, clock
        stream.close()


@pytest.mark.parametrize("model", MODELS, ids=[model["name"] for model in MODELS])
def test_outputs_are_those_of_others(model: dict[str, Any], place: Place) -> None:
    package = model["path"].removeprefix(PACKAGE_SCHEME).partition("/")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"package `{package}` is not installed")
    shapes = {name: tuple(shape) for name, shape in model["shapes"].items()}
    order = ModelOrder(
        model["name"],
        resolve_path(model["path"], MANIFEST.parent),
        LoadOptions(shapes, model.get("bind", {}), model["name"]),
    )
    (result,) = verify_model(order, *place, VerificationOptions())
    assert result.passed, result
    assert result.not_run == {}
