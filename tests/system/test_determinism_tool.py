"""The tool that counts results with other bits: it sees one bit, and says so by its exit status."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from aegis_pipe.events import SegmentFinished
from tests.system.test_network_tools import call
from tests.tool_modules import load_tool

determinism = load_tool("check_determinism")


def test_every_way_of_a_network_on_the_cpu(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    options = ("--device", "cpu", "--requests", "6", "--networks", tmp_path, "--json", found)
    printed = call("check_determinism.py", *options, "gru")
    assert "42 results, 0 with other bits" in printed
    report = json.loads(found.read_text("utf-8"))
    assert report["passed"]
    ways = [(row["way"], row["streams"]) for row in report["rows"]]
    assert ways == [
        *(("alone", 1), ("stamped", 1), ("queued", 1)),
        *(("queued", 2), ("beside another", 2), ("queued", 4), ("beside another", 4)),
    ]


def _results(changed: int | None = None) -> list[tuple[int, dict[str, np.ndarray]]]:
    """Return nine results of three inputs in turns, one of them changed in its last bit."""
    results = [(n, {"y": np.full(4, n % 3, np.float32)}) for n in range(9)]
    if changed is not None:
        results[changed][1]["y"].view(np.uint8)[0] ^= 1
    return results


def test_one_bit_is_seen_and_so_is_a_model_that_shows_nothing() -> None:
    def row(results: list[tuple[int, dict[str, np.ndarray]]]) -> dict[str, object]:
        check = determinism.Check(argparse.Namespace(json=None), Path())
        return check._count("model", "alone", 1, iter(results))

    assert row(_results())["passed"]
    changed = row(_results(7))
    assert (changed["different"], changed["passed"]) == (1, False)
    same = row([(n, {"y": np.ones(4, np.float32)}) for n, _ in _results()])
    assert (same["different"], same["passed"]) == (0, False)


def test_what_ran_beside_is_counted() -> None:
    def segment(model: str, stream: int, start_ns: int, end_ns: int) -> SegmentFinished:
        return SegmentFinished(1, model, 0, stream, start_ns, start_ns, end_ns, b"")

    overlap = determinism.Overlap()
    for each in (
        segment("mine", 0, 0, 10),
        segment("other", 1, 10, 30),
        segment("mine", 0, 20, 25),
        segment("other", 0, 25, 40),
        segment("mine", 1, 35, 50),
        segment("mine", 0, 40, 60),
    ):
        overlap.listen(each)
    assert overlap.take("mine") == (2, 4)
    assert overlap.take("mine") == (0, 0)
