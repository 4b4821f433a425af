"""Reads what `OtlpJsonSink` wrote: files of OTLP JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aegis_pipe.errors import InvalidInputError, PermanentError
from aegis_pipe.telemetry import attributes as names
from aegis_pipe.telemetry.ids import SpanReference
from aegis_pipe.telemetry.resources import Resources
from aegis_pipe.telemetry.spans import AttributeValue, Span, SpanEvent, SpanLink

_STATUS_ERROR = 2
_FLAG_PARENT_IS_REMOTE = 0x200


class RecordedRun(NamedTuple):
    """The spans of one run; a file may hold several, one after the other."""

    resources: Resources
    traces: Sequence[Sequence[Span]]
    """Host spans first in each, parents before children."""


def read_runs(path: Path) -> list[RecordedRun]:
    """Read a file, run by run in the order of their first trace.

    Raises a PermanentError if it can not be read, and an InvalidInputError that names the line if
    it is not OTLP JSON.
    """
    runs: dict[str, RecordedRun] = {}
    for services in _lines(path):
        host, device = _split(services)
        run = runs.setdefault(
            str(host.get("service.instance.id", "")),
            RecordedRun(Resources(dict(host), dict(device)), []),
        )
        # A run's first traces may have no device spans, and so not tell the device's service.
        if device and not run.resources.device:
            run.resources.device.update(device)
        assert isinstance(run.traces, list)
        run.traces.append([span for _, spans in services for span in spans])
    return list(runs.values())


_Service = tuple[Mapping[str, str], list[Span]]


def _lines(path: Path) -> Iterator[list[_Service]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _services(path, number, line)
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"`{path}` is no text, and so not OTLP JSON",
            context="trace",
            hint="name the file that the manifest's `telemetry.file` writes",
        ) from error
    except OSError as error:
        raise PermanentError(
            f"can not read `{path}`: {error.strerror}",
            context="trace",
            hint="name the file that the manifest's `telemetry.file` writes",
        ) from error


def _services(path: Path, number: int, line: str) -> list[_Service]:
    try:
        request = json.loads(line)
        services: list[_Service] = []
        for resource in request["resourceSpans"]:
            values = {key: str(value) for key, value in _attributes(resource["resource"]).items()}
            on_device = "/" in values.get("service.name", "")
            spans = [
                _span(span, on_device)
                for scope in resource["scopeSpans"]
                for span in scope["spans"]
            ]
            services.append((values, spans))
        return services
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InvalidInputError(
            f"`{path}`, line {number}: not a line of OTLP JSON ({error!r})",
            context="trace",
            hint="the manifest's `telemetry.file` writes such files; the last line of a run that "
            "was killed may be cut off: delete it",
        ) from error


def _split(services: Sequence[_Service]) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return the attributes of host and device; of the host even if only the device is there."""
    host: Mapping[str, str] = {}
    device: Mapping[str, str] = {}
    for values, _ in services:
        if "/" in values.get("service.name", ""):
            device = values
        else:
            host = values
    if not host:
        host = {**device, "service.name": device["service.name"].partition("/")[0]}
    return host, device


def _span(span: Mapping[str, Any], on_device: bool) -> Span:
    status = span.get("status", {})
    is_error = status.get("code") == _STATUS_ERROR
    return Span(
        int(span["traceId"], 16),
        int(span["spanId"], 16),
        int(span.get("parentSpanId") or "0", 16),
        bool(span.get("flags", 0) & _FLAG_PARENT_IS_REMOTE),
        span["name"],
        int(span["startTimeUnixNano"]),
        int(span["endTimeUnixNano"]),
        _attributes(span),
        (status.get("message") or "error") if is_error else "",
        on_device,
        tuple(
            SpanLink(
                SpanReference(int(link["traceId"], 16), int(link["spanId"], 16)),
                str(_attributes(link).get(names.LINK, "")),
            )
            for link in span.get("links", ())
        ),
        tuple(
            SpanEvent(int(event["timeUnixNano"]), event["name"], _attributes(event))
            for event in span.get("events", ())
        ),
    )


def _attributes(holder: Mapping[str, Any]) -> dict[str, AttributeValue]:
    return {pair["key"]: _value(pair["value"]) for pair in holder.get("attributes", ())}


def _value(value: Mapping[str, Any]) -> Any:
    ((kind, content),) = value.items()
    match kind:
        case "intValue":
            return int(content)
        case "doubleValue":
            return float(content)
        case "arrayValue":
            return [_value(part) for part in content.get("values", ())]
        case _:
            return content
