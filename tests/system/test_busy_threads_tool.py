"""tools/bench_busy_threads.py on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aegis_pipe.threads import TURN_S

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = """
manifest_version = 1
name = "one"
[[models]]
name = "digits"
path = "{path}"
"""


def measured(folder: Path, path: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    manifest, record = folder / "one.toml", folder / "record.json"
    manifest.write_text(MANIFEST.format(path=path))
    command = [sys.executable, ROOT / "tools" / "bench_busy_threads.py", manifest]
    options = ["--requests", "10", "--busy", "0", "1", "--json", record]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
    return done, record


def test_requests_with_both_kinds_of_turns(tmp_path: Path) -> None:
    done, path = measured(tmp_path, str(ROOT / "manifests" / "quickstart" / "digits.onnx"))
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text())
    assert [json.loads(line) for line in done.stdout.splitlines()] == record["rows"]
    rows = {(row["busy_threads"], row["turns"]): row for row in record["rows"]}
    assert list(rows) == [(n, turns) for n in (0, 1) for turns in ("runtime", "python")]
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in rows.values())
    assert rows[0, "runtime"]["steps_per_s"] == rows[0, "python"]["steps_per_s"] == 0
    # Whether the busy thread gets to run, and so what it costs, is the system's choice.
    for row in record["rows"]:
        ours = row["turns"] == "runtime"
        assert row["switch_interval_ms"] == pytest.approx(1e3 * TURN_S if ours else 5, abs=0.002)


def test_what_is_wrong_with_the_manifest_is_told(tmp_path: Path) -> None:
    done, path = measured(tmp_path, "not-there.onnx")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "not-there.onnx" in done.stderr
    assert "Traceback" not in done.stderr
    assert not path.exists()
