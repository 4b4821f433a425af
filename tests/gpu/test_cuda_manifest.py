"""The manifest for GPUs that users are shown, as they run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis_pipe.cli import main

MANIFEST = Path(__file__).resolve().parents[2] / "manifests" / "gpu.toml"


def test_every_request_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", str(MANIFEST), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["statistics"]
    models = {each["model"]: each for each in found["models"]}
    assert models["resnet50"]["completed"] > 0
    assert models["resnet50"]["failed"] == models["inception"]["failed"] == 0
    assert found["allocations_after_start"] == 0
