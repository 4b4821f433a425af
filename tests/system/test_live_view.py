"""`aegis-pipe up` on a terminal and off one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

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
