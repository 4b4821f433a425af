"""Measure what an urgent model's latency and a saturating model's throughput do to each other.

    python tools/bench_sharing.py --device cpu --json sharing.json
    python tools/bench_sharing.py --device cuda --networks FOLDER --json sharing.json

An urgent model gets Poisson arrivals, beside another one as fast as it goes, on one stream:

    cpu     SqueezeNet at 20/s beside ResNet-50
    cuda    ResNet-50 fp16 at 200/s beside BERT-base fp16 in batches of 64, both as
            tools/make_networks.py writes them (FOLDER is filled if they are not there)

    alone         each of the two by itself
    no isolation  `fifo`: whoever came first, whole models
    priority      the urgent one goes first, whole models
    segments      the urgent one goes first, at the next segment boundary

All are up at the same time and take turns in short blocks, so that what else the machine does
falls on all of them. Latency is from arrival to result. On the CPU its p99 may be 1.10 times that
alone, and one segment; on CUDA 1.05 times that alone. The other one may lose 5 % of what the urgent
one leaves.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
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
import onnx

from aegis_pipe import Runtime, open_pipeline
from aegis_pipe.events import Event, SegmentFinished
from aegis_pipe.execution.input_generation import generate_inputs
from aegis_pipe.threads import wake_promptly

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
    """Two models, how often the urgent one is asked, and what it may lose by the other."""

    urgent: str
    saturating: str
    rate_per_s: float
    max_block: str
    p99_by_alone: float
    plus_segment: bool
    networks: tuple[str, ...] = ()
    """What tools/make_networks.py has to write for them."""


LIGHT = "package://onnx/backend/test/data/light"
PAIRS = {
    "cpu": Pair(
        f'path = "{LIGHT}/light_squeezenet.onnx"',
        f'path = "{LIGHT}/light_resnet50.onnx"',
        rate_per_s=20.0,
        max_block="5 ms",
        p99_by_alone=1.10,
        plus_segment=True,
    ),
    "cuda": Pair(
        'path = "{folder}/resnet50.onnx"\nprecision = "fp16"\n'
        "shapes = {{ image = [1, 3, 224, 224] }}",
        'path = "{folder}/bert-summary.onnx"\nprecision = "fp16"\n'
        "shapes = {{ input_ids = [64, 128], attention_mask = [64, 128], "
        "token_type_ids = [64, 128] }}",
        rate_per_s=200.0,
        max_block="320 us",
        p99_by_alone=1.05,
        plus_segment=False,
        networks=("resnet50", "bert-base"),
    ),
}
MOST_LOST = 0.05


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

    def figures(self) -> dict[str, Any]:
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
    inputs = {name: generate_inputs(graph, seed=0) for name, graph in runtime.graphs.items()}
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
    """Submit urgent requests at their instants, however late the ones before are.

    What they wait for this thread to wake up is no latency of theirs, so it does so promptly.
    """
    wake_promptly()
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
    pair = PAIRS[options.device]
    compared = ways(options.max_block or pair.max_block)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        networks = make_networks(options.networks or folder, pair.networks)
        runtimes = []
        for number, way in enumerate(compared):
            manifest = folder / f"{number}.toml"
            manifest.write_text(
                MANIFEST.format(
                    device=options.device,
                    max_block=way.max_block,
                    in_flight=way.in_flight,
                    policy=way.policy,
                    urgent=pair.urgent.format(folder=networks),
                    saturating=pair.saturating.format(folder=networks),
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
        allowed_ms = pair.p99_by_alone * alone + pair.plus_segment * one["segment_p99_ms"]
        one["keeps_its_latency"] = one["urgent_p99_ms"] <= allowed_ms
        one["keeps_its_throughput"] = one["loss"] <= MOST_LOST
    return figures


def make_networks(folder: Path, names: tuple[str, ...]) -> Path:
    """Write the networks that are not in the folder yet; return it, absolute."""
    if names:
        tool = Path(__file__).with_name("make_networks.py")
        subprocess.run([sys.executable, tool, folder, *names], check=True, stdout=sys.stderr)
        keep_summary(folder / "bert-base.onnx", folder / "bert-summary.onnx")
    return folder.resolve()


def keep_summary(encoder: Path, path: Path) -> None:
    """Write an encoder without its first output: all positions of a batch are 12 MB to copy."""
    model = onnx.load(encoder)
    del model.graph.output[0]
    onnx.save(model, path)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--max-block", help="longest segment; default: 5 ms, on CUDA 320 us")
    parser.add_argument("--networks", type=Path, metavar="FOLDER", help="where CUDA's pair lies")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn")
    parser.add_argument("--blocks", type=int, default=10, help="turns of each way")
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    report = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": options.device,
        "command": " ".join(["python", "tools/bench_sharing.py", *(arguments or sys.argv[1:])]),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "max_block": options.max_block or PAIRS[options.device].max_block,
        "load_before": load,
        "ways": measure(options),
        "load_after": os.getloadavg()[0],
    }
    print(json.dumps(report, indent=2))
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
