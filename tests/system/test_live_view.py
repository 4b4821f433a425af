"""`aegis-pipe up` on a terminal and off one."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import aegis_pipe
from aegis_pipe.cli.live import LiveView
from tests.system.running import ROOT

MANIFEST = """
manifest_version = 1
name = "watched"
[device]
memory_budget = "512 KiB"
[streams]
count = 2
[[models]]
name = "digits"
path = "{model}"
[[pipelines]]
name = "feed"
source = {{ kind = "synthetic", rate = "50/s", like = "digits" }}
stages = [{{ name = "read", model = "digits", inputs = {{ image = "source.image" }} }}]
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    path = tmp_path / "m.toml"
    path.write_text(MANIFEST.format(model=ROOT / "manifests" / "quickstart" / "digits.onnx"))
    return [sys.executable, "-m", "aegis_pipe", "up", str(path), "--for", "3s"]


def on_a_terminal(command: list[str]) -> str:
    """Run a command on a terminal of 120 x 40; return all that was written to it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        written = b""
        while True:
            try:
                part = os.read(ours, 65_536)
            except OSError:  # How Linux says that nobody has the other end open any more.
                break
            if not part:
                break
            written += part
        os.close(ours)
    assert process.returncode == 0, written.decode()
    return written.decode()


def test_a_terminal_shows_streams_queue_memory_and_decisions(command: list[str]) -> None:
    shown = on_a_terminal(command)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    for words in (
        "watched",
        "stream 0",
        "stream 1",
        "waiting of 256",
        "planned, a budget of 512 KiB",
        "only candidate",
        "held up by",
    ):
        assert words in plain, words
    assert "\u2588" in plain
    # It goes away at the end, and the summary stays.
    assert plain.rstrip().splitlines()[-1].startswith("telemetry: none")
    assert "device allocations after start" in plain


def test_off_a_terminal_there_are_lines_and_no_control_codes(command: list[str]) -> None:
    run = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert run.returncode == 0, run.stderr
    assert "\x1b" not in run.stdout + run.stderr
    assert "stream 0" not in run.stdout + run.stderr
    quiet = subprocess.run(
        [*command, "--quiet"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert quiet.stderr == ""


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 40), (200, 24), (200, 60), (80, 16)])
def test_twenty_models_fit_the_terminal_and_trouble_is_seen(
    width: int, height: int, tmp_path: Path
) -> None:
    model = ROOT / "manifests" / "quickstart" / "digits.onnx"
    names = [f"model-of-room-{place}" for place in range(20)]
    text = 'manifest_version = 1\nname = "many"\n[streams]\ncount = 8\n'
    text += "".join(f'[[models]]\nname = "{name}"\npath = "{model}"\n' for name in names)
    (tmp_path / "m.toml").write_text(text)
    view = LiveView()
    image = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    console = Console(file=io.StringIO(), width=width, height=height)
    with aegis_pipe.open_pipeline(tmp_path / "m.toml", listeners=[view]) as runtime:
        for name in names:
            assert runtime.submit(name, image).result()
        late = runtime.submit(names[17], image, deadline=0)
        assert late.exception() is not None
        lines = console.render_lines(view.render(runtime, console.size), pad=False)
    shown = ["".join(segment.text for segment in line).rstrip() for line in lines]
    assert len(shown) <= height
    assert max(map(len, shown)) <= width
    # Whole names, so that they can be told apart, and each on one line.
    rows = [line.split() for line in shown if line.startswith("model-of-room-")]
    assert [row[0] for row in rows] == [name for name in names if name in {row[0] for row in rows}]
    assert ["model-of-room-17", "2", "1", "1"] in [row[:4] for row in rows]
    told = [line for line in shown if "models more:" in line]
    assert bool(told) == (len(rows) < 20)
    if told:
        assert told[0].startswith(
            f"and {20 - len(rows)} models more: {20 - len(rows)} done, 0 late"
        )
    latest = shown[next(i for i, line in enumerate(shown) if line.startswith("decision")) :]
    assert any(line.startswith("expire") and "deadline passed" in line for line in latest)


def test_an_error_that_comes_again_and_again_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(15):
        (tmp_path / "images" / f"{number:02}.png").write_text("no image")
    text = MANIFEST.format(model=ROOT / "manifests" / "quickstart" / "digits.onnx")
    text = text.replace(
        'kind = "synthetic", rate = "50/s", like = "digits"',
        'kind = "images", path = "images", rate = "300/s", repeat = 4',
    ).replace(
        'stages = [{ name = "read", model = "digits", inputs = { image = "source.image" } }]',
        'stages = [{ name = "fit", transform = "image_to_tensor", with = { size = [8, 8], '
        'channels = "GRAY" } }, { name = "read", model = "digits" , '
        'inputs = { image = "fit.output" } }]',
    )
    (tmp_path / "m.toml").write_text(text)
    command = [sys.executable, "-m", "aegis_pipe", "up", str(tmp_path / "m.toml"), "--quiet"]
    run = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert run.returncode == 1
    told = [line for line in run.stderr.splitlines() if line.startswith("error:")]
    assert len(told) == len(set(told)) == 11
    assert "and others, which are only counted" in told[-1]
    assert "60 failed" in run.stdout
