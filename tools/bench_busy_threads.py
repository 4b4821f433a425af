"""Measure requests beside threads that compute in Python: what the interpreter's lock costs them.

    python tools/bench_busy_threads.py manifest.toml --json FILE [--busy 0 1 2]

The manifest's first model, a request at a time from `submit` to its result, in turns

    runtime     with the interpreter's turns as the runtime has them while it is open
    python      with those that Python has by itself (5 ms)

and on CUDA both again with a driver's call giving the lock up each (`calls` tells which). What the
busy threads themselves get done is told, too: short turns cost them something.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from aegis_pipe import Runtime, __version__, open_pipeline
from aegis_pipe.errors import AegisError
from aegis_pipe.execution.input_generation import generate_inputs
from aegis_pipe.parallel import cores

PYTHONS_OWN_S = 0.005
TURNS = 3
WARM_UP = 20


class BusyThreads:
    """Threads that compute in Python until the end."""

    def __init__(self, count: int) -> None:
        self.done = [0] * count
        """Steps that each has taken."""
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._compute, args=(n,)) for n in range(count)]

    def _compute(self, number: int) -> None:
        while not self._stop.is_set():
            sum(each * each for each in range(1000))
            self.done[number] += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        """Have them compute."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()


def measure(runtime: Runtime, model: str, count: int, requests: int) -> list[dict[str, Any]]:
    """Return the rows of so many busy threads: of each setting, in turns."""
    inputs = generate_inputs(runtime.graphs[model], 0)
    ours_s = sys.getswitchinterval()
    settings = {"runtime": ours_s, "python": PYTHONS_OWN_S}
    times: dict[str, list[float]] = {name: [] for name in settings}
    steps, spent_s = dict.fromkeys(settings, 0), dict.fromkeys(settings, 0.0)
    busy = BusyThreads(count)
    try:
        with busy.running():
            for _ in range(TURNS):
                for name, interval_s in settings.items():
                    sys.setswitchinterval(interval_s)
                    begin_s, before = time.perf_counter(), sum(busy.done)
                    for _ in range(requests):
                        sent_s = time.perf_counter()
                        runtime.submit(model, inputs).result(timeout=60)
                        times[name].append(1e3 * (time.perf_counter() - sent_s))
                    spent_s[name] += time.perf_counter() - begin_s
                    steps[name] += sum(busy.done) - before
    finally:
        sys.setswitchinterval(ours_s)
    return [
        {
            "busy_threads": count,
            "turns": name,
            "switch_interval_ms": round(1e3 * interval_s, 3),
            "p50_ms": round(float(np.percentile(times[name], 50)), 3),
            "p99_ms": round(float(np.percentile(times[name], 99)), 3),
            "steps_per_s": round(steps[name] / spent_s[name]),
        }
        for name, interval_s in settings.items()
    ]


def main() -> int:
    """Print the rows, and write them where it was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], metavar="THREADS")
    parser.add_argument("--requests", type=int, default=40, help="of each turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record here")
    options = parser.parse_args()
    try:
        return run(options)
    except AegisError as error:
        sys.exit(f"error: {error}")


def run(options: argparse.Namespace) -> int:
    """As `main`, of what was asked for."""
    rows: list[dict[str, Any]] = []
    with open_pipeline(options.manifest) as runtime:
        model = next(iter(runtime.models))
        device = runtime.device
        inputs = generate_inputs(runtime.graphs[model], 0)
        for _ in range(WARM_UP):
            runtime.submit(model, inputs).result(timeout=60)
        for calls in (
            ("keep the lock", "give the lock up") if device.name.startswith("cuda") else ("",)
        ):
            if calls == "give the lock up":
                from aegis_pipe.device.cuda import driver

                driver.give_up_lock()
            for count in options.busy:
                for row in measure(runtime, model, count, options.requests):
                    row |= {"calls": calls} if calls else {}
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    if options.json:
        record = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(["python", *sys.argv]),
            "device": device.model,
            "cores": cores(),
            "python": platform.python_version(),
            "versions": {"aegis_pipe": __version__, **dict(device.library_versions)},
            "model": model,
            "rows": rows,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
