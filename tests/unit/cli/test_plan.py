"""What `plan` says about passes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from aegis_pipe import app
from aegis_pipe.app import PlannedDeployment, plan_deployment
from aegis_pipe.cli import main, plan as plan_verb
from aegis_pipe.clock import SystemClock
from aegis_pipe.device.cpu.context import CpuContext
from aegis_pipe.device.cpu.kernels import compiled_elementwise_chains
from aegis_pipe.device.cpu.kernels.native import LIBRARY
from aegis_pipe.device.cpu.kernels.product_endings import ENDINGS
from aegis_pipe.device.protocols import KernelCall
from aegis_pipe.device.registry import OpenedDevice
from aegis_pipe.execution.passes import (
    ATTENTION_PASSES,
    CHANNELS_LAST_PASSES,
    INVERTED_RESIDUAL_PASSES,
    PASSES,
    chain_passes,
    product_passes,
)
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant
from aegis_pipe.manifest.model import Manifest
from tests.unit.execution.forking_device import CALL_NS, FORK_NS, NET, ForkingCpu
from tests.unit.execution.models import parse
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


@pytest.fixture
def forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a manifest of a model with two forks, on a device that runs branches side by side."""

    def opened(manifest: Manifest, clock: SystemClock) -> OpenedDevice:
        return OpenedDevice(ForkingCpu(CpuContext(clock)), "for a test")  # type: ignore[arg-type]

    monkeypatch.setattr(app, "open_manifest_device", opened)
    onnx.save(parse(NET), tmp_path / "net.onnx")
    (tmp_path / "manifest.toml").write_text(MANIFEST)
    return tmp_path / "manifest.toml"


def test_it_says_which_branches_run_side_by_side_and_why(
    forked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(forked), "--check"]) == 0
    out = capsys.readouterr().out
    assert "net: branches of 2 of 2 forks run side by side, for " in out
    assert "more: measured 21 us, as a chain 30 us\n" in out
    assert "check: sound" in out
    assert main(["plan", str(forked), "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    branches = model["branches"]
    assert branches.pop("grown_bytes") > 0
    assert branches == {
        "forks": [[2, 2, 1], [2, 1]],
        "possible": 2,
        "chain_ns": 10 * CALL_NS,
        "forked_ns": 6 * CALL_NS + 2 * FORK_NS,
        "given_up": None,
    }


@pytest.mark.parametrize("where", ["[device]", "[[models]]"])
def test_branches_that_are_over_a_budget_run_as_a_chain(
    forked: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    assert main(["plan", str(forked), "--json"]) == 0
    (wide,) = json.loads(capsys.readouterr().out)["models"]
    chain_bytes = wide["activations_bytes"] - wide["branches"]["grown_bytes"]
    budget_bytes = wide["weights_bytes"] + chain_bytes
    forked.write_text(MANIFEST.replace(where, f'{where}\nmemory_budget = "{budget_bytes} B"'))
    assert main(["plan", str(forked), "--check"]) == 0
    out = capsys.readouterr().out
    assert "branches of 0 of 2 forks run side by side" in out
    assert "; a budget has no room for them: " in out
    assert main(["plan", str(forked), "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["activations_bytes"] == chain_bytes
    assert model["branches"]["forks"] == []


def test_a_device_without_parallel_branches_says_nothing_of_them(
    manifest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", manifest]) == 0
    assert "side by side" not in capsys.readouterr().out
    assert main(["plan", manifest, "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["branches"] is None


class Offering(ForkingCpu):
    """Has a way for every product that is faster, and wants its weights filled up."""

    def alternatives(self, request: KernelRequest) -> Sequence[KernelChoice]:
        if request.operator != "MatMul" or 1 not in request.constants:
            return ()

        def pack(array: np.ndarray) -> np.ndarray:
            return np.resize(np.ascontiguousarray(array).reshape(-1).view(np.uint8), 1 << 16)

        choice = self.context.select(request)
        packed = {1: PackedConstant("filled up", 1 << 16, pack)}
        return [replace(choice, variant="quicker", packed=packed)]

    def prepare_to_bind(self, offers: Sequence[tuple[KernelRequest, KernelChoice]]) -> None:
        pass

    def bind(self, request: KernelRequest, choice: KernelChoice, *operands: Any) -> KernelCall:
        call = self.context.bind(request, choice, *operands)
        self.quicker = {*getattr(self, "quicker", ()), *([call] if choice.variant else [])}
        return call

    def record(self, calls: Sequence[KernelCall], *more: Any) -> Any:
        graph = super().record(calls, *more)
        if self.trial:
            graph.lasts_ns -= CALL_NS // 2 * sum(call in self.quicker for call in calls)
        return graph


@pytest.mark.parametrize("where", ["[device]", "[[models]]"])
def test_alternatives_that_are_over_a_budget_are_not_taken(
    forked: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
) -> None:
    def opened(manifest: Manifest, clock: SystemClock) -> OpenedDevice:
        return OpenedDevice(Offering(CpuContext(clock)), "for a test")  # type: ignore[arg-type]

    monkeypatch.setattr(app, "open_manifest_device", opened)
    model = parse("g (float[8, 32] x) => (float[8, 32] y) { y = MatMul(x, w) }")
    weights = np.ones((32, 32), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    onnx.save(model, forked.parent / "net.onnx")

    def planned() -> tuple[str, dict[str, Any]]:
        assert main(["plan", str(forked), "--check"]) == 0
        out = capsys.readouterr().out
        assert main(["plan", str(forked), "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)["models"]
        return out, found

    out, large = planned()
    assert "no alternatives" not in out
    assert large["weights_bytes"] == 1 << 16
    assert large["alternatives_given_up"] is None
    budget_bytes = (1 << 15) + large["activations_bytes"]
    forked.write_text(MANIFEST.replace(where, f'{where}\nmemory_budget = "{budget_bytes} B"'))
    out, small = planned()
    assert "net: no alternatives of kernels are taken; a budget has no room for them: " in out
    assert small["weights_bytes"] <= 1 << 15
    assert small["alternatives_given_up"]
