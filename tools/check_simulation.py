"""Holds the simulator against real runs: predicted and measured latencies of three manifests.

    python tools/check_simulation.py --json simulation.json

Each manifest is profiled and run for a while with its pipelines, several times in turns, so that
what else the machine does falls upon both alike. What is compared is every model's p99 from
arrival to result, over all rounds: each round is simulated with the arrivals that it had, many
times over, with the times of all profiles. Beside that stand a p99's standard deviation from one
such simulation to the next, and the p99 of an hour with other arrivals. Give it a quiet machine, or
at least real-time priority (`chrt -f 20`). Exit status 1 if a p99 is off by more than a tenth.

    camera     one model at a steady rate: nothing but its own times
    priority   an urgent model at random instants beside a long one, cut into segments
    shared     two models of one priority, first come first served, at random instants
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import sys
import tempfile
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aegis_pipe import open_pipeline
from aegis_pipe.analysis.profile import ModelProfile, Profile
from aegis_pipe.analysis.simulation import Tally
from aegis_pipe.events import Event, RequestFinished
from aegis_pipe.manifest import load_manifest
from aegis_pipe.profiler import ProfileOptions, measure_profile
from aegis_pipe.simulator import simulate, simulate_again

LIGHT = "package://onnx/backend/test/data/light"
HEAD = """
manifest_version = 1
name = "{name}"
[streams]
max_block = "2 ms"
[scheduler]
policy = "{policy}"
ageing = "0 ms"
"""
MODEL = """
[[models]]
name = "{name}"
path = "{light}/light_{file}.onnx"
priority = {priority}
[[pipelines]]
name = "{name}-load"
[pipelines.source]
kind = "synthetic"
like = "{name}"
rate = "{rate}/s"
arrivals = "{arrivals}"
seed = {seed}
[[pipelines.stages]]
name = "infer"
model = "{name}"
"""
MANIFESTS = {
    "camera": ("fifo", [("squeezenet", 0, 40, "periodic")]),
    "priority": (
        "priority",
        [("squeezenet", 5, 20, "poisson"), ("resnet50", 0, 4, "periodic")],
    ),
    "shared": (
        "fifo",
        [("squeezenet", 0, 20, "poisson"), ("shufflenet", 0, 40, "poisson")],
    ),
}
SHARES = {"camera": 0.5, "priority": 1.5, "shared": 1.0}
"""Of the seconds asked for: where requests are few, a p99 takes longer to see."""
TOLERANCE = 0.10
REPEATS = 40
"""Simulations of each round."""
ALONE_SHARE = 0.25
"""Of a profile's time, for models with nothing else running; the rest is in place."""


def write(name: str, folder: Path, number: int) -> Path:
    """Write one of the manifests; its random instants are others for every number."""
    policy, models = MANIFESTS[name]
    text = HEAD.format(name=name, policy=policy)
    for place, (model, priority, rate, arrivals) in enumerate(models):
        text += MODEL.format(
            name=model,
            file=model,
            light=LIGHT,
            priority=priority,
            rate=rate,
            arrivals=arrivals,
            seed=1 + len(models) * number + place,
        )
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


class Latencies:
    """A listener: arrival to result of every completed request, by model."""

    def __init__(self) -> None:
        self.of: dict[str, list[int]] = {}

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        if type(event) is RequestFinished and event.outcome == "completed":
            self.of.setdefault(event.model, []).append(event.at_ns - event.arrival_ns)


def pooled(profiles: Sequence[Profile]) -> Profile:
    """Return one profile with the samples of all; its bounds are the first one's."""

    def together(name: str) -> ModelProfile:
        each = [profile.models[name] for profile in profiles]
        return dataclasses.replace(
            each[0],
            totals_ns=merged([one.totals_ns for one in each]),
            rested_ns=merged([one.rested_ns for one in each]),
            idle_ns=merged([one.idle_ns for one in each]),
            wakes_ns=merged([one.wakes_ns for one in each]),
        )

    first = profiles[0]
    return dataclasses.replace(
        first,
        models={name: together(name) for name in first.models},
        host_ns={
            name: merged([profile.host_ns[name] for profile in profiles]) for name in first.host_ns
        },
        in_place=tuple(itertools.chain.from_iterable(each.in_place for each in profiles)),
    )


