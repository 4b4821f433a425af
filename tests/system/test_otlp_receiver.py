"""Spans over the wire to real OTLP receivers, and an end in time when there is none."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from aegis_pipe.clock import SystemClock
from aegis_pipe.events import Event, EventHub
from aegis_pipe.telemetry import Telemetry, TelemetryConfig, TelemetryReport
from aegis_pipe.telemetry.session import CLOSE_TIMEOUT_S
from aegis_pipe.testing.event_sequences import START_NS, load_events, request_events, run_events
from tests.system.receiving import Collector, attributes, free_port, rotel, serving, wait_for

REQUESTS = 150
RUN_ID = b"run over the wire"


class AnchoredClock(SystemClock):
    """Runs like the system's, from where the events begin."""

    def __init__(self) -> None:
        super().__init__()
        self._anchor_ns = time.monotonic_ns() - START_NS

    def now_ns(self) -> int:
        return time.monotonic_ns() - self._anchor_ns

    def to_unix_ns(self, instant_ns: int) -> int:
        return super().to_unix_ns(instant_ns + self._anchor_ns)


def run(
    events: list[Event], endpoint: str, protocol: str = "grpc", **settings: object
) -> TelemetryReport:
    config = TelemetryConfig(
        ratio=1.0,
        service_name="street-corner",
        otlp_endpoint=endpoint,
        otlp_protocol=protocol,
        **settings,  # type: ignore[arg-type]  # each test sets what it is about
    )
    telemetry = Telemetry(config, AnchoredClock(), run_id=RUN_ID)
    hub = EventHub(telemetry.listener)
    telemetry.start()
    for event in events:
        hub.emit(event)
    return telemetry.close()


def many_events() -> list[Event]:
    events = run_events()
    for request_id in range(100, 100 + REQUESTS):
        events += request_events(request_id, START_NS + request_id * 400_000)
    return events


def check_traces(collector: Collector, report: TelemetryReport) -> None:
    """Compare what arrived with the report, and with what a trace has to be."""
    spans = {(span.trace_id, span.span_id): span for _, span in collector.spans}
    assert len(spans) == len(collector.spans) == report.exported_spans
    assert (report.dropped_events, report.dropped_spans, report.failed_exports) == (0, 0, 0)
    for service, span in collector.spans:
        assert span.end_time_unix_nano >= span.start_time_unix_nano > 0
        assert service == ("street-corner/cpu" if is_device(span.name) else "street-corner")
        if span.parent_span_id:
            parent = spans[span.trace_id, span.parent_span_id]
            assert parent.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= parent.end_time_unix_nano
        for link in span.links:
            assert (link.trace_id, link.span_id) in spans
    names = [span.name for span in spans.values()]
    assert names.count("infer detector") == 25 + REQUESTS
    failed = [span for span in spans.values() if span.status.code == Status.STATUS_CODE_ERROR]
    assert sorted(attributes(span.attributes)["aegis.request.id"] for span in failed) == [
        21,
        22,
        23,
    ]


def is_device(name: str) -> bool:
    return name.startswith(("stream ", "copy.")) or name in ("Conv", "Relu", "MatMul", "segment")


def test_every_span_arrives_over_grpc_with_the_headers() -> None:
    collector = Collector()
    with serving(collector) as port:
        headers = (("X-Tenant", "blue"),)
        report = run(many_events(), f"http://127.0.0.1:{port}", otlp_headers=headers)
    check_traces(collector, report)
    assert collector.metadata["x-tenant"] == "blue"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_every_span_passes_a_real_collector(protocol: str, tmp_path: Path) -> None:
    collector = Collector()
    with serving(collector) as port, rotel(port, tmp_path) as ports:
        report = run(many_events(), f"http://127.0.0.1:{ports[protocol]}", protocol)
        wait_for(lambda: len(collector.spans) >= report.exported_spans)
    check_traces(collector, report)


@contextmanager
def dead() -> Iterator[int]:
    yield free_port()


@contextmanager
def blackhole() -> Iterator[int]:
    """Accept connections, never answer."""
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

        thread = threading.Thread(target=refuse)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("collector", [dead, blackhole, refusing])
def test_without_a_collector_the_end_is_bounded_and_the_loss_counted(
    protocol: str, collector: Callable[[], Iterator[int]], caplog: pytest.LogCaptureFixture
) -> None:
    with collector() as port:  # type: ignore[attr-defined]  # a context manager by decoration
        config = TelemetryConfig(
            ratio=1.0, otlp_endpoint=f"http://127.0.0.1:{port}", otlp_protocol=protocol
        )
        telemetry = Telemetry(config, AnchoredClock())
        telemetry.start()
        for event in many_events():
            telemetry.listener(event)
        start_s = time.monotonic()
        report = telemetry.close()
        close_s = time.monotonic() - start_s
    # The bound itself, with room for a machine that is busy with other things.
    assert close_s < CLOSE_TIMEOUT_S + 1.0
    assert report.exported_spans == 0
    assert report.dropped_spans > 2_000
    assert report.failed_exports <= 1
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == report.failed_exports
    assert all("start a collector there" in record.getMessage() for record in warnings)


def test_a_collector_that_says_no_costs_the_spans_only(caplog: pytest.LogCaptureFixture) -> None:
    collector = Collector(grpc.StatusCode.UNAUTHENTICATED)
    with serving(collector) as port:
        report = run(load_events(), f"http://127.0.0.1:{port}")
    assert (report.exported_spans, report.dropped_spans, report.failed_exports) == (0, 7, 1)
    (warning,) = caplog.records
    assert "not today" in warning.getMessage()


def test_a_dead_collector_takes_nothing_from_the_files(tmp_path: Path) -> None:
    log, trace = tmp_path / "log.jsonl", tmp_path / "trace.json"
    with blackhole() as port:
        events = many_events()
        report = run(events, f"http://127.0.0.1:{port}", log_path=log, otlp_json_path=trace)
    file_report, _ = report.sinks
    assert len(log.read_text().splitlines()) == len(events)
    assert file_report.exported_spans > 2_000
    assert (file_report.dropped_spans, report.lost_log_lines) == (0, 0)
