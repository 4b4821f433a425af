"""Measure how long a manifest takes from the start of a process to its models' first results.

    python tools/bench_start.py manifests/gpu.toml --json start.json

Each run is a new process: the first with nothing on disk of what a device keeps (measured choices,
compiled kernels), the others with what the first one left: their median and the slowest are told.
Python's own bytecode, which installing the package writes, is on disk for these. Times are those of
the process that starts them, so the interpreter's start is in them.

    imported     `import aegis_pipe`, from the process' start
    opened       `open_pipeline`, from the call to its return
    answered     one request of each model, one after the other
    ready        all of that, from the process' start
    phases       parts of `opened`, by name; those within another count in both
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PARTS = ("imported", "opened", "answered", "ready")
LONG_S = 0.02
"""Phases that take less are not told."""


def start(manifest: str, begin_ns: int) -> dict[str, Any]:
    """Open a manifest and ask each model once; in seconds, the process having begun at an instant.

    Imports only here: they are part of what is measured.
    """
    import aegis_pipe
    from aegis_pipe.events import PhaseFinished

    instants_ns = [time.monotonic_ns()]
    spent_ns: dict[str, int] = defaultdict(int)

    def listen(event: object) -> None:
        if isinstance(event, PhaseFinished):
            spent_ns[event.name] += event.end_ns - event.start_ns

    with aegis_pipe.open_pipeline(manifest, listeners=[listen]) as runtime:
        instants_ns.append(time.monotonic_ns())
        import numpy as np

        for name, model in runtime.models.items():
            inputs = {each: np.zeros(x.shape, x.dtype) for each, x in model.inputs.items()}
            runtime.infer(name, inputs)
        instants_ns.append(time.monotonic_ns())
        device = runtime.device
    imported, opened, answered = instants_ns
    return {
        "device": f"{device.name}, {device.model}",
        "versions": dict(device.library_versions),
        "imported": (imported - begin_ns) / 1e9,
        "opened": (opened - imported) / 1e9,
        "answered": (answered - opened) / 1e9,
        "ready": (answered - begin_ns) / 1e9,
        "phases": {name: ns / 1e9 for name, ns in spent_ns.items() if ns >= LONG_S * 1e9},
    }


def started(manifest: Path, cache: str) -> dict[str, Any]:
    """Start a process that does so, and return what it says. Exits with its error if it fails."""
    environment = os.environ | {"XDG_CACHE_HOME": cache, "CUDA_CACHE_PATH": f"{cache}/driver"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, __file__, str(manifest), "--began", str(time.monotonic_ns())]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr.strip())
    run: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return run


def summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return by part what the first run took, and the median and slowest of the others."""
    cold, *warm = runs
    return {
        part: {
            "cold": cold[part],
            "warm_median": statistics.median(run[part] for run in warm),
            "warm_max": max(run[part] for run in warm),
        }
        for part in PARTS
    }


def main() -> int:
    """Measure, print a table, and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--runs", type=int, default=4, help="with what the first one left")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record here")
    parser.add_argument("--began", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.began is not None:
        print(json.dumps(start(str(options.manifest), options.began)))
        return 0
    if options.runs < 1:
        parser.error("--runs is at least 1")
    with tempfile.TemporaryDirectory() as cache:
        runs = [started(options.manifest, cache) for _ in range(1 + options.runs)]
    found = summary(runs)
    print(f"{options.manifest} on {runs[0]['device']}; seconds")
    print(f"{'':10}{'cold':>8}{'warm':>8}{'slowest':>9}")
    for part, row in found.items():
        print(f"{part:10}{row['cold']:8.2f}{row['warm_median']:8.2f}{row['warm_max']:9.2f}")
    if options.json:
        report = {
            "date": datetime.now(UTC).date().isoformat(),
            "command": " ".join(["python", *sys.argv]),
            "device": runs[0]["device"],
            "versions": runs[0]["versions"],
            "cores": len(os.sched_getaffinity(0)),
            "seconds": found,
            "runs": [{key: run[key] for key in (*PARTS, "phases")} for run in runs],
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception as error:
        from aegis_pipe.errors import AegisError

        if isinstance(error, AegisError):
            sys.exit(f"error: {error}")
        raise
