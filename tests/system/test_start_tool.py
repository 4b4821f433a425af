"""tools/bench_start.py on the CPU."""

import json
from pathlib import Path

from tests.system.one_model import DIGITS, assert_told_what_is_wrong, measured

TOOL, OPTIONS = "bench_start.py", ("--runs", "2")


def test_a_cold_start_and_warm_ones(tmp_path: Path) -> None:
    done, path = measured(TOOL, tmp_path, str(DIGITS), *OPTIONS)
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text())
    assert len(record["runs"]) == 3
    for run in record["runs"]:
        parts = run["imported"] + run["opened"] + run["answered"]
        assert abs(parts - run["ready"]) < 1e-6
        assert min(run["imported"], run["opened"], run["answered"]) > 0
        assert all(0 < spent <= run["opened"] for spent in run["phases"].values())
    opened = [run["opened"] for run in record["runs"]]
    assert record["seconds"]["opened"]["cold"] == opened[0]
    assert record["seconds"]["opened"]["warm_max"] == max(opened[1:])
    assert record["device"].startswith("cpu, ")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows[2:]] == ["imported", "opened", "answered", "ready"]


def test_what_is_wrong_with_the_manifest_is_told(tmp_path: Path) -> None:
    assert_told_what_is_wrong(TOOL, tmp_path, *OPTIONS)
