"""ONNX's own cases on the GPU: all that the latest record has passing pass."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "docs" / "benchmarks"


def _tool() -> ModuleType:
    path = ROOT / "tools" / "record_conformance.py"
    spec = importlib.util.spec_from_file_location("record_conformance", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(900)
def test_nothing_that_passed_fails() -> None:
    tool = _tool()
    # In this process: others would not find a module that was loaded by its path.
    names = [*tool.all_cases(), *tool.real_models()]
    outcomes, left = tool.run_chunk(names, "CUDA")
    assert left == [], "the device was lost"
    newest = max(RECORDS.glob("cuda-conformance-*.json"), key=lambda path: path.stem[-10:])
    recorded = json.loads(newest.read_text("utf-8"))["not_passed"]
    failed = {name: why for name, why in outcomes.items() if why[0]}
    assert {name: why for name, why in failed.items() if name not in recorded} == {}
    counts = dict(tool.counts(outcomes))
    assert counts["node"]["passed"] >= 1300, os.linesep.join(failed)
    assert all(
        counts[suite]["passed"] == counts[suite]["cases"]
        for suite in ("pytorch-converted", "pytorch-operator", "light")
    )
