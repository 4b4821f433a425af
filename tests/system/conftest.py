"""Fixtures of the system tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.running import Write, save_model, small_nodes


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
