"""Predict latencies and misses of a manifest: its own scheduler on virtual time.

Draws execution times from `<manifest>.profile.json`. The same seed gives the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from aegis_pipe import units
from aegis_pipe.analysis_builder import load_profile
from aegis_pipe.cli.arguments import duration, seed
from aegis_pipe.cli.tables import table
from aegis_pipe.manifest_check import check_manifest
from aegis_pipe.simulator import Simulation, simulate_each, sweep, with_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the manifest, how long, the seed, what to change, and `--json`."""
    parser.add_argument("manifest", help="path of the TOML file")
    parser.add_argument(
        "--for", dest="duration_ns", type=duration, default=60 * 10**9, metavar="TIME",
        help='virtual time, such as "10 min" or "1h"; default: one minute',
    )  # fmt: skip
    parser.add_argument("--seed", type=seed, default=1, help="of everything that is drawn")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE",
        help="change a key: scheduler.policy=edf, models.detector.priority=3",
    )  # fmt: skip
    parser.add_argument(
        "--sweep", action="store_true", help="compare streams, policies and segment lengths"
    )
    parser.add_argument(
        "--journal", action="store_true", help="also print the hash of all decisions"
    )
    parser.add_argument("--json", action="store_true", help="print the prediction as JSON")


def run(options: argparse.Namespace) -> int:
    """Simulate and print."""
    given = check_manifest(options.manifest)
    profile = load_profile(given)
    manifest = with_settings(given, options.settings)
    variants = sweep(manifest) if options.sweep else [manifest]
    results = simulate_each(
        variants, profile, options.duration_ns, options.seed, journal=options.journal
    )
    if options.json:
        values = [_as_json(result) for result in results]
        print(json.dumps(values if options.sweep else values[0], indent=2))
    elif options.sweep:
        print(_sweep_text(results))
    else:
        print(_as_text(results[0]))
    return 0


def _settings(result: Simulation) -> tuple[str, str, str]:
    streams = result.manifest.streams
    block = units.format_duration(streams.max_block_ns)
    return (str(streams.count), result.manifest.scheduler.policy, block)


def _as_text(result: Simulation) -> str:
    streams, policy, block = _settings(result)
    rows = [
        (p.model, str(p.submitted), str(p.completed), str(p.misses), str(p.dropped),
         _ms(p.p50_ns), _ms(p.p99_ns), _ms(p.longest_ns))
        for p in result.predictions
    ]  # fmt: skip
    header = ("model", "sent", "done", "late", "dropped", "p50", "p99", "longest")
    lines = [
        f"{result.manifest.name}: {result.requests} requests in "
        f"{units.format_duration(result.duration_ns)} of virtual time; streams {streams}, "
        f"policy {policy}, segments of at most {block}; times in ms",
        "",
        table(header, rows),
    ]
    return "\n".join([*lines, f"journal {result.journal}"] if result.journal else lines)


def _sweep_text(results: list[Simulation]) -> str:
    names = [prediction.model for prediction in results[0].predictions]
    rows = [
        (
            *_settings(result),
            *[f"{_ms(p.p99_ns)} / {p.misses}" for p in result.predictions],
        )
        for result in results
    ]
    header = ("streams", "policy", "max_block", *names)
    return f"p99 in ms / deadlines missed\n\n{table(header, rows, left=3)}"


def _ms(duration_ns: int) -> str:
    return f"{duration_ns / 1e6:.3f}"


def _as_json(result: Simulation) -> dict[str, Any]:
    streams = result.manifest.streams
    return {
        "name": result.manifest.name,
        "duration_ns": result.duration_ns,
        "requests": result.requests,
        "streams": streams.count,
        "policy": result.manifest.scheduler.policy,
        "max_block_ns": streams.max_block_ns,
        "journal": result.journal or None,
        "models": [dataclasses.asdict(prediction) for prediction in result.predictions],
    }
