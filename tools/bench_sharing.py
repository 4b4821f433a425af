"""Measure what an urgent model's latency and a saturating model's throughput do to each other.

    python tools/bench_sharing.py --device cpu --json sharing.json

On the CPU a small model gets Poisson arrivals at 20/s, beside ResNet-50 as fast as it goes; on a
GPU, in half precision, ResNet-50 gets 200/s beside batches of 64 for BERT-base. On one stream:

    alone         each of the two by itself
    no isolation  `fifo`: whoever came first, whole models
    priority      the urgent one goes first, whole models
    segments      the urgent one goes first, at the next segment boundary

All four are up at the same time and take turns in short blocks, so that what else the machine does
falls on all of them. Latency is from arrival to result; its p99 is to be compared with that alone
plus one segment.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from aegis_pipe import Runtime, open_pipeline
from aegis_pipe.events import Event, SegmentFinished

LIGHT = "package://onnx/backend/test/data/light"
URGENT, SATURATING = "urgent", "saturating"
OUTSTANDING = 2
"""Requests of the saturating model that are under way: one runs, one waits."""

MANIFEST = """
manifest_version = 1
name = "bench-sharing"
[device]
kind = "{device}"
[streams]
max_block = "{max_block}"
in_flight = {in_flight}
[scheduler]
policy = "{policy}"
ageing = "0 ms"
[[models]]
name = "urgent"
priority = 10
{urgent}
[[models]]
name = "saturating"
{saturating}
"""


@dataclass(frozen=True)
class Pair:
    """Two models that share a device."""

    urgent: str
    """Lines of the manifest."""
    saturating: str
    rate_per_s: float
    """Of the urgent one."""
    max_block: str


def pair_for(device: str, folder: Path) -> Pair:
    """Return the models to share a device, written to the folder where they have to be made."""
    if device == "cpu":
        urgent, saturating = (
            f'path = "{LIGHT}/light_{name}.onnx"' for name in ("squeezenet", "resnet50")
        )
        return Pair(urgent, saturating, 20.0, "5 ms")
    import onnx
    from make_networks import bert_base

    encoder = bert_base()
    # All positions of all sequences are 25 MB: the summary is what a classifier would take.
    del encoder.graph.output[0]
    path = folder / "bert.onnx"
    onnx.save(encoder, path)
    shapes = ", ".join(f"{tensor.name} = [64, 128]" for tensor in encoder.graph.input)
    half = 'precision = "fp16"'
    return Pair(
        f'path = "{LIGHT}/light_resnet50.onnx"\n{half}',
        f'path = "{path}"\n{half}\nshapes = {{ {shapes} }}',
        200.0,
        "1 ms",
    )


@dataclass
class Way:
    """One way of sharing, with what was measured."""

    name: str
    policy: str
    max_block: str
    in_flight: int = 1
    is_saturated: bool = True
    latencies_ms: list[float] = field(default_factory=list)
    segments_ms: list[float] = field(default_factory=list)
    urgent_busy_s: float = 0.0
    """What the urgent model took of the stream: no loss of sharing."""
    passes: int = 0
    elapsed_s: float = 0.0

    def listen(self, event: Event) -> None:
        """Note how long segments take."""
        if not isinstance(event, SegmentFinished):
            return
        if event.model == SATURATING:
            self.segments_ms.append((event.end_ns - event.start_ns) / 1e6)
        else:
            self.urgent_busy_s += (event.end_ns - event.start_ns) / 1e9

    def figures(self) -> dict[str, float]:
        """Return quantiles in milliseconds and passes a second."""
        p50, p99 = np.quantile(self.latencies_ms, [0.5, 0.99]) if self.latencies_ms else (0.0, 0.0)
        longest = np.quantile(self.segments_ms, 0.99) if self.segments_ms else 0.0
        return {
            "urgent_requests": len(self.latencies_ms),
            "urgent_p50_ms": float(p50),
            "urgent_p99_ms": float(p99),
            "saturating_passes_per_s": self.passes / self.elapsed_s if self.elapsed_s else 0.0,
            "segment_p99_ms": float(longest),
            "urgent_share": self.urgent_busy_s / self.elapsed_s if self.elapsed_s else 0.0,
        }


def run_block(runtime: Runtime, way: Way, seconds: float, rate_per_s: float, seed: int) -> None:
    """Let both models' traffic run for a while, and wait until all of it is through."""
    inputs = {name: _inputs(runtime, name) for name in (URGENT, SATURATING)}
    places, stop = threading.Semaphore(OUTSTANDING), threading.Event()

    def saturate() -> None:
        while not stop.is_set():
            places.acquire()
            future = runtime.submit(SATURATING, inputs[SATURATING])
            future.add_done_callback(lambda _: places.release())

    feeder = threading.Thread(target=saturate)
    before = _completed(runtime)
    start = time.perf_counter()
    if way.is_saturated:
        feeder.start()
    futures = _send(runtime, way, inputs[URGENT], start + seconds, rate_per_s, random.Random(seed))
    way.passes += _completed(runtime) - before
    way.elapsed_s += time.perf_counter() - start
    stop.set()
    if way.is_saturated:
        feeder.join()
    for future in futures:
        future.result()
    for _ in range(OUTSTANDING):
        places.acquire()


