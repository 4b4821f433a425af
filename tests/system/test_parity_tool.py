"""The tool that compares a device with the CPU: it sees differences and bits that do not repeat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.registry import open_device
from aegis_pipe.execution.output_comparison import ARITHMETICS, arithmetic_of
from tests.choosing_model import BOXES, boxes_with_scores, choosing_model
from tests.system.test_network_tools import call
from tests.tool_modules import load_tool

parity = load_tool("record_parity")
MANIFEST = """
manifest_version = 1
name = "parity"
[[models]]
name = "digits"
path = "{}"
[[models]]
name = "elsewhere"
path = "package://no_such_package/model.onnx"
"""
DIGITS = parity.ZOO.parent / "quickstart" / "digits.onnx"


@pytest.fixture
def models(tmp_path: Path) -> list:
    (tmp_path / "m.toml").write_text(MANIFEST.format(DIGITS))
    return parity.listed(tmp_path / "m.toml")


def test_rows_of_models(models: list) -> None:
    with open_device("cpu", clock=SystemClock()).context as cpu:
        digits, elsewhere = parity.rows(models, ["fp32"], cpu, cpu)
    assert digits["passed"]
    assert all(each["same_bits"] for each in digits["outputs"].values())
    assert elsewhere == {
        "model": "elsewhere",
        "skipped": "package `no_such_package` is not installed",
    }


def test_a_difference_is_seen_and_so_are_other_bits(models: list) -> None:
    graph = models[0].graph()
    expected = [{"y": np.arange(n, n + 8, dtype=np.float32)} for n in (0, 1, 0)]

    def judged(change: float, at: int) -> tuple[bool, bool]:
        found = [{"y": each["y"].copy()} for each in expected]
        found[at]["y"][3] += change
        of_output = parity.differences(arithmetic_of(graph), found, expected)["y"]
        return of_output["passed"], of_output["same_bits"]

    assert judged(0, 1) == (True, True)
    assert judged(0.1, 1) == (False, True)
    assert judged(1e-6, 2) == (True, False)


def test_results_whose_lengths_differ(models: list) -> None:
    expected = [{"y": np.arange(n, dtype=np.float32)} for n in (3, 5, 3)]
    found = [{"y": each["y"].copy()} for each in expected]
    arithmetic = arithmetic_of(models[0].graph())
    assert parity.differences(arithmetic, found, expected)["y"]["passed"]
    found[1]["y"] = found[1]["y"][:4]
    assert parity.differences(arithmetic, found, expected)["y"]["failure"] == "expected shape [5]"


def test_rows_by_a_threshold(models: list) -> None:
    arithmetic = arithmetic_of(models[0].graph())
    rows = np.random.default_rng(1).standard_normal((300, 4)).astype(np.float32)
    kinds = np.arange(300, dtype=np.int64) % 80
    expected = [{"boxes": rows, "kinds": kinds}] * 2

    def alike(boxes: np.ndarray, of_kinds: np.ndarray) -> float:
        found = [{"boxes": boxes, "kinds": of_kinds}] * 2
        outputs = parity.differences(arithmetic, found, expected)
        parity.match_rows(outputs, arithmetic, found, expected)
        assert not any(each["passed"] for each in outputs.values())
        (share,) = {each["rows_alike"] for each in outputs.values()}
        return share

    assert alike(rows[:-3], kinds[:-3]) == 0.99
    assert alike(rows[:-3], kinds[:-3] // 2) < 0.1
    assert alike(rows[:-3] + np.float32(0.01), kinds[:-3]) == 0
    assert alike(np.repeat(rows[:1], 299, axis=0), np.repeat(kinds[:1], 299)) < 0.01


@pytest.fixture
def chooser(tmp_path: Path) -> Any:
    onnx.save(choosing_model(), tmp_path / "chooser.onnx")
    return parity.Model("chooser", "chooser.onnx", tmp_path, {}, {})


def test_a_choice_is_judged_by_the_cpus_from_the_same(chooser: Any) -> None:
    graph = chooser.graph()
    choice, arithmetic = parity.choice_of(graph), arithmetic_of(graph)
    whole, part = parity.showing_sources(graph, choice), parity.choosing_part(graph, choice)
    scores = np.linspace(-2, 2, BOXES, dtype=np.float32)
    scores[20] = 0
    requests, others = ([{"x": boxes_with_scores(each)}] * 2 for each in (scores, scores + 1e-6))

    def judged(found: list, expected: list) -> dict:
        outputs = parity.differences(arithmetic, found, expected)
        parity.match_rows(outputs, arithmetic, found, expected)
        parity.hold_choice(outputs, part, arithmetic, requests, found, cpu)
        return outputs

    with open_device("cpu", clock=SystemClock()).context as cpu:
        expected = parity.run(whole, cpu, requests, "fp32")
        found = parity.run(whole, cpu, others, "fp32")
        # A score just above the threshold instead of on it: one box more.
        assert len(found[0]["kept"]) == len(expected[0]["kept"]) + 1
        outputs = judged(found, expected)
        assert all(each["passed"] and each["same_bits"] for each in outputs.values())
        assert 0.9 < outputs["kept"]["rows_alike"] < 1
        # Not what the device's own scores choose.
        wrong = [each | {"kept": each["kept"][:-1]} for each in found]
        assert judged(wrong, expected)["kept"]["failure"].startswith("expected shape")
        # Nor is what it chose from beyond the tolerance.
        far = [{**each, "scores": each["scores"] + np.float32(0.1)} for each in expected]
        assert not judged(far, expected)["scores"]["passed"]


def test_a_model_that_chooses(chooser: Any) -> None:
    with open_device("cpu", clock=SystemClock()).context as cpu:
        (row,) = parity.rows([chooser], ["fp32"], cpu, cpu)
    assert row["passed"]
    assert len(row["outputs"]) == 4
    assert "kept" in row["outputs"]


def test_what_rounding_alone_costs(models: list) -> None:
    graph = models[0].graph()
    requests = parity.requests_of(graph, "digits")
    rounded = {each: parity.stored_in_half(graph, each) for each in ("fp16", "bf16")}
    with open_device("cpu", clock=SystemClock()).context as cpu:
        expected = parity.run(graph, cpu, requests, "fp32")
        costs = {
            each: parity.differences(
                ARITHMETICS[each], parity.run(of, cpu, requests, "fp32"), expected
            )["logits"]["relative"]
            for each, of in rounded.items()
        }
    # Halves have 11 bits, and 8.
    assert 1e-5 < costs["fp16"] < 2e-3
    assert 4 < costs["bf16"] / costs["fp16"] < 16


def test_who_is_about_as_far_as_rounding_alone_is_told_and_does_not_pass() -> None:
    def judged(relative: float, max_absolute: float | None) -> bool:
        output = {"relative": relative, "max_absolute": max_absolute, "passed": False}
        parity.hold_against({"y": output}, {"y": {"relative": 0.1, "max_absolute": 1.0}})
        assert not output["passed"]
        return output["as_far_as_rounding"]

    assert judged(0.2, 3.0)
    assert not judged(0.21, 3.0)
    assert not judged(0.2, 3.1)
    assert not judged(0.1, None)


def test_the_record(tmp_path: Path) -> None:
    # The zoo's packages may or may not be there: what is not is told.
    path = tmp_path / "record.json"
    call(
        "record_parity.py",
        "--device",
        "cpu",
        "--precisions",
        "fp32",
        "--json",
        path,
        "faces-refine",
    )
    record = json.loads(path.read_text("utf-8"))
    (row,) = record["rows"]
    assert record["passed"]
    assert row["model"] == "faces-refine"
    assert ("skipped" in row) != ("outputs" in row)
