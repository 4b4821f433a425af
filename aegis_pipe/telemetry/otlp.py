"""Spans to an OpenTelemetry collector, through the OpenTelemetry SDK's exporters.

The only module that imports opentelemetry, and late: gRPC takes longer to import than some runs
last. The SDK's tracer and its batch processor are not used: spans come with ids and times of
their own, and queueing, giving up and closing have to be bounded (see `sinks`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from aegis_pipe.telemetry import attributes as names
from aegis_pipe.telemetry.config import TelemetryConfig
from aegis_pipe.telemetry.resources import SCOPE_NAME, Resources
from aegis_pipe.telemetry.spans import Span

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

_LOGGERS: Final = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
)


class OtlpSink:
    """Sends spans by OTLP over gRPC or HTTP, each batch once, within the configured timeout."""

    def __init__(self, config: TelemetryConfig, resources: Resources) -> None:
        self._config = config
        self._resources = resources
        self._exporter: SpanExporter | None = None
        self._convert: Callable[[Span], ReadableSpan] | None = None
        self._messages = _LastMessage()
        self.where = f"{config.otlp_endpoint} (OTLP over {config.otlp_protocol})"

    @property
    def problem(self) -> str:
        """Return the exporter's last complaint."""
        return self._messages.text

    def open(self) -> None:
        """Import the exporter and make it; it connects at the first batch."""
        # The exporters log every failed try; the run says it once (see `SinkFeeder`). First in
        # line, because the exporters' own filter keeps back what was said a while ago.
        for name in _LOGGERS:
            logging.getLogger(name).filters.insert(0, self._messages)
        self._exporter = _make_exporter(self._config)
        self._convert = make_converter(self._resources)

    def export(self, batch: Sequence[Span]) -> bool:
        """Send a batch; return whether the collector took it."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        assert self._exporter is not None
        assert self._convert is not None
        result = self._exporter.export([self._convert(span) for span in batch])
        return result is SpanExportResult.SUCCESS

    def close(self) -> None:
        """Shut the exporter down; a batch on its way is cancelled or abandoned."""
        exporter, self._exporter = self._exporter, None
        if exporter is not None:
            exporter.shutdown()
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self._messages)


class _LastMessage(logging.Filter):
    """Keeps a logger silent and remembers what it would have said."""

    text = ""

    def filter(self, record: logging.LogRecord) -> bool:
        self.text = record.getMessage()
        return False


def _make_exporter(config: TelemetryConfig) -> SpanExporter:
    timeout_s = config.otlp_timeout_ns / 1e9
    if config.otlp_protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc_exporter

        # gRPC refuses metadata with upper-case keys.
        headers = [(key.lower(), value) for key, value in config.otlp_headers]
        return grpc_exporter.OTLPSpanExporter(
            config.otlp_endpoint, headers=headers, timeout=timeout_s
        )
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as http_exporter

    return http_exporter.OTLPSpanExporter(
        _traces_url(config.otlp_endpoint), headers=dict(config.otlp_headers), timeout=timeout_s
    )


def _traces_url(endpoint: str) -> str:
    url = urlsplit(endpoint)
    return url._replace(path="/v1/traces").geturl() if url.path in ("", "/") else endpoint


def make_converter(resources: Resources) -> Callable[[Span], ReadableSpan]:
    """Return the function from our spans to the SDK's; imports it once, not per span."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags

    host, device = Resource(resources.host), Resource(resources.device)
    scope = InstrumentationScope(SCOPE_NAME)
    flags = TraceFlags(TraceFlags.SAMPLED)
    unset = Status(StatusCode.UNSET)

    def convert(span: Span) -> ReadableSpan:
        parent = SpanContext(span.trace_id, span.parent_id, span.parent_is_remote, flags)
        return ReadableSpan(
            span.name,
            context=SpanContext(span.trace_id, span.span_id, False, flags),
            parent=parent if span.parent_id else None,
            resource=device if span.on_device else host,
            attributes=span.attributes,
            events=[Event(event.name, event.attributes, event.at_ns) for event in span.events],
            links=[
                Link(SpanContext(*link.target, False, flags), {names.LINK: link.reason})
                for link in span.links
            ],
            status=Status(StatusCode.ERROR, span.error) if span.error else unset,
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=scope,
        )

    return convert
