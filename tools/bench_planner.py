"""Plan every instance of a folder of JSON files and print how close to the bound each comes.

An instance: {name, capacity | null, alignment, buffers: [{id, start, end, size}]}, intervals
half-open. With a capacity the planner stops at the first plan that fits, as it does at load.

    python tools/bench_planner.py INSTANCES --json planner.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import aegis_pipe
from aegis_pipe.memory import MemoryPlanner, TensorLifetime, check_lifetimes
from aegis_pipe.memory.native import LIBRARY


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    instance: str
    buffers: int
    capacity_bytes: int | None
    peak_bytes: int
    lower_bound_bytes: int
    ratio: float
    proven: bool
    fits: bool
    seconds: float
    algorithm: str


def main() -> None:
    """Parse the arguments, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with instances as *.json")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    parser.add_argument("--time-limit", type=float, default=10.0, help="seconds per instance")
    parser.add_argument("--repeat", type=int, default=3, help="runs; the fastest counts")
    arguments = parser.parse_args()
    print(f"{'instance':34} {'buffers':>7} {'peak':>13} {'bound':>13} {'ratio':>7} proven  seconds")
    results = []
    for path in sorted(arguments.folder.glob("*.json")):
        result = run(path, arguments.time_limit, arguments.repeat)
        results.append(result)
        print(
            f"{result.instance:34} {result.buffers:7} {result.peak_bytes:13} "
            f"{result.lower_bound_bytes:13} {result.ratio:7.4f} "
            f"{'yes' if result.proven else 'no':6} {result.seconds:8.4f}  {result.algorithm}"
        )
    if arguments.json:
        record = {**circumstances(), "instances": [asdict(result) for result in results]}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


def circumstances() -> dict[str, object]:
    """Return when, how and on what this is measured."""
    processor = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    return {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "tools/bench_planner.py", *sys.argv[1:]]),
        "machine": {"processor": processor, "cores": os.cpu_count()},
        "versions": {
            "aegis_pipe": aegis_pipe.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "search": "interpreted" if LIBRARY is None else "compiled",
        },
    }


def run(path: Path, time_limit_s: float, repeat: int) -> Result:
    """Plan one instance, check the plan, and keep the fastest run's time."""
    instance = json.loads(path.read_text())
    lifetimes = [
        TensorLifetime(each["id"], each["size"], each["start"], each["end"], instance["alignment"])
        for each in instance["buffers"]
    ]
    planner = MemoryPlanner(instance["capacity"], time_limit_s)
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        plan = planner.plan(lifetimes)
        seconds.append(time.perf_counter() - start)
    violations = check_lifetimes(lifetimes, plan)
    assert not violations, violations[0]
    return Result(
        instance=path.stem,
        buffers=len(lifetimes),
        capacity_bytes=instance["capacity"],
        peak_bytes=plan.peak_bytes,
        lower_bound_bytes=plan.lower_bound_bytes,
        ratio=plan.peak_bytes / max(1, plan.lower_bound_bytes),
        proven=plan.optimal,
        fits=instance["capacity"] is None or plan.peak_bytes <= instance["capacity"],
        seconds=min(seconds),
        algorithm=plan.algorithm,
    )


if __name__ == "__main__":
    main()
