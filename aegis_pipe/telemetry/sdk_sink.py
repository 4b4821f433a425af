"""Spans to any exporter written for the OpenTelemetry SDK.

For destinations that speak neither OTLP nor a file: a vendor's exporter, or a list in a test. The
SDK takes about 30 us a span on the interpreter that the requests need too; for OTLP use the
manifest's `telemetry.otlp`. The SDK is imported late: a run without such an exporter needs none.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from aegis_pipe.telemetry import attributes as names
from aegis_pipe.telemetry.resources import SCOPE_NAME, Resources
from aegis_pipe.telemetry.spans import Span, Trace, expand

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    # With `as`: others that are handed exporters name the type from here.
    from opentelemetry.sdk.trace.export import SpanExporter as SpanExporter

_log = logging.getLogger(__name__)


class SdkSink:
    """Hands spans to an SDK exporter, each batch once; owns the exporter and shuts it down."""

    def __init__(self, exporter: SpanExporter, resources: Resources) -> None:
        self._exporter = exporter
        self._resources = resources
        self._spans: SdkSpans | None = None
        self._is_closed = False
        self.where = f"{type(exporter).__name__} (OpenTelemetry SDK)"
        self.problem = "the exporter reports a failure"

    def open(self) -> None:
        """Import the SDK."""
        self._spans = SdkSpans(self._resources)

    def export(self, batch: Trace) -> bool:
        """Convert a batch and hand it over; return whether the exporter calls it a success."""
        from opentelemetry import context
        from opentelemetry.sdk.trace.export import SpanExportResult

        assert self._spans is not None
        readable = [self._spans.convert(span) for span in expand(batch)]
        # As the SDK's own processors do: the exporter's requests must not be traced themselves.
        suppressed = context.set_value(context._SUPPRESS_INSTRUMENTATION_KEY, True)
        token = context.attach(suppressed)
        try:
            return self._exporter.export(readable) is SpanExportResult.SUCCESS
        finally:
            context.detach(token)

    def close(self) -> None:
        """Shut the exporter down; how long that takes is up to the exporter."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._exporter.shutdown()
        except Exception:
            # Foreign code: its fault must neither end the run nor stay unheard.
            _log.exception("%s could not be shut down; going on", self.where)


class SdkSpans:
    """Makes the SDK's spans from ours."""

    def __init__(self, resources: Resources) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import TraceFlags

        self._host = Resource(resources.host)
        self._device = Resource(resources.device)
        self._scope = InstrumentationScope(SCOPE_NAME)
        self._flags = TraceFlags(TraceFlags.SAMPLED)

    def convert(self, span: Span) -> ReadableSpan:
        """Return a span as the SDK has it."""
        from opentelemetry.sdk.trace import Event, ReadableSpan
        from opentelemetry.trace import Link, SpanContext, Status, StatusCode

        parent = SpanContext(span.trace_id, span.parent_id, span.parent_is_remote, self._flags)
        return ReadableSpan(
            span.name,
            context=SpanContext(span.trace_id, span.span_id, False, self._flags),
            parent=parent if span.parent_id else None,
            resource=self._device if span.on_device else self._host,
            attributes=span.attributes,
            events=[Event(event.name, event.attributes, event.at_ns) for event in span.events],
            links=[
                Link(SpanContext(*link.target, False, self._flags), {names.LINK: link.reason})
                for link in span.links
            ],
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self._scope,
        )
