"""Inputs staged ahead serve the launch of their own request, and no other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aegis_pipe import open_pipeline
from aegis_pipe.events import Event, EventHub, SegmentFinished
from aegis_pipe.revision import Submission
from aegis_pipe.scheduling.device_launcher import DeviceLauncher, InferenceFuture
from aegis_pipe.scheduling.request import ExecutionRequest

DIGITS = Path(__file__).resolve().parents[3] / "manifests" / "quickstart" / "digits.onnx"
MANIFEST = f"""
manifest_version = 1
name = "one"
[[models]]
name = "digits"
path = "{DIGITS}"
"""


class Notes:
    """Takes the place of a GPU's page-locked memory, and says what was done with it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def stage(self, sources: Sequence[np.ndarray]) -> bool:
        self.done.append(f"stage {id(sources[0])}")
        return True

    def forget(self) -> None:
        self.done.append("forget")


def test_inputs_are_staged_while_others_run_and_forgotten_once_launched(
    tmp_path: Path,
) -> None:
    notes, path = Notes(), tmp_path / "one.toml"
    path.write_text(MANIFEST)
    with open_pipeline(path, write_line=lambda line: None) as runtime:
        ((tensor, spec),) = runtime.models["digits"].inputs.items()
        inputs = [np.full(spec.shape, value, np.float32) for value in range(200)]
        launcher = runtime._gate.revision.launcher
        launcher._ahead, launcher.stages_ahead = notes, True
        for future in [runtime.submit("digits", {tensor: each}) for each in inputs]:
            future.result(60)
        staged = runtime.statistics().staged_ahead
    # A launch forgets afterwards, and before as well if another request's inputs were staged.
    stages = [number for number, what in enumerate(notes.done) if what != "forget"]
    assert len(stages) == staged > 0
    assert all(notes.done[number + 1] == "forget" for number in stages)
    assert len(notes.done) == staged + len(inputs) + (len(inputs) - staged)
    known = {f"stage {id(each)}" for each in inputs}
    assert len({notes.done[number] for number in stages}) == staged
    assert {notes.done[number] for number in stages} <= known


def test_times_are_read_before_the_next_launch_records_them_anew(tmp_path: Path) -> None:
    path = tmp_path / "one.toml"
    path.write_text(MANIFEST)
    with open_pipeline(path, write_line=lambda line: None) as runtime:
        revision, events = runtime._gate.revision, list[Event]()
        launcher = DeviceLauncher(
            revision.installation.slots,
            runtime.clock,
            EventHub(events.append),
            notifies=True,
            is_stamped=lambda number: False,
        )
        ((tensor, spec),) = runtime.models["digits"].inputs.items()
        inputs = {tensor: np.zeros(spec.shape, np.float32)}

        def request(number: int) -> ExecutionRequest:
            submission = Submission(
                number, "digits", inputs, None, None, runtime.clock.now_ns(), "", InferenceFuture()
            )
            return revision.make_request(submission)

        def launch(number: int) -> None:
            before = len(events)
            one = request(number)
            launcher.launch(one, 0, 0)
            told.append(len(events) - before)
            one.payload.bound.work[-1].done.synchronise()
            assert [each.request_id for each in launcher.poll()] == [number]

        told: list[int] = []
        for number in range(1, 4):
            launch(number)
        launcher.tell()
        launcher.tell()
    segments = [event for event in events if isinstance(event, SegmentFinished)]
    assert [event.request_id for event in segments] == [1, 2, 3]
    assert told == [0, len(events) // 3, len(events) // 3]
    for one, other in itertools.pairwise(segments):
        assert one.launch_ns < one.end_ns <= other.launch_ns < other.end_ns
