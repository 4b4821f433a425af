"""What is given to verbs and is none of it: one error with a hint, no traceback."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import aegis_pipe
from aegis_pipe.cli import main

ROOT = Path(__file__).resolve().parents[3]
GARBAGE = bytes(range(128, 256)) * 4


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "digits.toml"
    model = ROOT / "manifests" / "quickstart" / "digits.onnx"
    text = f'manifest_version = 1\nname = "digits"\n[[models]]\nname = "m"\npath = "{model}"\n'
    path.write_text(text, encoding="utf-8")
    return path


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"aegis-pipe {aegis_pipe.__version__}\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [(GARBAGE, "this is no text"), (b"", "no request ended"), (b'{"event": "x', "line 1 is no")],
)
def test_why_of_what_is_no_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, words: str
) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(content)
    assert main(["why", "17", "--from", str(path)]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert "events.jsonl" in error
    assert "hint:" in error


@pytest.mark.parametrize("words", [["x"], ["--worst", "0"], ["--worst=-1"], ["17.5"]])
def test_why_of_what_is_no_request(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["why", *words, "--from", "events.jsonl"])
    assert ended.value.code == 2
    assert "expected a" in capsys.readouterr().err


def test_traces_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "traces.jsonl").write_bytes(GARBAGE)
    assert main(["trace", "summary", str(tmp_path / "traces.jsonl")]) == 1
    assert "no text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"), [(GARBAGE, "no recording"), (b'{"format": 2}\n\x00', "cut short")]
)
def test_recordings_that_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, words: str
) -> None:
    (tmp_path / "x.run").write_bytes(content)
    assert main(["replay", str(tmp_path / "x.run")]) == 1
    assert words in capsys.readouterr().err


def test_a_profile_that_is_no_text(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest.with_suffix(".profile.json").write_bytes(GARBAGE)
    assert main(["simulate", str(manifest)]) == 1
    assert "not a profile" in capsys.readouterr().err


def test_profile_looks_first_whether_it_can_write(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest.with_suffix(".profile.json").mkdir()
    assert main(["profile", str(manifest)]) == 1
    captured = capsys.readouterr()
    assert "digits.profile.json` can not be written: Is a directory" in captured.err
    assert "p50" not in captured.err  # what a model that was measured gets a line of


def test_a_full_disk_behind_standard_output() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this machine has no /dev/full")
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "aegis_pipe", "schema"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: No space left on device\n")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["1", "8x net", "mödel 1", "-", "a.b", "x" * 200])
def test_init_writes_a_sound_manifest_whatever_the_file_is_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model = tmp_path / f"{name}.onnx"
    model.write_bytes((ROOT / "manifests" / "quickstart" / "digits.onnx").read_bytes())
    path = tmp_path / f"{name}.toml"
    assert main(["init", str(model), "-o", str(path)]) == 0
    assert f"aegis-pipe up {shlex.quote(str(path))} --for" in capsys.readouterr().out
    assert main(["validate", str(path)]) == 0


@pytest.mark.parametrize(
    "words", [["--seed=-1"], ["--seed", "x"], ["--tolerance", "nan"], ["--tolerance=-1"]]
)
def test_numbers_that_verify_can_not_use(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["verify", "model.onnx", *words])
    assert ended.value.code == 2
    assert "from 0, found" in capsys.readouterr().err
