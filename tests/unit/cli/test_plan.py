"""What `plan` says about passes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from aegis_pipe.app import PlannedDeployment, plan_deployment
from aegis_pipe.cli import main, plan as plan_verb
from aegis_pipe.device.cpu.kernels import compiled_elementwise_chains
from aegis_pipe.device.cpu.kernels.native import LIBRARY
from aegis_pipe.device.cpu.kernels.product_endings import ENDINGS
from aegis_pipe.execution.passes import (
    ATTENTION_PASSES,
    CHANNELS_LAST_PASSES,
    INVERTED_RESIDUAL_PASSES,
    PASSES,
    chain_passes,
    product_passes,
)
from aegis_pipe.manifest.model import Manifest
from tests.unit.pass_driver import model_of

MANIFEST = """\
manifest_version = 1
name = "one-model"
[device]
kind = "cpu"
[[models]]
name = "net"
path = "net.onnx"
"""


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    text = "(float[1,3,5,5] x) => (float[1,4,3,3] y) { h = Conv(x, w) y = Relu(h) }"
    onnx.save(model_of(text, {"w": np.ones((4, 3, 3, 3), np.float32)}), tmp_path / "net.onnx")
    (tmp_path / "manifest.toml").write_text(MANIFEST)
    return str(tmp_path / "manifest.toml")


def test_passes_as_table(manifest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", manifest, "--passes"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["fuse_convolution", "2", "1"] in rows
    assert ["dead_code", "1", "1"] in rows


def test_passes_as_json(manifest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", manifest, "--passes", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    # The compiled kernels want attention and blocks whole, channels last; NumPy's take what comes.
    own = (*product_passes(ENDINGS), *ATTENTION_PASSES, *CHANNELS_LAST_PASSES)
    passes = (
        *PASSES,
        *((*own, *INVERTED_RESIDUAL_PASSES) if LIBRARY else ()),
        *chain_passes(compiled_elementwise_chains.STEPS),
    )
    assert [one["name"] for one in model["passes"]] == [one.name for one in passes]
    assert {"name": "fuse_convolution", "nodes_before": 2, "nodes_after": 1} in model["passes"]


def test_passes_only_when_asked_for(manifest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", manifest, "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert "passes" not in model


def test_check_says_that_the_plan_is_sound(
    manifest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", manifest, "--check"]) == 0
    assert "check: sound; 1 model" in capsys.readouterr().out
    assert main(["plan", manifest, "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["violations"] == []


def test_check_finds_a_plan_that_was_tampered_with(
    manifest: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = plan_deployment

    def tampered(read: Manifest) -> PlannedDeployment:
        planned = honest(read)
        (model,) = planned.models
        plan = replace(model.plan, offsets=dict.fromkeys(model.plan.offsets, 0))
        return replace(planned, models=(replace(model, plan=plan),))

    monkeypatch.setattr(plan_verb, "plan_deployment", tampered)
    assert main(["plan", manifest, "--check"]) == 1
    out = capsys.readouterr().out
    assert "violations" in out
    assert "overlaps" in out
