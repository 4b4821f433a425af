"""tools/bench_busy_threads.py on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis_pipe.threads import TURN_S
from tests.system.one_model import DIGITS, assert_told_what_is_wrong, measured

TOOL, OPTIONS = "bench_busy_threads.py", ("--requests", "10", "--busy", "0", "1")


def test_requests_with_both_kinds_of_turns(tmp_path: Path) -> None:
    done, path = measured(TOOL, tmp_path, str(DIGITS), *OPTIONS)
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
    assert_told_what_is_wrong(TOOL, tmp_path, *OPTIONS)
