"""ONNX's own cases on the GPU: all that the latest record has passing pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "record_conformance.py"
RECORDS = ROOT / "docs" / "benchmarks"


@pytest.mark.timeout(1200)
def test_nothing_that_passed_fails(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    workers = str(min(12, os.cpu_count() or 1))
    subprocess.run([sys.executable, TOOL, "--json", path, "--workers", workers], check=True)
    found = json.loads(path.read_text("utf-8"))
    newest = max(RECORDS.glob("cuda-conformance-*.json"), key=lambda each: each.stem[-10:])
    recorded = json.loads(newest.read_text("utf-8"))["not_passed"]
    failed = {name: why for name, why in found["not_passed"].items() if name not in recorded}
    assert failed == {}
    counts = found["counts"]
    assert counts["node"]["passed"] >= 1300
    for suite in ("pytorch-converted", "pytorch-operator", "light"):
        assert counts[suite]["passed"] == counts[suite]["cases"]
