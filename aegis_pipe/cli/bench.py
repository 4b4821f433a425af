"""Measure how fast a manifest's models answer on its device: from a request to its result.

Each model alone, a request at a time; with as many requests under way as its streams can take; and
all models at once. `--beside onnxruntime` has ONNX Runtime run the same files with the same inputs
and threads, in turns with this runtime; it computes in the precision that the files are in.
Deadlines and pipelines are left out. Of a GPU, times include the copies to and from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from aegis_pipe.benchmark import (
    ONNXRUNTIME,
    Benchmark,
    BenchmarkOptions,
    Latencies,
    ModelBenchmark,
    run_benchmark,
)
from aegis_pipe.cli.arguments import duration, positive, seed
from aegis_pipe.cli.standard_streams import tell
from aegis_pipe.cli.tables import counted, table
from aegis_pipe.manifest_check import check_manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the manifest, what to measure, and `--json`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("manifest", help="path of the TOML file")
    parser.add_argument(
        "--only",
        metavar="MODEL",
        action="append",
        default=[],
        help="this one of the manifest's models; may be given again",
    )
    parser.add_argument(
        "--requests", type=positive, default=200, help="of each model in each measurement (200)"
    )
    parser.add_argument(
        "--limit",
        type=duration,
        default=20 * 10**9,
        metavar="TIME",
        help="most time for each measurement (20 s)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of generated inputs (default 0)")
    parser.add_argument("--beside", choices=[ONNXRUNTIME], help="measure it in turns with ours")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(options: argparse.Namespace) -> int:
    """Measure, and show."""
    benchmark = run_benchmark(
        check_manifest(options.manifest),
        BenchmarkOptions(
            options.requests, options.limit, tuple(options.only), options.seed, options.beside
        ),
        tell,
    )
    print(json.dumps(as_json(benchmark), indent=2) if options.json else as_text(benchmark))
    return 0


def as_text(benchmark: Benchmark) -> str:
    """Format the figures as a table, with what there is no figure of below it."""
    models = benchmark.models
    is_together = any(each.together for each in models)
    is_beside = any(each.peer or each.peer_problem for each in models)
    header = ["model", "precision", "requests", "p50", "p99", "saturated"]
    header += ["together p50", "p99"] if is_together else []
    header += [f"{ONNXRUNTIME} p50", "p99", "times as fast"] if is_beside else []
    rows = []
    for each in models:
        cells = [each.model, each.precision, str(each.alone.requests), *_times(each.alone)]
        cells.append(f"{each.saturated_per_s:.1f}/s")
        cells += _times(each.together) if is_together else []
        if is_beside:
            cells += [*_times(each.peer), _ratio(each)]
        rows.append(cells)
    device = benchmark.device
    lines = [
        f"{device.name} ({device.model}), {counted(benchmark.streams, 'stream')}; times in ms",
        "",
        table(header, rows, left=2),
        *(
            f"{ONNXRUNTIME}, {each.model}: {each.peer_problem}"
            for each in models
            if each.peer_problem
        ),
    ]
    return "\n".join(lines)


def _times(times: Latencies | None) -> list[str]:
    return ["-", "-"] if times is None else [_ms(times.p50_ns), _ms(times.p99_ns)]


def _ms(duration_ns: int) -> str:
    return f"{duration_ns / 1e6:.3f}"


def _ratio(each: ModelBenchmark) -> str:
    return "-" if each.peer is None else f"{each.peer.p50_ns / each.alone.p50_ns:.2f}"


def as_json(benchmark: Benchmark) -> dict[str, Any]:
    """Return the figures as plain values, times in nanoseconds."""
    device = benchmark.device
    return {
        "device": {
            "name": device.name,
            "model": device.model,
            "libraries": dict(device.library_versions),
        },
        "streams": benchmark.streams,
        "models": [
            {
                "name": each.model,
                "precision": each.precision,
                "alone": dataclasses.asdict(each.alone),
                "saturated": {
                    "outstanding": each.outstanding,
                    "per_second": each.saturated_per_s,
                },
                "together": each.together and dataclasses.asdict(each.together),
                ONNXRUNTIME: each.peer and dataclasses.asdict(each.peer),
                "problem": each.peer_problem or None,
            }
            for each in benchmark.models
        ],
    }
