"""Measure what scheduling costs: a decision, a submission, small requests a second, simulation.

    python tools/bench_scheduler.py --json scheduler.json

Decisions are timed on the scheduler alone, with 1,000 requests waiting, by the CPU time of its
thread: on a shared machine the wall clock tells of the neighbours. Submissions and requests go
through a runtime with one model of a single small kernel. Simulated requests are those of two
models at 600/s and 400/s, random, by priority, on one stream. Figures of a busy machine are marked
by its load.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from aegis_pipe import Runtime, __version__, open_pipeline
from aegis_pipe.analysis.execution_times import MeasuredTimes, ModelTimes
from aegis_pipe.analysis.simulation import (
    Load,
    Loads,
    StageLoad,
    Tally,
    poisson,
    run,
)
from aegis_pipe.scheduling import ExecutionRequest, Scheduler, StreamPool, make_policy

DEPTH = 1_000
DECISIONS = 4_000
MODELS = tuple(f"model{number}" for number in range(4))
ROUNDS = 5
REQUESTS = 4_000
OUTSTANDING = 64

MANIFEST = """
manifest_version = 1
name = "bench-scheduler"
[scheduler]
queue_capacity = 4096
[[models]]
name = "small"
path = "small.onnx"
"""


def decision_us(policy: str) -> float:
    """Return the mean CPU time of one `decide` that starts a request among `DEPTH` waiting."""
    scheduler = Scheduler(make_policy(policy), StreamPool(1), queue_capacity=DEPTH + 1)
    spent_ns = 0

    def submit(number: int) -> None:
        model = MODELS[number % len(MODELS)]
        priority, deadline_ns = number * 7 % 10, number * 10 + number * 31 % 5000 + 10**9
        request = ExecutionRequest(
            number, model, number * 10, priority=priority, deadline_ns=deadline_ns
        )
        assert scheduler.submit(request, number * 10) is None

    for number in range(DEPTH):
        submit(number)
    for number in range(DEPTH, DEPTH + DECISIONS):
        now_ns = number * 10
        before_ns = time.thread_time_ns()
        [decision] = scheduler.decide(now_ns)
        spent_ns += time.thread_time_ns() - before_ns
        scheduler.segment_finished(decision.request_id, now_ns + 5)
        scheduler.take_finished()
        submit(number)
    return spent_ns / DECISIONS / 1e3


def submission_us(runtime: Runtime, x: dict[str, np.ndarray]) -> float:
    """Return the mean CPU time that `submit` takes of its caller's thread."""
    spent_ns = 0
    for _ in range(REQUESTS // 200):
        before_ns = time.thread_time_ns()
        futures = [runtime.submit("small", x) for _ in range(200)]
        spent_ns += time.thread_time_ns() - before_ns
        for future in futures:
            future.result()
    return spent_ns / (REQUESTS // 200 * 200) / 1e3


def throughput(runtime: Runtime, x: dict[str, np.ndarray]) -> tuple[float, float]:
    """Return requests a second with `OUTSTANDING` under way, and CPU us of all threads each."""
    places = threading.Semaphore(OUTSTANDING)
    start_ns, cpu_ns = time.perf_counter_ns(), time.process_time_ns()
    for _ in range(REQUESTS):
        places.acquire()
        runtime.submit("small", x).add_done_callback(lambda _: places.release())
    for _ in range(OUTSTANDING):
        places.acquire()
    elapsed_s = (time.perf_counter_ns() - start_ns) / 1e9
    return REQUESTS / elapsed_s, (time.process_time_ns() - cpu_ns) / REQUESTS / 1e3


def simulated_us(seconds: int = 3) -> float:
    """Return the CPU time that a request takes in a simulated run, everything included."""
    loads = [
        Load(
            name,
            (StageLoad(name, name, 1, priority, deadline_ns=deadline_ns, wakes_ns=(20_000,)),),
            poisson(rate_per_s, seed=priority),
            window=258,
        )
        for name, priority, deadline_ns, rate_per_s in (
            ("urgent", 3, 20_000_000, 600.0),
            ("other", 0, None, 400.0),
        )
    ]
    times = ModelTimes((400_000,), tuple(range(350_000, 450_000, 200)))
    tally = Tally([load.name for load in loads])
    scheduler = Scheduler(
        make_policy("priority"), StreamPool(1), queue_capacity=256, preemption=True, explains=False
    )
    before_ns = time.thread_time_ns()
    run(
        scheduler,
        Loads(loads, 1),
        MeasuredTimes({load.name: times for load in loads}, 1),
        until_ns=seconds * 10**9,
        on_finished=tally,
    )
    spent_ns = time.thread_time_ns() - before_ns
    return spent_ns / sum(each.submitted for each in tally.predictions()) / 1e3


def measure() -> dict[str, Any]:
    """Return every figure."""
    decisions = {
        policy: _summary([decision_us(policy) for _ in range(ROUNDS)])
        for policy in ("fifo", "priority", "fairness", "edf")
    }
    with tempfile.TemporaryDirectory() as folder:
        runtime, x = _small_runtime(Path(folder))
        with runtime:
            for _ in range(500):
                runtime.infer("small", x)
            submissions = [submission_us(runtime, x) for _ in range(ROUNDS)]
            rates = [throughput(runtime, x) for _ in range(ROUNDS)]
            allocations = runtime.statistics().allocations_after_start
    return {
        "decision_cpu_us_at_depth_1000": decisions,
        "submission_cpu_us": _summary(submissions),
        "requests_per_s": {
            "median": statistics.median(rate for rate, _ in rates),
            "rounds": [rate for rate, _ in rates],
            "cpu_us_per_request": statistics.median(cpu for _, cpu in rates),
            "outstanding": OUTSTANDING,
        },
        "simulated_request_cpu_us": _summary([simulated_us() for _ in range(ROUNDS)]),
        "device_allocations_after_start": allocations,
    }


def _summary(rounds: list[float]) -> dict[str, float]:
    """Return the median, and the fastest round: the one that neighbours disturbed least."""
    return {"median": statistics.median(rounds), "fastest": min(rounds)}


def _small_runtime(folder: Path) -> tuple[Runtime, dict[str, np.ndarray]]:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 16]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "small", tensors[:1], tensors[1:]
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "small.onnx")
    manifest = folder / "bench.toml"
    manifest.write_text(MANIFEST)
    return open_pipeline(manifest), {"x": np.ones((1, 16), np.float32)}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    options = parser.parse_args(arguments)
    load_before = os.getloadavg()[0]
    figures = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "tools/bench_scheduler.py", *(arguments or sys.argv[1:])]),
        "machine": f"{_processor()}, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "aegis_pipe": __version__,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": load_before,
        **measure(),
        "load_after": os.getloadavg()[0],
    }
    print(json.dumps(figures, indent=2))
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
