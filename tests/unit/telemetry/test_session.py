from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aegis_pipe.clock import SystemClock
from aegis_pipe.errors import PermanentError
from aegis_pipe.events import EventHub
from aegis_pipe.telemetry import Telemetry, TelemetryConfig, TelemetryReport
from aegis_pipe.testing.event_sequences import START_NS, run_events


class StoppedClock(SystemClock):
    """Stands still when the events begin, so that everything settles at the end."""

    now_ns = staticmethod(lambda: START_NS)

    def to_unix_ns(self, instant_ns: int) -> int:
        return instant_ns + 1_700_000_000_000_000_000


def run(config: TelemetryConfig) -> TelemetryReport:
    telemetry = Telemetry(config, StoppedClock(), run_id=b"fixed")
    hub = EventHub(telemetry.listener)
    telemetry.start()
    for event in run_events():
        hub.emit(event)
    return telemetry.close(timeout_s=30)


def test_files_hold_every_event_and_every_span(tmp_path: Path) -> None:
    log, trace = tmp_path / "events.jsonl", tmp_path / "trace.json"
    report = run(TelemetryConfig(ratio=1.0, log_path=log, otlp_json_path=trace))
    assert len(log.read_text().splitlines()) == len(run_events())
    spans = [
        span
        for line in trace.read_text().splitlines()
        for service in json.loads(line)["resourceSpans"]
        for span in service["scopeSpans"][0]["spans"]
    ]
    assert len(spans) == report.exported_spans > 300
    assert report[1:6] == (0, 0, 0, 0, 0)
    assert report.where == (str(trace), str(log))


def test_same_events_and_run_id_give_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        log, trace = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.json"
        run(TelemetryConfig(ratio=0.5, log_path=log, otlp_json_path=trace))
        files.append((log.read_bytes(), b"".join(sorted(trace.read_bytes().splitlines()))))
    assert files[0] == files[1]


def test_a_ring_that_is_too_small_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Telemetry(TelemetryConfig(ring_capacity=10), SystemClock())
    events = run_events()
    for event in events:
        telemetry.listener(event)
    telemetry.start()
    assert telemetry.close().dropped_events == len(events) - 10
    assert "raise `telemetry.ring_capacity`" in caplog.text


def test_an_unwritable_log_stops_the_start(tmp_path: Path) -> None:
    telemetry = Telemetry(TelemetryConfig(log_path=tmp_path), SystemClock())
    with pytest.raises(PermanentError, match="can not write"):
        telemetry.start()


def test_an_unwritable_trace_file_closes_the_log(tmp_path: Path) -> None:
    config = TelemetryConfig(log_path=tmp_path / "log", otlp_json_path=tmp_path)
    with pytest.raises(PermanentError, match="can not write"):
        Telemetry(config, SystemClock()).start()


def test_a_full_disk_costs_the_lines_only(caplog: pytest.LogCaptureFixture) -> None:
    report = run(TelemetryConfig(log_path=Path("/dev/full")))
    assert report.lost_log_lines == len(run_events())
    assert "events are not logged to /dev/full" in caplog.text


def test_no_file_stays_open_when_the_time_for_the_end_is_over(tmp_path: Path) -> None:
    log, trace = tmp_path / "events.jsonl", tmp_path / "trace.json"
    config = TelemetryConfig(ratio=1.0, log_path=log, otlp_json_path=trace)
    telemetry = Telemetry(config, StoppedClock())
    telemetry.start()
    for event in run_events(2_000):
        telemetry.listener(event)
    telemetry.close(timeout_s=0)
    still_open = {file.path for file in psutil.Process().open_files()}
    assert still_open.isdisjoint({str(log), str(trace)})


@pytest.mark.parametrize(
    ("kernels", "expected"), [("always", 1000), ("never", 0), ("sampled", range(60, 140))]
)
def test_stamping_follows_the_setting(kernels: str, expected: int | range) -> None:
    telemetry = Telemetry(TelemetryConfig(kernels=kernels, ratio=0.1), SystemClock(), run_id=b"1")
    stamped = sum(telemetry.is_stamped(request_id) for request_id in range(1000))
    assert stamped == expected or (isinstance(expected, range) and stamped in expected)


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("telemetry.otlp.protocol", {"otlp_protocol": "udp"}),
        ("telemetry.otlp.endpoint", {"otlp_endpoint": "localhost:4317"}),
        ("telemetry.otlp.timeout", {"otlp_timeout_ns": 0}),
        ("telemetry.traces.ratio", {"ratio": 1.5}),
        ("telemetry.traces.always", {"always": ("sometimes",)}),
        ("telemetry.traces.kernels", {"kernels": "all"}),
        ("telemetry.ring_capacity", {"ring_capacity": 0}),
    ],
)
def test_settings_that_can_not_be_are_refused_by_name(
    key: str, settings: dict[str, object]
) -> None:
    with pytest.raises(PermanentError, match=f"`{key}`"):
        TelemetryConfig(**settings)  # type: ignore[arg-type]  # wrong on purpose


def test_exporting_gives_way_to_requests_but_not_for_ever() -> None:
    exporter = InMemorySpanExporter()
    telemetry = Telemetry(TelemetryConfig(ratio=1.0), SystemClock(), span_exporters=[exporter])
    asked: list[None] = []
    telemetry.lull.watch(lambda: asked.append(None))  # One runs all the time.
    telemetry.start()
    hub = EventHub(telemetry.listener)
    for event in run_events():
        hub.emit(event)
    end_s = time.monotonic() + 30
    while not exporter.get_finished_spans() and time.monotonic() < end_s:
        time.sleep(0.01)
    assert exporter.get_finished_spans(), "nothing is exported while requests run"
    assert asked, "nobody asked whether requests run"
    assert telemetry.close(timeout_s=30).dropped_spans == 0
