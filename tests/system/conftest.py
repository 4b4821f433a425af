"""Fixtures of the system tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import aegis_pipe
from aegis_pipe.events import DecisionMade, Event
from tests.system.running import CROSSING, ROOT, Write, save_model, small_nodes


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """`x` float32[1, 4] -> MatMul -> Relu -> `y` float32[1, 4]."""
    return save_model(tmp_path / "model.onnx", *small_nodes())


@pytest.fixture
def write_manifest(tmp_path: Path) -> Write:
    """Write `manifest.toml`: the parts given, after a head with one model."""

    def write(*parts: str, model: str = "model.onnx", head: str = "") -> Path:
        path = tmp_path / "manifest.toml"
        text = f'manifest_version = 1\nname = "test"\n{head}\n'
        text += f'[[models]]\nname = "m"\npath = "{model}"\n'
        path.write_text(text + "\n".join(parts), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[DecisionMade]]:
    """A run with every kind of decision; its trace file and what the scheduler told."""
    folder = tmp_path_factory.mktemp("run")
    model = ROOT / "manifests" / "quickstart" / "digits.onnx"
    (folder / "m.toml").write_text(CROSSING.format(model=model))
    made: list[DecisionMade] = []

    def listen(event: Event) -> None:
        if isinstance(event, DecisionMade):
            made.append(event)

    image = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    rejected = 0
    with aegis_pipe.open_pipeline(folder / "m.toml", listeners=[listen]) as runtime:
        for _ in range(30):
            futures = []
            for number in range(14):
                name = "urgent" if number % 3 == 0 else "patient"
                deadline = 0 if number % 5 == 4 else None
                try:
                    futures.append(runtime.submit(name, image, deadline=deadline))
                except aegis_pipe.QueueFullError:
                    rejected += 1
                if number % 7 == 5:
                    futures[-1].cancel()
            for future in futures:
                future.exception()
    assert rejected
    assert {decision.kind for decision in made} >= {"start", "expire", "reject", "cancel"}
    return folder / "traces.jsonl", made
