"""Spans to a file of OTLP JSON lines, the form in which Jaeger's upload takes them.

One line is one `ExportTraceServiceRequest` in OTLP's JSON mapping, which differs from protobuf's
own: ids in hexadecimal, enumerations as numbers; 64-bit integers are strings in both
(opentelemetry.io/docs/specs/otlp, "JSON Protobuf Encoding"). Written from our spans directly,
so that a run with only a file needs no protobuf.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from aegis_pipe.telemetry import attributes as names
from aegis_pipe.telemetry.files import LineFile
from aegis_pipe.telemetry.numbers import json_number
from aegis_pipe.telemetry.resources import SCOPE_NAME, Resources
from aegis_pipe.telemetry.spans import AttributeValue, Span, Trace, expand

_KIND_INTERNAL: Final = 1
_STATUS_ERROR: Final = 2
_FLAG_REMOTENESS_KNOWN: Final = 0x100
_FLAG_PARENT_IS_REMOTE: Final = 0x200


class OtlpJsonSink:
    """Writes a line per trace. Making it raises a PermanentError if the file can not be."""

    def __init__(self, path: Path, resources: Resources) -> None:
        self._file = LineFile(path)
        self._resources = resources
        self.where = self._file.where

    @property
    def problem(self) -> str:
        """Return what the file system said."""
        return self._file.problem

    def open(self) -> None:
        """Do nothing: the file was opened when this was made, so that a wrong path stops there."""

    def export(self, batch: Trace) -> bool:
        """Write the batch's traces and flush; return whether that went well."""
        traces = groupby(batch, key=lambda part: part.trace_id)
        return self._file.write(to_json_line(list(parts), self._resources) for _, parts in traces)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def to_json_line(batch: Trace, resources: Resources) -> str:
    """Return the batch as an OTLP JSON export request, without the line's end."""
    spans = list(expand(batch))
    services = (
        (resources.host, [span for span in spans if not span.on_device]),
        (resources.device, [span for span in spans if span.on_device]),
    )
    request = {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes(resource)},
                "scopeSpans": [
                    {"scope": {"name": SCOPE_NAME}, "spans": [_span(span) for span in spans]}
                ],
            }
            for resource, spans in services
            if spans
        ]
    }
    return json.dumps(request, separators=(",", ":"))


def _span(span: Span) -> dict[str, Any]:
    remoteness = _FLAG_PARENT_IS_REMOTE if span.parent_is_remote else 0
    line: dict[str, Any] = {
        "traceId": f"{span.trace_id:032x}",
        "spanId": f"{span.span_id:016x}",
        "name": span.name,
        "kind": _KIND_INTERNAL,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _attributes(span.attributes),
        "status": {"code": _STATUS_ERROR, "message": span.error} if span.error else {},
        "flags": _FLAG_REMOTENESS_KNOWN | remoteness,
    }
    if span.parent_id:
        line["parentSpanId"] = f"{span.parent_id:016x}"
    if span.links:
        line["links"] = [
            {
                "traceId": f"{link.target.trace_id:032x}",
                "spanId": f"{link.target.span_id:016x}",
                "attributes": _attributes({names.LINK: link.reason}),
                "flags": _FLAG_REMOTENESS_KNOWN,
            }
            for link in span.links
        ]
    if span.events:
        line["events"] = [
            {
                "timeUnixNano": str(event.at_ns),
                "name": event.name,
                "attributes": _attributes(event.attributes),
            }
            for event in span.events
        ]
    return line


def _attributes(values: Mapping[str, AttributeValue]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _any_value(value)} for key, value in values.items()]


def _any_value(value: AttributeValue) -> dict[str, Any]:
    match value:
        case bool():  # Before int: a bool is one.
            return {"boolValue": value}
        case str():
            return {"stringValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": json_number(value)}
        case _:
            return {"arrayValue": {"values": [_any_value(part) for part in value]}}
