"""Traces for Perfetto and chrome://tracing, in Chrome's JSON trace format.

Requests, pipeline items and loads overlap, so they are asynchronous tracks, one row each as long as
it is needed; a stream runs one thing at a time, so it is a thread. Times are microseconds since the
first span, with nanoseconds as decimals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from aegis_pipe.telemetry import attributes as names
from aegis_pipe.telemetry.numbers import json_number
from aegis_pipe.telemetry.spans import AttributeValue, Span

_REQUESTS: Final = 1
_DEVICE: Final = 2
_LOADING: Final = 3
_FIRST_STREAM: Final = 100
"""Thread of stream 0; one of the same number as its process would be shown as the main thread."""
_PROCESSES: Final = {_REQUESTS: "requests", _DEVICE: "device", _LOADING: "loading"}


def to_events(traces: Iterable[Sequence[Span]]) -> Iterator[dict[str, Any]]:
    """Yield the trace events of a run."""
    traces = list(traces)
    origin_ns = min((span.start_ns for trace in traces for span in trace), default=0)
    for process, name in _PROCESSES.items():
        yield {"ph": "M", "pid": process, "name": "process_name", "args": {"name": name}}
    streams: set[int] = set()
    for trace in traces:
        for span in trace:
            if span.on_device and not span.name.startswith(f"{names.STREAM_LANE} "):
                stream = int(str(span.attributes.get(names.STREAM, 0)))
                streams.add(stream)
                yield _complete(span, origin_ns, stream)
            elif not span.on_device:
                yield from _host(trace, span, origin_ns)
    for stream in sorted(streams):
        yield {
            "ph": "M",
            "pid": _DEVICE,
            "tid": _FIRST_STREAM + stream,
            "name": "thread_name",
            "args": {"name": f"stream {stream}"},
        }


def _host(trace: Sequence[Span], span: Span, origin_ns: int) -> Iterator[dict[str, Any]]:
    root = trace[0]
    is_load = not root.name.startswith((f"{names.INFER} ", f"{names.PIPELINE_ITEM} "))
    common = {
        "cat": root.name.partition(" ")[0],
        "id2": {"local": f"0x{span.trace_id:032x}"},
        "pid": _LOADING if is_load else _REQUESTS,
        "tid": 1,
        "name": span.name,
    }
    yield {"ph": "b", "ts": _us(span.start_ns, origin_ns), "args": _arguments(span), **common}
    yield {"ph": "e", "ts": _us(span.end_ns, origin_ns), **common}
    if span.name.startswith(f"{names.INFER} "):
        depth = span.attributes.get(names.QUEUE_DEPTH)
        if depth is not None:
            yield {
                "ph": "C",
                "pid": _REQUESTS,
                "name": "requests waiting",
                "ts": _us(span.start_ns, origin_ns),
                "args": {"waiting": depth},
            }
        if span.attributes.get(names.DEADLINE_MISSED):
            yield {
                "ph": "i",
                "s": "g",
                "pid": _REQUESTS,
                "tid": 1,
                "name": f"deadline missed: {span.name.partition(' ')[2]}",
                "ts": _us(span.end_ns, origin_ns),
            }


def _complete(span: Span, origin_ns: int, stream: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "pid": _DEVICE,
        "tid": _FIRST_STREAM + stream,
        "name": span.name,
        "ts": _us(span.start_ns, origin_ns),
        "dur": (span.end_ns - span.start_ns) / 1000,
        "args": _arguments(span),
    }


def _us(instant_ns: int, origin_ns: int) -> float:
    return (instant_ns - origin_ns) / 1000


def _arguments(span: Span) -> Mapping[str, Any]:
    values = {key: _plain(value) for key, value in span.attributes.items()}
    return {**values, "error": span.error} if span.error else values


def _plain(value: AttributeValue) -> Any:
    if isinstance(value, float):
        return json_number(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    return value
