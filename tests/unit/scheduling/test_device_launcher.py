"""Inputs staged ahead serve the launch of their own request, and no other."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from aegis_pipe import open_pipeline
from aegis_pipe.app import Runtime
from aegis_pipe.errors import QueueFullError, RuntimeStoppedError
from aegis_pipe.scheduling import device_launcher

DIGITS = Path(__file__).resolve().parents[3] / "manifests" / "quickstart" / "digits.onnx"
MANIFEST = f"""
manifest_version = 1
name = "one"
[scheduler]
queue_capacity = {{capacity}}
[[models]]
name = "digits"
path = "{DIGITS}"
"""


class Staged:
    """A place in use."""

    def __init__(self, sources: Sequence[np.ndarray]) -> None:
        self.sources = sources
        self.thread = threading.current_thread().name
        self.served = 0


class Notes:
    """Takes the place of a GPU's page-locked memory, and notes what is done with it."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.all: list[Staged] = []
        self.taken: list[Staged] = []
        self.served: Sequence[Staged] = ()

    def stage(self, sources: Sequence[np.ndarray]) -> Staged | None:
        if len(self.taken) == self.places:
            return None
        staged = Staged(sources)
        self.all.append(staged)
        self.taken.append(staged)
        return staged

    def serve(self, staged: Sequence[Staged]) -> None:
        self.served = staged
        for each in staged:
            each.served += 1

    def give_back(self, staged: Staged) -> None:
        assert staged in self.taken, "a place is given back twice"
        self.taken.remove(staged)


def inputs_of(runtime: Runtime, count: int) -> list[dict[str, np.ndarray]]:
    ((tensor, spec),) = runtime.models["digits"].inputs.items()
    return [{tensor: np.full(spec.shape, value, np.float32)} for value in range(count)]


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "one.toml"
    path.write_text(MANIFEST.format(capacity=300))
    return path


def take_notes(runtime: Runtime, places: int) -> Notes:
    notes, launcher = Notes(places), runtime._gate.revision.launcher
    launcher._ahead, launcher.stages_ahead = notes, True
    return notes


def test_whoever_hands_a_request_in_stages_its_inputs(manifest: Path) -> None:
    with open_pipeline(manifest, write_line=lambda line: None) as runtime:
        notes = take_notes(runtime, 1)
        launcher = runtime._gate.revision.launcher
        served = []
        launch = launcher.launch

        def watched(request, segment, stream) -> None:
            launch(request, segment, stream)
            served.append((request.payload.staged, request.payload.inputs))
            assert notes.served == (), "later copies would find what was staged for this launch"

        launcher.launch = watched
        for each in inputs_of(runtime, 50):
            runtime.infer("digits", each)
            assert not notes.taken, "its place is not given back"
        staged_ahead = runtime.statistics().staged_ahead
    assert staged_ahead == 50
    assert [each.served for each in notes.all] == [1] * 50
    assert {each.thread for each in notes.all} == {threading.current_thread().name}
    assert [staged for staged, _ in served] == notes.all
    assert all(staged.sources is inputs for staged, inputs in served)


def test_the_loop_stages_the_next_request_that_found_no_room(manifest: Path) -> None:
    with open_pipeline(manifest, write_line=lambda line: None) as runtime:
        notes = take_notes(runtime, 1)
        futures = [runtime.submit("digits", each) for each in inputs_of(runtime, 200)]
        for future in futures:
            future.result(60)
        staged_ahead = runtime.statistics().staged_ahead
    assert staged_ahead == len(notes.all) == sum(each.served for each in notes.all)
    assert "aegis-orchestration" in {each.thread for each in notes.all}
    assert not notes.taken


def test_the_loop_leaves_what_is_large_to_others(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_launcher, "STAGED_LATE_MAX_BYTES", 1)
    with open_pipeline(manifest, write_line=lambda line: None) as runtime:
        notes = take_notes(runtime, 1)
        futures = [runtime.submit("digits", each) for each in inputs_of(runtime, 200)]
        for future in futures:
            future.result(60)
    assert {each.thread for each in notes.all} == {threading.current_thread().name}
    assert not notes.taken


def test_what_is_refused_or_withdrawn_gives_its_place_back(tmp_path: Path) -> None:
    path = tmp_path / "one.toml"
    path.write_text(MANIFEST.format(capacity=1))
    with open_pipeline(path, write_line=lambda line: None) as runtime:
        notes = take_notes(runtime, 100)
        refused, futures = 0, []
        for each in inputs_of(runtime, 100):
            try:
                futures.append(runtime.submit("digits", each))
                futures[-1].cancel()
            except QueueFullError:
                refused += 1
        for future in futures:
            future.exception(60)
        assert refused > 0
        assert len(notes.all) < 100, "it is no use for who sees that there is no place"
    assert not notes.taken
    with pytest.raises(RuntimeStoppedError):
        runtime.submit("digits", each)
    assert notes.all[-1].sources[0] is next(iter(each.values()))
    assert not notes.taken


def test_what_waits_for_a_reload_gives_its_place_back(manifest: Path) -> None:
    with open_pipeline(manifest, write_line=lambda line: None) as runtime:
        notes = take_notes(runtime, 100)
        runtime._gate.hold()
        futures = [runtime.submit("digits", each) for each in inputs_of(runtime, 10)]
        assert not notes.taken, "the memory may be exchanged now"
        runtime._gate.open(runtime._gate.revision)
        for future in futures:
            future.result(60)
    assert not notes.taken
