#!/usr/bin/env python3
"""Run ONNX's own test cases on a GPU, in several processes, and record what passes.

python tools/record_conformance.py --json docs/benchmarks/cuda-conformance-<GPU>-<date>.json

A case passes if every operator of it ran as a kernel of the device and the results are those
expected. A process whose device is lost ends, and a new one goes on with the next case.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "conformance")]

CHUNK = 64
SUITES = ("simple", "pytorch-converted", "pytorch-operator")
_REAL = "light"

Outcomes = dict[str, list[str]]
"""Kind and detail by case; both empty if it passed."""


def all_cases() -> dict[str, object]:
    """Return the cases of nodes and of the suites of models, by name."""
    from onnx_cases import model_cases, node_cases

    cases = {case.name: case for case in node_cases()}
    for suite in SUITES:
        cases |= {f"{suite}/{case.name}": case for case in model_cases(suite)}
    return cases


def real_models() -> list[str]:
    """Return the names of the real architectures."""
    from onnx_cases import LIGHT_MODELS

    return [f"{_REAL}/{path.stem}" for path in sorted(LIGHT_MODELS.glob("*.onnx"))]


def run_chunk(names: list[str], device: str) -> tuple[Outcomes, list[str]]:
    """Run cases until the device is lost; return their outcomes and what is left."""
    from onnx_cases import run_case, run_light_model

    cases = all_cases()
    outcomes: Outcomes = {}
    for place, name in enumerate(names):
        if name.startswith(f"{_REAL}/"):
            outcome = run_light_model(name.partition("/")[2], device)
        else:
            outcome = run_case(cases[name], device)
        outcomes[name] = [outcome.kind, outcome.detail]
        if outcome.kind == "DeviceLostError":
            return outcomes, names[place + 1 :]
    return outcomes, []


def record(device: str, workers: int) -> Outcomes:
    """Run everything; return outcomes by case, in order."""
    names = [*all_cases(), *real_models()]
    # Every so many-th case, so that no process has all the slow ones.
    chunks = [names[start :: -(-len(names) // CHUNK)] for start in range(-(-len(names) // CHUNK))]
    found: Outcomes = {}
    spawn = multiprocessing.get_context("spawn")
    while chunks:
        # A process that crashes takes its pool with it: what it did not finish is done anew.
        with ProcessPoolExecutor(workers, mp_context=spawn, max_tasks_per_child=1) as pool:
            running = {pool.submit(run_chunk, chunk, device): chunk for chunk in chunks}
            chunks = []
            for done in as_completed(running):
                outcomes, left = done.result()
                found |= outcomes
                chunks += [left] if left else []
    return {name: found[name] for name in names}


def _suite(name: str) -> str:
    return name.rpartition("/")[0] or "node"


def counts(outcomes: Outcomes) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield each suite with how many cases it has, and how many passed."""
    for suite in ("node", *SUITES, _REAL):
        kinds = [kind for name, (kind, _) in outcomes.items() if _suite(name) == suite]
        yield suite, {"cases": len(kinds), "passed": kinds.count("")}


def _about(device: str) -> dict[str, object]:
    import onnx

    from aegis_pipe import onnx_backend

    context, _, _ = onnx_backend.open_backend_device(device)
    description = context.description
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": description.model,
        "versions": {**dict(description.library_versions), "onnx": onnx.__version__},
        "command": " ".join(["python", *sys.argv]),
    }


def main() -> int:
    """Run, write and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--device", default="CUDA")
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    # First, so that a device that is not here is told at once, not case by case.
    about = _about(options.device)
    outcomes = record(options.device, options.workers)
    suites = dict(counts(outcomes))
    not_passed = {name: list(why) for name, why in outcomes.items() if why[0]}
    report = {**about, "counts": suites, "not_passed": not_passed}
    options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    for suite, count in suites.items():
        print(f"{suite}: {count['passed']} of {count['cases']} pass")
    return 0


if __name__ == "__main__":
    sys.exit(main())
