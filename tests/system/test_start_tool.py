"""tools/bench_start.py on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

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
    command = [sys.executable, ROOT / "tools" / "bench_start.py", manifest]
    options = ["--runs", "2", "--json", record]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
    return done, record


def test_a_cold_start_and_warm_ones(tmp_path: Path) -> None:
    done, path = measured(tmp_path, str(ROOT / "manifests" / "quickstart" / "digits.onnx"))
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
    done, path = measured(tmp_path, "not-there.onnx")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "not-there.onnx" in done.stderr
    assert "Traceback" not in done.stderr
    assert not path.exists()