def _send(
    runtime: Runtime,
    way: Way,
    inputs: dict[str, np.ndarray],
    end: float,
    rate_per_s: float,
    dice: random.Random,
) -> list[Any]:
    """Submit urgent requests at their instants, however late the ones before are."""
    futures = []
    due = time.perf_counter() + (dice.expovariate(rate_per_s) if rate_per_s else end)
    while due < end:
        time.sleep(max(0.0, due - time.perf_counter()))
        arrival = due

        def note(_: Any, arrival: float = arrival) -> None:
            way.latencies_ms.append((time.perf_counter() - arrival) * 1e3)

        future = runtime.submit(URGENT, inputs)
        future.add_done_callback(note)
        futures.append(future)
        due += dice.expovariate(rate_per_s)
    time.sleep(max(0.0, end - time.perf_counter()))
    return futures


def _inputs(runtime: Runtime, model: str) -> dict[str, np.ndarray]:
    dice = np.random.default_rng(0)
    return {
        name: dice.random(spec.shape, np.float32)
        if spec.dtype.kind == "f"
        else dice.integers(0, 2, spec.shape, spec.dtype)
        for name, spec in runtime.models[model].inputs.items()
    }


def _completed(runtime: Runtime) -> int:
    return next(each.completed for each in runtime.statistics().models if each.model == SATURATING)


def ways(max_block: str) -> list[Way]:
    """Return the ways that are compared; segments also with one that waits on the stream."""
    return [
        Way("urgent alone", "priority", max_block, is_saturated=False),
        Way("saturating alone", "priority", "1 h"),
        Way("no isolation", "fifo", "1 h"),
        Way("priority", "priority", "1 h"),
        Way("segments", "priority", max_block),
        Way("segments, two in flight", "priority", max_block, in_flight=2),
    ]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all ways in turns and compare."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pair = pair_for(options.device, folder)
        options.max_block = options.max_block or pair.max_block
        compared = ways(options.max_block)
        runtimes = []
        for number, way in enumerate(compared):
            manifest = folder / f"{number}.toml"
            manifest.write_text(
                MANIFEST.format(
                    device=options.device,
                    max_block=way.max_block,
                    in_flight=way.in_flight,
                    policy=way.policy,
                    urgent=pair.urgent,
                    saturating=pair.saturating,
                )
            )
            runtimes.append(stack.enter_context(open_pipeline(manifest, listeners=[way.listen])))
        for block in range(options.blocks):
            for way, runtime in zip(compared, runtimes, strict=True):
                rate_per_s = 0.0 if way.name == "saturating alone" else pair.rate_per_s
                run_block(runtime, way, options.seconds, rate_per_s, seed=block)
    figures = {way.name: way.figures() for way in compared}
    alone = figures["urgent alone"]["urgent_p99_ms"]
    full = figures["saturating alone"]["saturating_passes_per_s"]
    for name in ("no isolation", "priority", "segments", "segments, two in flight"):
        one = figures[name]
        one["p99_by_alone"] = one["urgent_p99_ms"] / alone
        less_ms = one["urgent_p99_ms"] - one["segment_p99_ms"]
        one["p99_less_one_segment_by_alone"] = less_ms / alone
        # What the urgent model takes for itself is not lost.
        left = full * (1 - one["urgent_share"])
        one["loss"] = 1 - one["saturating_passes_per_s"] / left
    return figures


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--max-block", help="longest segment")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn")
    parser.add_argument("--blocks", type=int, default=10, help="turns of each way")
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    figures = measure(options)
    report = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": options.device,
        "max_block": options.max_block,
        "load_before": load,
        "ways": figures,
        "load_after": os.getloadavg()[0],
    }
    print(json.dumps(report, indent=2))
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
