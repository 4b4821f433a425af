"""Host staging is planned at load: with a device that stages, and with one that does not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from aegis_pipe import deployment_builder, open_pipeline
from aegis_pipe.cli import main
from aegis_pipe.device.cpu.context import CpuContext
from aegis_pipe.device.cpu.stream import CpuStream
from aegis_pipe.device.protocols import StagingStatistics
from aegis_pipe.device.registry import OpenedDevice
from aegis_pipe.errors import BudgetExceededError
from tests.unit.pass_driver import model_of

UNIT = 256


class StagingStream(CpuStream):
    """Counts what a request's copies take, and asserts that it was planned."""

    reserved = used = peak = 0
    _is_over = False

    def copy_in(self, source: np.ndarray, target: Any) -> None:
        if self._is_over:
            self.used, self._is_over = 0, False
        self._take(source)
        super().copy_in(source, target)

    def copy_out(self, source: Any, target: np.ndarray) -> None:
        self._is_over = True
        self._take(target)
        super().copy_out(source, target)

    def _take(self, array: np.ndarray) -> None:
        self.used += -(-array.nbytes // UNIT) * UNIT
        self.peak = max(self.peak, self.used)
        assert self.used <= self.reserved, "more is staged than was planned"

    @property
    def staging(self) -> StagingStatistics:
        return StagingStatistics(self.reserved, self.peak)


class Ahead:
    """Memory for the next requests' inputs, as planned; the CPU copies from the arrays anyway."""

    def __init__(self, place_bytes: int, places: int) -> None:
        self.place_bytes = place_bytes
        self.places = places
        self.taken: list[list[Any]] = []

    def stage(self, sources: Sequence[np.ndarray]) -> list[Any] | None:
        used = sum(-(-source.nbytes // UNIT) * UNIT for source in sources)
        assert used <= self.place_bytes, "more is staged ahead than was planned"
        if len(self.taken) == self.places:
            return None
        self.taken.append([*sources])
        return self.taken[-1]

    def serve(self, staged: Sequence[Any]) -> None:
        assert all(any(each is one for one in self.taken) for each in staged)

    def give_back(self, staged: Any) -> None:
        self.taken = [each for each in self.taken if each is not staged]


class StagingContext(CpuContext):
    """The CPU, as if its copies passed through host memory."""

    streams_made = 0
    ahead: Ahead

    def reserve_staging_ahead(self, place_bytes: int, places: int) -> Ahead:
        StagingContext.ahead = Ahead(place_bytes, places)
        return StagingContext.ahead

    @property
    def description(self):
        return replace(super().description, staging_alignment_bytes=UNIT)

    def create_stream(
        self, index, *, priority=0, staging_bytes=None, staging_parts=1, multiprocessors=None
    ):
        stream = StagingStream(index, self._clock, self._progress, self._threads)
        stream.reserved = staging_bytes
        StagingContext.streams_made += 1
        return self._own(stream)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StagingContext, "streams_made", 0)
    monkeypatch.setattr(
        deployment_builder,
        "open_device",
        lambda kind, *, index, clock, threads: OpenedDevice(
            StagingContext(clock, threads=threads), "it stages"
        ),
    )


MANIFEST = """
manifest_version = 1
name = "staged"
[device]
{budget}
[streams]
count = 2
[[models]]
name = "wide"
path = "net.onnx"
shapes = {{ x = [1, 500] }}
[[models]]
name = "batched"
path = "net.onnx"
shapes = {{ x = [1, 100] }}
batching = {{ max_batch = 4, window = "20 ms" }}
"""
# An input of 2000 bytes and one of 8, an output of 2000: 2048 + 256 + 2048; 512 + 256 + 512, four
# times. Inputs of three requests, one more than there are streams: 2048 + 256 each.
WIDE, BATCHED, AHEAD = 4352, 5120, 3 * 2304


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    text = "(float[N,M] x, float[N,2] z) => (float[N,M] y) { s = ReduceSum(z, a) y = Mul(x, s) }"
    onnx.save(model_of(text, {"a": np.array([1])}), tmp_path / "net.onnx")
    return tmp_path / "staged.toml"


def write(manifest: Path, budget: str = "") -> str:
    manifest.write_text(MANIFEST.format(budget=budget))
    return str(manifest)


def planned(path: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["plan", path, "--json", "--check"]) == 0
    described: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert described["violations"] == []
    return described


def test_the_plan_says_what_each_stream_and_model_stages(
    manifest: Path, stages: None, capsys: pytest.CaptureFixture[str]
) -> None:
    described = planned(write(manifest, f'staging_budget = "{2 * BATCHED + AHEAD} B"'), capsys)
    assert described["memory"]["staging"] == {
        "total_bytes": 2 * BATCHED + AHEAD,
        "budget_bytes": 2 * BATCHED + AHEAD,
        "streams": [{"size_bytes": BATCHED, "model": "batched@4"}] * 2,
        "next_requests": {"count": 3, "size_bytes": AHEAD, "model": "wide"},
    }
    assert [model["staging_bytes"] for model in described["models"]] == [WIDE, BATCHED // 4]
    assert main(["plan", str(manifest)]) == 0
    out = capsys.readouterr().out
    assert "host staging 16.75 KiB of a budget of 16.75 KiB:" in out
    assert "  staging of the next 3 requests (set by `wide`) 6.75 KiB" in out
    assert "  staging of stream 1 (set by `batched@4`) 5 KiB" in out


def test_it_is_reserved_once_and_is_what_requests_need(manifest: Path, stages: None) -> None:
    with open_pipeline(write(manifest)) as runtime:
        feeds = {
            "wide": {"x": np.ones((1, 500), np.float32), "z": np.ones((1, 2), np.float32)},
            "batched": {"x": np.ones((1, 100), np.float32), "z": np.ones((1, 2), np.float32)},
        }
        futures = [runtime.submit(name, feeds[name]) for _ in range(40) for name in feeds]
        for future in futures:
            assert (future.result(timeout=60)["y"] == 2).all()
        staging, staged = runtime.statistics().staging, runtime.statistics().staged_ahead
    assert staged > 0
    assert not StagingContext.ahead.taken, "places are not given back"
    assert [each.reserved_bytes for each in staging] == [BATCHED] * 2
    # Batches of four ran, at the latest when rows were checked.
    assert max(each.peak_bytes for each in staging) == BATCHED


def test_too_much_is_refused_before_anything_is_reserved(manifest: Path, stages: None) -> None:
    path = write(manifest, 'staging_budget = "11 KiB"')
    with pytest.raises(BudgetExceededError) as caught:
        open_pipeline(path)
    assert StagingContext.streams_made == 0
    message = str(caught.value)
    assert (
        "host staging of device `cpu`: budget 11 KiB, needs 16.75 KiB: staging of the next "
        "3 requests (set by `wide`) 6.75 KiB" in message
    )
    assert "raise `staging_budget` to 17 KiB" in message
    assert "lower `streams.count` to 1, which saves 7.25 KiB" in message
    assert "leave `batching` out for model `batched`, which saves 1.5 KiB" in message


def test_where_copies_go_straight_nothing_is_planned(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(manifest, 'staging_budget = "1 B"')
    staging = planned(path, capsys)["memory"]["staging"]
    assert (staging["total_bytes"], staging["budget_bytes"]) == (0, 1)
    assert main(["plan", path]) == 0
    assert "host staging 0 B of a budget of 1 B; copies go straight" in capsys.readouterr().out
    with open_pipeline(path) as runtime:
        assert runtime.unmet_wishes == ()
        assert runtime.statistics().staging == (StagingStatistics(),) * 2
