"""`aegis-pipe bench` on a GPU: the same verb, and the device's name in its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis_pipe.cli import main
from aegis_pipe.device.protocols import DeviceContext

DIGITS = Path(__file__).resolve().parents[2] / "manifests" / "quickstart" / "digits.onnx"
HEAD = """
manifest_version = 1
name = "bench"
[device]
kind = "cuda"
[streams]
count = 2
"""


def test_models_on_the_gpu(
    context: DeviceContext, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = context.description.name
    manifest = tmp_path / "bench.toml"
    models = "".join(
        f'[[models]]\nname = "{precision}"\npath = "{DIGITS}"\nprecision = "{precision}"\n'
        for precision in ("fp32", "fp16")
    )
    manifest.write_text(HEAD + models)
    assert main(["bench", str(manifest), "--requests", "50", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device"]["name"] == name
    for each in found["models"]:
        assert each["precision"] == each["name"]
        assert each["alone"]["requests"] == 50
        assert each["together"]["requests"] >= 50
        assert each["saturated"]["per_second"] > 0
