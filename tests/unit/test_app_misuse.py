"""What a program does wrong with a runtime gets an error at once, and hangs nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aegis_pipe

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "manifests" / "quickstart" / "digits.onnx"
WAIT_S = 60


def in_callback(runtime: aegis_pipe.Runtime, action: Callable[[], Any]) -> BaseException | None:
    """Run `action` in a completion callback, and return what it raised."""
    raised: Future[BaseException | None] = Future()

    def call(done: Future[Any]) -> None:
        try:
            action()
        except aegis_pipe.AegisError as error:
            raised.set_result(error)
        else:
            raised.set_result(None)

    runtime.submit("m", INPUTS).add_done_callback(call)
    return raised.result(WAIT_S)


INPUTS = {"image": np.zeros((1, 1, 8, 8), np.float32)}


@pytest.fixture
def digits(tmp_path: Path) -> Iterator[aegis_pipe.Runtime]:
    path = tmp_path / "digits.toml"
    head = 'manifest_version = 1\nname = "digits"\n[[models]]\nname = "m"\n'
    path.write_text(f'{head}path = "{DIGITS}"\n', encoding="utf-8")
    with aegis_pipe.open_pipeline(path) as runtime:
        yield runtime


def test_a_callback_does_not_wait_for_itself(digits: aegis_pipe.Runtime) -> None:
    for action in (
        lambda: digits.infer("m", INPUTS),
        lambda: digits.submit("m", INPUTS).exception(),
        lambda: digits.reload(digits.manifest),
    ):
        error = in_callback(digits, action)
        assert isinstance(error, aegis_pipe.PermanentError)
        assert "callback" in str(error)
    assert in_callback(digits, lambda: digits.submit("m", INPUTS)) is None
    assert in_callback(digits, digits.close) is None


def test_a_closed_runtime_takes_nothing(digits: aegis_pipe.Runtime) -> None:
    digits.close()
    for action in (
        lambda: digits.submit("m", INPUTS),
        lambda: digits.reset_state("m"),
        lambda: digits.reload(digits.manifest),
        digits.start_pipelines,
    ):
        with pytest.raises(aegis_pipe.RuntimeStoppedError):
            action()


def test_pipelines_are_started_once(digits: aegis_pipe.Runtime) -> None:
    digits.start_pipelines()
    with pytest.raises(aegis_pipe.PermanentError, match="started before"):
        digits.start_pipelines()


ALONE = """
import os, sys, aegis_pipe, numpy
runtime = aegis_pipe.open_pipeline(sys.argv[1])
inputs = {"image": numpy.zeros((1, 1, 8, 8), numpy.float32)}
runtime.infer("m", inputs)
child = os.fork()
if not child:
    try:
        runtime.infer("m", inputs)
    except aegis_pipe.RuntimeStoppedError as error:
        print(error, flush=True)
    runtime.close()
    os._exit(0)
os.waitpid(child, 0)
runtime.infer("m", inputs)
"""


def test_fork_and_no_close(tmp_path: Path) -> None:
    path = tmp_path / "digits.toml"
    head = 'manifest_version = 1\nname = "digits"\n[[models]]\nname = "m"\n'
    telemetry = '[telemetry]\nfile = "traces.jsonl"\n'
    path.write_text(f'{head}path = "{DIGITS}"\n{telemetry}', encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(path)],
        capture_output=True, text=True, timeout=WAIT_S, check=True, cwd=ROOT,
    )  # fmt: skip
    assert "this process was forked" in done.stdout
    assert not done.stderr
    # Closed at the end of the parent: the traces of both requests are there.
    assert (tmp_path / "traces.jsonl").read_text().count('"name":"infer m"') == 2
