"""Inputs staged ahead serve the launch of their own request, and no other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aegis_pipe import open_pipeline

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
