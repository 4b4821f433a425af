"""Holds admission against the real scheduler: no admitted task set may miss a deadline.

    python tools/check_admission.py                        500 sets, 10 virtual minutes each
    python tools/check_admission.py --sets 20 --for 10s    a quick look
    python tools/check_admission.py --first 100 --sets 50  sets 100 to 149: a part of the whole

Draws task sets until so many were admitted, runs each on virtual time with its longest times and
sporadic arrivals, and counts misses; then compares the acceptance rate on small sets with what
exhaustive simulation finds feasible. Exit status 1 if an admitted set misses, or if acceptance is
more than 10 % below.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aegis_pipe import units
from aegis_pipe.analysis.certificate import certify
from aegis_pipe.analysis.random_task_sets import (
    acceptance,
    draw_task_set,
    simulated_responses,
    small_set,
)

MS = 1_000_000
PLANS = (
    {"policy": "priority"},
    {"policy": "edf"},
    {"policy": "priority", "ageing_ns": 20 * MS, "load": (0.1, 0.8)},
    {"policy": "fifo", "load": (0.1, 0.6), "spread": 4.0},
    {"policy": "priority", "streams": 2, "load": (0.05, 0.3), "spread": 2.0},
)
"""Set n is drawn after plan n modulo their number."""


def try_set(job: tuple[int, int]) -> dict[str, object]:
    """Draw sets with one seed until one is admitted; run it."""
    seed, until_ns = job
    dice, drawn = random.Random(seed), 0
    while True:
        task_set, drawn = (
            draw_task_set(dice, shortest_ns=40 * MS, **PLANS[seed % len(PLANS)]),
            drawn + 1,
        )
        certificate = certify(task_set)
        if certificate.is_proven:
            break
    worst = simulated_responses(task_set, seed, until_ns=until_ns)
    bounds = {proof.task.name: proof.bound.response_ns for proof in certificate.proofs}
    return {
        "seed": seed,
        "drawn": drawn,
        "misses": sum(worst.get(task.name, 0) > task.deadline_ns for task in task_set.tasks),
        "over_bound": sum(worst[name] > bounds[name] for name in worst),
        "tightness": max(worst[name] / bounds[name] for name in worst),
        "requests": sum(until_ns // task.period_ns for task in task_set.tasks),
    }


def small(seed: int) -> tuple[int, int]:
    """Compare one small set."""
    return acceptance([small_set(random.Random(seed))])


def main() -> int:
    """Run both comparisons and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=500, help="admitted sets to run")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them")
    parser.add_argument("--small", type=int, default=100, help="small sets to compare")
    parser.add_argument("--for", dest="time", default="10 min", help="virtual time of each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--json", metavar="FILE", help="also write the result as JSON")
    options = parser.parse_args()
    until_ns, start = units.parse_duration(options.time), time.monotonic()
    with ProcessPoolExecutor(options.jobs) as pool:
        seeds = range(options.first, options.first + options.sets)
        runs = list(pool.map(try_set, [(seed, until_ns) for seed in seeds]))
        first_small = options.first * options.small // max(options.sets, 1)
        pairs = list(pool.map(small, range(first_small, first_small + options.small)))
    accepted, feasible = (sum(column) for column in zip(*pairs, strict=True))
    result = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "tools/check_admission.py", *sys.argv[1:]]),
        "python": platform.python_version(),
        "first_set": options.first,
        "admitted_sets": len(runs),
        "drawn_sets": sum(run["drawn"] for run in runs),
        "virtual_time": options.time,
        "requests": sum(run["requests"] for run in runs),
        "sets_with_misses": sum(bool(run["misses"]) for run in runs),
        "responses_over_bound": sum(run["over_bound"] for run in runs),
        "median_tightness": sorted(run["tightness"] for run in runs)[len(runs) // 2],
        "small_sets": options.small,
        "small_feasible": feasible,
        "small_accepted": accepted,
        "acceptance": accepted / feasible if feasible else 1.0,
        "elapsed_s": round(time.monotonic() - start, 1),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n", encoding="utf-8")
    failed = result["sets_with_misses"] or result["responses_over_bound"]
    return 1 if failed or result["acceptance"] < 0.9 else 0


if __name__ == "__main__":
    raise SystemExit(main())
