"""Measure what tracing costs: requests at a steady rate, every trace kept, a real collector.

    python tools/bench_tracing.py --json tracing.json

Reports the time spent on the emitting thread per request (the hot path), the processor time of
the telemetry threads as a share of one core, and what was lost. The collector is `rotel`, in a
process of its own, which throws away what it takes.
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
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    with collector() as ports:
        endpoint = f"http://127.0.0.1:{ports[options.protocol]}"
        figures = measure(
            endpoint, options.protocol, options.rate, options.seconds, options.kernels
        )
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")


def measure(
    endpoint: str, protocol: str, rate: float, seconds: float, kernels: int
) -> dict[str, float | int | str]:
    """Emit requests at a rate; return the figures."""
    clock = SystemClock()
    config = TelemetryConfig(ratio=1.0, otlp_endpoint=endpoint, otlp_protocol=protocol)
    telemetry = Telemetry(config, clock, run_id=b"benchmark")
    hub = EventHub(telemetry.listener)
    period_ns = round(1e9 / rate)
    start_ns = clock.now_ns() + 500_000_000
    requests = [
        request_events(i + 1, start_ns + i * period_ns, segments=1, kernels=kernels)
        for i in range(round(rate * seconds))
    ]
    telemetry.start()
    for event in load_events(segments=1, kernels=kernels, tensors=0):
        hub.emit(event)
    while clock.now_ns() < start_ns:
        time.sleep(0.001)
    cpu_start_s, own_start_s = time.process_time(), time.thread_time()
    hot_ns = [
        emit_at(hub, clock, start_ns + i * period_ns, request) for i, request in enumerate(requests)
    ]
    report = telemetry.close(timeout_s=10)
    telemetry_s = (time.process_time() - cpu_start_s) - (time.thread_time() - own_start_s)
    expected = len(requests) * (kernels + 7) + 7
    return {
        "protocol": protocol,
        "requests": len(requests),
        "kernels_per_request": kernels,
        "hot_path_us_per_request_p50": statistics.median(hot_ns) / 1e3,
        "hot_path_us_per_request_p99": statistics.quantiles(hot_ns, n=100)[98] / 1e3,
        "telemetry_us_per_span": telemetry_s / max(1, report.exported_spans) * 1e6,
        "telemetry_cores": telemetry_s / seconds,
        "expected_spans": expected,
        "exported_spans": report.exported_spans,
        "dropped_spans": report.dropped_spans,
        "dropped_events": report.dropped_events,
    }


def emit_at(hub: EventHub, clock: SystemClock, at_ns: int, events: list[Event]) -> int:
    """Emit a request's events when it is time; return how long that took."""
    while (wait_ns := at_ns - clock.now_ns()) > 0:
        time.sleep(wait_ns / 1e9)
    start_ns = time.perf_counter_ns()
    for event in events:
        hub.emit(event)
    return time.perf_counter_ns() - start_ns


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
