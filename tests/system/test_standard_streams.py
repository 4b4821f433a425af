"""What a caller has made of standard output and error: a run does not hang on its reports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.running import ROOT, save_model, small_nodes

MANIFEST = """
manifest_version = 1
name = "run"
[[models]]
name = "m"
path = "m.onnx"
[[pipelines]]
name = "read"
source = { kind = "synthetic", like = "m", count = 3 }
stages = [{ name = "infer", model = "m" }]
sinks = [{ kind = "jsonl", path = "out.jsonl", input = "infer.y" }]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "m.onnx", *small_nodes())
    (tmp_path / "m.toml").write_text(MANIFEST)
    return tmp_path


def shell(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command line; `$me` is aegis-pipe."""
    return subprocess.run(
        ["/bin/sh", "-c", command.replace("$me", f"'{sys.executable}' -m aegis_pipe")],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )


READER_HAS_GONE = "mkfifo gone; (exec 3<gone) & exec 4>gone; wait; $me {} 2>&4"


@pytest.mark.parametrize(
    "command",
    ["$me {} 2>&-", "$me {} 2>&- <&-", "$me {} 2>/dev/full", READER_HAS_GONE],
    ids=["closed", "input closed too", "full", "reader gone"],
)
def test_a_run_goes_on_without_anybody_to_hear_how(command: str, folder: Path) -> None:
    ended = shell(folder, command.format("up m.toml"))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "read: 3 items completed" in ended.stdout
    assert len((folder / "out.jsonl").read_text().splitlines()) == 3
    refused = shell(folder, command.format("validate none.toml").replace("gone", "too"))
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", "")


def test_a_run_whose_report_is_lost_has_failed_but_for_one_that_nobody_wants(folder: Path) -> None:
    for command, status in (("up m.toml >/dev/full", 1), ("up m.toml >&-", 0)):
        ended = shell(folder, f"$me {command}")
        assert ended.returncode == status
        assert ("No space left" in ended.stderr) == bool(status)
        assert "Traceback" not in ended.stderr
        assert len((folder / "out.jsonl").read_text().splitlines()) == 3


def test_no_file_of_a_run_becomes_standard_error(folder: Path) -> None:
    code = (
        "import os; from aegis_pipe.cli import main; main(['validate', 'm.toml']);"
        "open('found', 'w').write(' '.join(os.readlink(f'/proc/self/fd/{n}') for n in range(3)))"
    )
    shell(folder, f"'{sys.executable}' -c \"{code}\" <&- >&- 2>&-")
    assert (folder / "found").read_text() == "/dev/null /dev/null /dev/null"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_names_are_shown_in_whatever_encoding_there_is(encoding: str, folder: Path) -> None:
    text = MANIFEST.replace("out.jsonl", "\N{GREEK SMALL LETTER PI}.jsonl")
    (folder / "m.toml").write_text(text, encoding="utf-8")
    ended = shell(folder, f"PYTHONIOENCODING={encoding} $me up m.toml")
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False)
    assert "\\u03c0.jsonl" in ended.stdout
    assert (folder / "\N{GREEK SMALL LETTER PI}.jsonl").exists()


def test_a_name_that_the_file_system_can_not_have_is_one_error(folder: Path) -> None:
    text = MANIFEST.replace("out.jsonl", "\N{GREEK SMALL LETTER PI}.jsonl")
    (folder / "m.toml").write_text(text, encoding="utf-8")
    ended = shell(folder, "LC_ALL=POSIX PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 $me up m.toml")
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
    assert "can not be written in ascii" in ended.stderr


@pytest.mark.parametrize(
    ("key", "told", "warned"),
    [
        (
            'log = { path = "/dev/full" }',
            "telemetry: 0 events lost, N lines of the log",
            "room there",
        ),
        ('file = "/dev/full"', "  /dev/full: 0 spans, N", "make room if it is a file"),
    ],
)
def test_what_a_full_disk_has_lost_is_in_the_summary(
    key: str, told: str, warned: str, folder: Path
) -> None:
    (folder / "m.toml").write_text(f"{MANIFEST}\n[telemetry]\n{key}\ntraces.ratio = 1.0\n")
    ended = shell(folder, "$me up m.toml")
    assert ended.returncode == 0
    assert re.search(f"^{told} lost$".replace("N", r"[1-9]\d*"), ended.stdout, re.M)
    assert warned in ended.stderr
