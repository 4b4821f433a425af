"""Measure what tracing costs: requests at a steady rate, every trace kept, a real collector.

    python tools/bench_tracing.py --json tracing.json

Reports the time spent on the emitting thread per request (the hot path), how late that thread
wakes up (the telemetry threads compete with it for the interpreter; compare with `--off`), the
processor time of the telemetry threads as a share of one core, and what was lost. The collector
is `rotel`, in a process of its own, which throws away what it takes.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from aegis_pipe.clock import SystemClock
from aegis_pipe.events import Event, EventHub
from aegis_pipe.telemetry import Telemetry, TelemetryConfig
from aegis_pipe.testing.event_sequences import load_events, request_events


def main() -> None:
    """Run the measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=400.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long")
    parser.add_argument("--kernels", type=int, default=120, help="kernels a request")
    parser.add_argument("--protocol", choices=("grpc", "http"), default="grpc")
    parser.add_argument("--ratio", type=float, default=1.0, help="share of traces that are kept")
    parser.add_argument("--off", action="store_true", help="emit to nobody, for comparison")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    with collector() as ports:
        figures = measure(options, f"http://127.0.0.1:{ports[options.protocol]}")
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
    cpu_start_s, own_start_s = time.process_time(), time.thread_time()
    times = [
        emit_at(hub, clock, start_ns + i * period_ns, request) for i, request in enumerate(requests)
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
