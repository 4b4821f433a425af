"""Measure what tracing costs: requests at a steady rate, every trace kept, a real collector.

    python tools/bench_tracing.py --json tracing.json

`events`: synthetic requests of 120 kernels at 400 a second for a minute. Reports the time spent on
the emitting thread per request (the hot path), how late that thread wakes up (the telemetry threads
compete with it for the interpreter; compare with `--off`), the processor time of the telemetry
threads as a share of one core, and what was lost.

`requests`: latencies of real requests in five processes that take turns: telemetry off, on with
every event, and on with a collector that is dead, that accepts and never answers, and that hangs up
at once. Reports each one's p50 and p99 beside those of `off` in the same rounds, how long closing
took, and what was lost. A turn during which the host took the processors away from this machine
(`steal` in /proc/stat), or other processes used them, says nothing about tracing and is taken
again, a few times at most; how many were, is reported.

The collector is `rotel`, in a process of its own, which throws away what it takes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import aegis_pipe
from aegis_pipe.clock import SystemClock
from aegis_pipe.events import Event, EventHub
from aegis_pipe.execution.collector import heap_frozen
from aegis_pipe.telemetry import Telemetry, TelemetryConfig
from aegis_pipe.testing.event_sequences import load_events, request_events

ROOT = Path(__file__).resolve().parent.parent
MODEL = "package://onnx/backend/test/data/light/light_shufflenet.onnx"
TRIES_MAX = 5
OTHERS_MAX_S = 0.25
"""In a turn of a second, of all processors; the system itself takes some 0.1."""
VARIANTS = ("off", "on", "dead", "silent", "refusing")


def main() -> None:
    """Run the measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("events", "requests", "all"), default="events")
    parser.add_argument("--rounds", type=int, default=24, help="of `requests`")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, default=400.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long")
    parser.add_argument("--kernels", type=int, default=120, help="kernels a request")
    parser.add_argument("--protocol", choices=("grpc", "http"), default="grpc")
    parser.add_argument("--ratio", type=float, default=1.0, help="share of traces that are kept")
    parser.add_argument("--off", action="store_true", help="emit to nobody, for comparison")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return
    figures: dict[str, Any] = {}
    with collector() as ports:
        endpoint = f"http://127.0.0.1:{ports[options.protocol]}"
        if options.part in ("events", "all"):
            figures["events"] = measure(options, endpoint)
        if options.part in ("requests", "all"):
            figures["requests"] = compare(options.rounds, endpoint)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")


def measure(options: argparse.Namespace, endpoint: str) -> dict[str, float | int | str]:
    """Emit requests at a rate; return the figures."""
    clock = SystemClock()
    config = TelemetryConfig(
        ratio=options.ratio, otlp_endpoint=endpoint, otlp_protocol=options.protocol
    )
    telemetry = Telemetry(config, clock, run_id=b"benchmark")
    hub = EventHub() if options.off else EventHub(telemetry.listener)
    period_ns = round(1e9 / options.rate)
    start_ns = clock.now_ns() + 1_000_000_000
    requests = [
        request_events(i + 1, start_ns + i * period_ns, segments=1, kernels=options.kernels)
        for i in range(round(options.rate * options.seconds))
    ]
    telemetry.start()
    for event in load_events(segments=1, kernels=options.kernels, tensors=0):
        hub.emit(event)
    while clock.now_ns() < start_ns:
        time.sleep(0.001)
    # As a runtime does; here it also keeps a minute's events, made in advance, out of the figures.
    with heap_frozen():
        cpu_start_s, own_start_s = time.process_time(), time.thread_time()
        times = [
            emit_at(hub, clock, start_ns + i * period_ns, request)
            for i, request in enumerate(requests)
        ]
        report = telemetry.close(timeout_s=10)
        telemetry_s = (time.process_time() - cpu_start_s) - (time.thread_time() - own_start_s)
    return {
        "requests": len(requests),
        "kernels_per_request": options.kernels,
        **quantiles("wake_up_late_us", [late_ns for late_ns, _ in times]),
        **quantiles("hot_path_us_per_request", [hot_ns for _, hot_ns in times]),
        "telemetry_us_per_span": telemetry_s / max(1, report.exported_spans) * 1e6,
        "telemetry_cores": telemetry_s / options.seconds,
        "exported_spans": report.exported_spans,
        "dropped_spans": report.dropped_spans,
        "dropped_events": report.dropped_events,
    }


def compare(rounds: int, endpoint: str) -> dict[str, dict[str, float]]:
    """Have the variants take turns; return each one's figures."""
    with silent() as silent_port, refusing() as refusing_port, ExitStack() as stack:
        endpoints = {
            "off": "",
            "on": endpoint,
            "dead": f"http://127.0.0.1:{free_port()}",
            "silent": f"http://127.0.0.1:{silent_port}",
            "refusing": f"http://127.0.0.1:{refusing_port}",
        }
        workers = {name: stack.enter_context(worker(endpoints[name])) for name in VARIANTS}
        latencies: dict[str, list[list[int]]] = {name: [] for name in VARIANTS}
        repeated = dict.fromkeys(VARIANTS, 0)
        for turn in range(rounds + 1):
            # Not always in the same order: whoever comes after an idle time may be favoured.
            for name in (*VARIANTS[turn % 5 :], *VARIANTS[: turn % 5]):
                taken, tries = undisturbed(workers[name])
                repeated[name] += tries - 1
                if turn:  # The first turn warms up.
                    latencies[name].append(taken)
        reports = {name: ask(workers[name], "end") for name in VARIANTS}
    off = latencies["off"]
    return {
        name: {
            **quantiles("latency_us", [ns for taken in latencies[name] for ns in taken]),
            "p50_ratio": ratio(latencies[name], off, 50),
            "p99_ratio": ratio(latencies[name], off, 99),
            "repeated_turns": repeated[name],
            **reports[name],
        }
        for name in VARIANTS
    }


