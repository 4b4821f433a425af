"""Holds the simulator against real runs: predicted and measured latencies of three manifests.

    python tools/check_simulation.py --json simulation.json

Each manifest is profiled, run for a while with its pipelines, and simulated for the same time with
the profile; what is compared is every model's p99 from arrival to result. Give it a quiet machine:
a profile taken among neighbours says what they did. Exit status 1 if a p99 is off by more than a
tenth.

    camera     one model at a steady rate: nothing but its own times
    priority   an urgent model at random instants beside a long one, cut into segments
    shared     two models of one priority, first come first served, at random instants
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aegis_pipe import open_pipeline
from aegis_pipe.manifest import load_manifest
from aegis_pipe.profiler import ProfileOptions, measure_profile
from aegis_pipe.simulator import simulate

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
source = {{ kind = "synthetic", like = "{name}", rate = "{rate}/s", arrivals = "{arrivals}" }}
stages = [{{ name = "infer", model = "{name}" }}]
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
TOLERANCE = 0.10


def write(name: str, folder: Path) -> Path:
    """Write one of the manifests."""
    policy, models = MANIFESTS[name]
    text = HEAD.format(name=name, policy=policy)
    for model, priority, rate, arrivals in models:
        text += MODEL.format(
            name=model, file=model, light=LIGHT, priority=priority, rate=rate, arrivals=arrivals
        )
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def compare(name: str, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Profile, run and simulate one manifest; return a row for each model."""
    manifest = load_manifest(write(name, folder))
    limit_ns = round(options.profile_seconds * 1e9 / len(manifest.models))
    measured = ProfileOptions(0.999, 0.99, 4603, 1, limit_ns, 10**9)
    profile = measure_profile(manifest, measured, lambda line: print(line, file=sys.stderr))
    with open_pipeline(manifest) as runtime:
        runtime.start_pipelines()
        runtime.join(options.seconds, threading.Event())
        real = {each.model: each for each in runtime.statistics().models}
    predicted = simulate(manifest, profile, round(options.seconds * 1e9), options.seed)
    return [
        {
            "manifest": name,
            "model": each.model,
            "requests": real[each.model].completed,
            "measured_p50_ms": real[each.model].latency_p50_ns / 1e6,
            "simulated_p50_ms": each.p50_ns / 1e6,
            "measured_p99_ms": real[each.model].latency_p99_ns / 1e6,
            "simulated_p99_ms": each.p99_ns / 1e6,
            "p99_ratio": each.p99_ns / real[each.model].latency_p99_ns,
        }
        for each in predicted.predictions
    ]


def main() -> int:
    """Compare, print, and write the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifests", nargs="*", default=list(MANIFESTS), help="of the three")
    parser.add_argument("--seconds", type=float, default=40.0, help="length of each real run")
    parser.add_argument("--profile-seconds", type=float, default=12.0, help="and of its profile")
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
