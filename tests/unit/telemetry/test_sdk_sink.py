"""Spans to exporters of the OpenTelemetry SDK, with the SDK's own."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import pytest
from opentelemetry import context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from aegis_pipe.clock import SystemClock
from aegis_pipe.events import EventHub
from aegis_pipe.telemetry import Telemetry, TelemetryConfig, TelemetryReport
from aegis_pipe.testing.event_sequences import START_NS, run_events


class StoppedClock(SystemClock):
    """Stands still when the events begin, so that everything settles at the end."""

    now_ns = staticmethod(lambda: START_NS)


class NoisyExporter(InMemorySpanExporter):
    """Fails in the way it is told to; notes under what context it is called."""

    def __init__(self, result: SpanExportResult = SpanExportResult.SUCCESS) -> None:
        super().__init__()
        self.result = result
        self.are_suppressed: set[object] = set()
        self.shutdowns = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.are_suppressed.add(context.get_value(context._SUPPRESS_INSTRUMENTATION_KEY))
        super().export(spans)
        return self.result

    def shutdown(self) -> None:
        self.shutdowns += 1
        raise RuntimeError("no end")


def run(*exporters: SpanExporter) -> TelemetryReport:
    config = TelemetryConfig(ratio=1.0, service_name="street-corner")
    telemetry = Telemetry(config, StoppedClock(), run_id=b"run", span_exporters=exporters)
    hub = EventHub(telemetry.listener)
    telemetry.start()
    for event in run_events():
        hub.emit(event)
    return telemetry.close(timeout_s=30)


def test_every_span_arrives_as_the_sdk_has_it() -> None:
    exporter = InMemorySpanExporter()
    report = run(exporter)
    spans = exporter.get_finished_spans()
    assert len(spans) == report.exported_spans > 300
    assert (report.dropped_spans, report.failed_exports) == (0, 0)
    assert report.where == ("InMemorySpanExporter (OpenTelemetry SDK)",)
    by_id = {(span.context.trace_id, span.context.span_id): span for span in spans}
    assert len(by_id) == len(spans)
    for span in spans:
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.end_time >= span.start_time
        if span.parent is not None:
            parent = by_id[span.parent.trace_id, span.parent.span_id]
            assert parent.start_time is not None
            assert parent.start_time <= span.start_time
        for link in span.links:
            assert (link.context.trace_id, link.context.span_id) in by_id
    services = {str(span.resource.attributes["service.name"]) for span in spans}
    assert services == {"street-corner", "street-corner/cpu"}
    failed = [span for span in spans if span.status.status_code is StatusCode.ERROR]
    assert any("refused its data" in str(span.status.description) for span in failed)


def test_the_exporter_is_shut_down_once() -> None:
    exporter = InMemorySpanExporter()
    run(exporter)
    assert exporter.export(()) is SpanExportResult.FAILURE


def test_the_console_prints_every_span() -> None:
    output = io.StringIO()
    report = run(ConsoleSpanExporter(out=output, formatter=lambda span: span.to_json(None) + "\n"))
    printed = [json.loads(line) for line in output.getvalue().splitlines()]
    assert len(printed) == report.exported_spans
    infer = next(span for span in printed if span["name"] == "infer detector")
    assert infer["attributes"]["aegis.model"] == "detector"
    assert infer["kind"] == "SpanKind.INTERNAL"


def test_several_exporters_get_the_same() -> None:
    one, other = InMemorySpanExporter(), InMemorySpanExporter()
    run(one, other)
    first, second = (
        [span.to_json() for span in exporter.get_finished_spans()] for exporter in (one, other)
    )
    assert first == second


def test_what_the_exporter_does_itself_is_not_traced() -> None:
    exporter = NoisyExporter()
    run(exporter)
    assert exporter.are_suppressed == {True}


def test_a_failing_exporter_is_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    exporter = NoisyExporter(SpanExportResult.FAILURE)
    report = run(exporter)
    assert (report.exported_spans, report.failed_exports) == (0, 1)
    assert report.dropped_spans > 300
    assert "NoisyExporter (OpenTelemetry SDK)" in caplog.text


def test_an_exporter_that_can_not_be_shut_down_does_not_stop_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exporter = NoisyExporter()
    report = run(exporter)
    assert report.exported_spans > 300
    assert exporter.shutdowns == 1
    assert "could not be shut down" in caplog.text