def undisturbed(process: subprocess.Popen[str]) -> tuple[list[int], int]:
    """Have a worker take a turn that nobody else disturbed; return it and the tries it took."""
    tries = 0
    while True:
        tries += 1
        before = taken_by_others()
        taken = ask(process, "go")
        stolen, used = (now - then for now, then in zip(taken_by_others(), before, strict=True))
        if tries == TRIES_MAX or (stolen <= 0 and used <= OTHERS_MAX_S):
            return taken, tries


def taken_by_others() -> tuple[float, float]:
    """Return the seconds of processors that went to the host, and to processes that are not ours.

    Both are 0 where the system does not tell.
    """
    try:
        words = Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=9)
    except OSError:
        return 0.0, 0.0
    user, nice, system, _, _, hard, soft, stolen = map(int, words[1:9])
    here = psutil.Process()
    own_s = sum(sum(each.cpu_times()[:2]) for each in (here, *here.children(recursive=True)))
    second = os.sysconf("SC_CLK_TCK")
    return stolen / second, (user + nice + system + hard + soft) / second - own_s


def ratio(own: list[list[int]], off: list[list[int]], percent: int) -> float:
    """Return a percentile over all rounds, beside the same of `off`."""
    one, other = (
        statistics.quantiles([ns for taken in rounds for ns in taken], n=100)[percent - 1]
        for rounds in (own, off)
    )
    return one / other


@contextmanager
def worker(endpoint: str) -> Iterator[subprocess.Popen[str]]:
    """Run requests in a process of its own, when asked to."""
    command = [sys.executable, __file__, "--serve", endpoint]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])},
    ) as process:
        yield process


def ask(process: subprocess.Popen[str], word: str) -> Any:
    """Send a word and wait for the answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def serve(endpoint: str) -> None:
    """Run a hundred requests each time a line comes in, one each 10 ms; print their latencies."""
    telemetry = f'[telemetry]\notlp = {{ endpoint = "{endpoint}" }}\n' if endpoint else ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.toml"
        # One segment: a model is cut by times measured at load, so processes would differ.
        path.write_text(
            'manifest_version = 1\nname = "bench"\nstreams = { max_block = "1 s" }\n'
            '[scheduler]\npolicy = "priority"\n'
            f'[[models]]\nname = "m"\npath = "{MODEL}"\n{telemetry}'
        )
        logging.disable(logging.WARNING)
        runtime = aegis_pipe.open_pipeline(path)
        inputs = {
            name: np.zeros(spec.shape, spec.dtype)
            for name, spec in runtime.models["m"].inputs.items()
        }
        while sys.stdin.readline().strip() == "go":
            print(json.dumps([timed(runtime, inputs) for _ in range(100)]), flush=True)
        start_ns = time.perf_counter_ns()
        runtime.close()
        close_s = (time.perf_counter_ns() - start_ns) / 1e9
        report = runtime.report().telemetry
        losses = {} if report is None else {
            "exported_spans": report.exported_spans,
            "dropped_spans": report.dropped_spans,
            "dropped_events": report.dropped_events,
        }  # fmt: skip
        print(json.dumps({"close_s": close_s, **losses}), flush=True)


def timed(runtime: aegis_pipe.Runtime, inputs: dict[str, np.ndarray]) -> int:
    """Run one request; return its latency, and only after 10 ms."""
    start_ns = time.perf_counter_ns()
    runtime.submit("m", inputs).result()
    latency_ns = time.perf_counter_ns() - start_ns
    time.sleep(max(0.0, 0.01 - latency_ns / 1e9))
    return latency_ns


@contextmanager
def silent() -> Iterator[int]:
    """Accept connections and never answer."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield listening.getsockname()[1]


@contextmanager
def refusing() -> Iterator[int]:
    """Close every connection at once."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def refuse() -> None:
            while True:
                try:
                    listening.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=refuse, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def quantiles(name: str, times_ns: list[int]) -> dict[str, float]:
    """Return the median and the 99th percentile, in microseconds."""
    cuts = statistics.quantiles(times_ns, n=100)
    return {f"{name}_p50": cuts[49] / 1e3, f"{name}_p99": cuts[98] / 1e3}


def emit_at(hub: EventHub, clock: SystemClock, at_ns: int, events: list[Event]) -> tuple[int, int]:
    """Emit a request's events when it is time; return how late that was and how long it took."""
    while (wait_ns := at_ns - clock.now_ns()) > 0:
        time.sleep(wait_ns / 1e9)
    start_ns = clock.now_ns()
    if hub.enabled:
        for event in events:
            hub.emit(event)
    return start_ns - at_ns, clock.now_ns() - start_ns


@contextmanager
def collector() -> Iterator[dict[str, int]]:
    """Run a collector on loopback; yield its ports by protocol."""
    ports = {"grpc": free_port(), "http": free_port()}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(files("rotel") / "rotel-agent"),
            "start",
            f"--otlp-grpc-endpoint=127.0.0.1:{ports['grpc']}",
            f"--otlp-http-endpoint=127.0.0.1:{ports['http']}",
            "--exporter=blackhole",
            f"--pid-file={folder}/pid",
            f"--log-file={folder}/log",
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                wait_for(ports.values())
                yield ports
            finally:
                process.terminate()


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def wait_for(ports: Iterator[int]) -> None:
    """Wait until somebody listens on each port."""
    for port in ports:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)


if __name__ == "__main__":
    main()
