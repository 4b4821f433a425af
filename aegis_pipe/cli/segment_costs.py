"""What segments cost and whom they block: part of `aegis-pipe plan --measure`."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from aegis_pipe.app import Runtime, open_pipeline
from aegis_pipe.cli.tables import milliseconds, table
from aegis_pipe.events import Event, RequestFinished, SegmentFinished
from aegis_pipe.manifest.model import Manifest
from aegis_pipe.scheduler_builder import arena_groups

RUNS = 7


class _Listener:
    def __init__(self) -> None:
        self.segments: dict[int, list[tuple[int, int]]] = {}
        self.finished: dict[int, RequestFinished] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, SegmentFinished):
            segments = self.segments.setdefault(event.request_id, [])
            segments.append((event.start_ns, event.end_ns))
        elif isinstance(event, RequestFinished):
            self.finished[event.request_id] = event


def measure_segments(manifest: Manifest) -> list[dict[str, Any]]:
    """Start the manifest, run each model a few times alone on zeros, and return what it costs.

    Durations are medians in nanoseconds: of the longest segment, of all segments of a request,
    and of what lies between them and around them (launches, copies, waking up). `blocking_ns` is
    the longest time for which a request can find its streams taken by segments that were launched
    before it came: of models whose memory lies elsewhere, as many as may be in flight, be they of
    one request or two; of its own memory's, whole requests, which can not be preempted, and what is
    in flight ahead of them.
    """
    listener = _Listener()
    with open_pipeline(manifest, listeners=[listener]) as runtime:
        costs = {
            section.name: _costs(runtime, section.name, listener) for section in manifest.models
        }
    groups, in_flight = arena_groups(manifest), manifest.streams.in_flight
    longest_ns = max(cost["longest_ns"] for cost in costs.values())
    for name, cost in costs.items():
        cost["blocking_ns"] = max(
            (
                other["busy_ns"] + (in_flight - 1) * longest_ns
                if groups[other_name] == groups[name]
                else in_flight * longest_ns
            )
            for other_name, other in costs.items()
        )
    return list(costs.values())


def _costs(runtime: Runtime, model: str, listener: _Listener) -> dict[str, Any]:
    inputs = {
        name: np.zeros(spec.shape, spec.dtype)
        for name, spec in runtime.models[model].inputs.items()
    }
    runs = []
    for _ in range(RUNS):
        future = runtime.submit(model, inputs, deadline=3600.0)
        future.result()
        runs.append(future.request_id)
    # The last one's end is told after its result was handed out.
    lengths = [[end - start for start, end in listener.segments[run]] for run in runs]
    latencies = [
        listener.finished[run].at_ns - listener.finished[run].arrival_ns for run in runs[:-1]
    ]
    busy = [sum(each) for each in lengths]
    between = [latency - each for latency, each in zip(latencies, busy[:-1], strict=True)]
    return {
        "model": model,
        "segments": len(lengths[0]),
        "longest_ns": round(statistics.median(max(each) for each in lengths)),
        "busy_ns": round(statistics.median(busy)),
        "overhead_ns": round(statistics.median(between)),
    }


def costs_table(costs: list[dict[str, Any]]) -> str:
    """Format as a table in milliseconds."""
    rows = [
        (
            cost["model"],
            str(cost["segments"]),
            milliseconds(cost["longest_ns"]),
            milliseconds(cost["busy_ns"]),
            milliseconds(cost["overhead_ns"]),
            milliseconds(cost["blocking_ns"]),
        )
        for cost in costs
    ]
    header = ("model", "segments", "longest ms", "all ms", "around them ms", "blocked at most ms")
    return table(header, rows)