def merged(grids: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return one ascending distribution of several of about as many samples."""
    return tuple(sorted(itertools.chain(*grids)))


def compare(name: str, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Profile and run a manifest in turns, and simulate it; return a row for each model."""
    manifests = [load_manifest(write(name, folder, each)) for each in range(options.rounds)]
    manifest = manifests[0]
    each_ns = options.profile_seconds * SHARES[name] * 1e9 / options.rounds
    seconds = options.seconds * SHARES[name] / options.rounds
    # Every model runs twice alone: request upon request, and after rests.
    limit_ns = round(each_ns * ALONE_SHARE / 2 / len(manifest.models))
    in_place_ns = round(each_ns * (1 - ALONE_SHARE))
    measured = ProfileOptions(0.999, 0.99, 4603, 1, limit_ns, in_place_ns)
    real, profiles = Latencies(), []
    for number, each_round in enumerate(manifests, len(manifests)):
        # Of other arrivals than those that are predicted.
        other = load_manifest(write(name, folder, number))
        profiles.append(measure_profile(other, measured, lambda line: None))
        boundaries = {each.model: each.boundaries for each in profiles[0].models.values()}
        with open_pipeline(each_round, listeners=(real,), boundaries=boundaries) as runtime:
            runtime.start_pipelines()
            runtime.join(seconds, threading.Event())
    profile = pooled(profiles)
    every, predictions = Tally([model.name for model in manifest.models]), []
    for seed in range(options.seed, options.seed + REPEATS):
        once = simulate_again(manifests, profile, round(seconds * 1e9), seed)
        every.add(once)
        predictions.append({each.model: each for each in once.predictions()})
    hour = simulate(manifest, profile, 3600 * 10**9, options.seed)
    rows = []
    for each, in_an_hour in zip(every.predictions(), hour.predictions, strict=True):
        chances = [tally[each.model].p99_ns for tally in predictions]
        latencies_ms = np.sort(real.of[each.model]) / 1e6
        p50_ms, p99_ms = (
            float(latencies_ms[int(q * (len(latencies_ms) - 1))]) for q in (0.5, 0.99)
        )
        rows.append(
            {
                "manifest": name,
                "model": each.model,
                "requests": len(latencies_ms),
                "measured_p50_ms": p50_ms,
                "simulated_p50_ms": each.p50_ns / 1e6,
                "measured_p99_ms": p99_ms,
                "simulated_p99_ms": each.p99_ns / 1e6,
                "p99_ratio": each.p99_ns / 1e6 / p99_ms,
                "p99_deviation": float(np.std(chances) / np.mean(chances)),
                "hour_p99_ms": in_an_hour.p99_ns / 1e6,
            }
        )
    print(*rows, sep="\n", file=sys.stderr)
    return rows


def main() -> int:
    """Compare, print, and write the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifests", nargs="*", default=list(MANIFESTS), help="of the three")
    parser.add_argument(
        "--seconds", type=float, default=80.0, help="of a real run, times its share"
    )
    parser.add_argument("--profile-seconds", type=float, default=40.0, help="and of its profile")
    parser.add_argument("--rounds", type=int, default=8, help="that both are divided into")
    parser.add_argument("--seed", type=int, default=1, help="of the simulation")
    parser.add_argument("--json", metavar="FILE", help="also write the result as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name in options.manifests for row in compare(name, Path(folder), options)]
    worst = max(abs(row["p99_ratio"] - 1) for row in rows)
    result = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "tools/check_simulation.py", *sys.argv[1:]]),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "models": rows,
        "largest_difference": worst,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n", encoding="utf-8")
    return 1 if worst > TOLERANCE else 0


if __name__ == "__main__":
    raise SystemExit(main())
