"""A trace as one self-contained page: streams as lanes, requests, queue depth and memory below.

The page is `viewer.html`; here its data is made from spans. Columns instead of objects, numbers
instead of names: 100,000 events take some 3 MB.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from aegis_pipe.telemetry import attributes as names
from aegis_pipe.telemetry.breakdown import PARTS, RequestBreakdown, break_down, duration_ns
from aegis_pipe.telemetry.spans import Span

_Series = dict[str, list[int]]


def render_page(title: str, traces: Sequence[Sequence[Span]], ratio: float = 1.0) -> str:
    """Return the page of a run; it says so if only a share `ratio` of the requests was kept."""
    template = (files(__package__) / "viewer.html").read_text(encoding="utf-8")
    data = json.dumps(page_data(title, traces, ratio), separators=(",", ":"))
    # Inside a script element only this could end it.
    return template.replace("/*DATA*/", data.replace("</", "<\\/"))


def page_data(title: str, traces: Sequence[Sequence[Span]], ratio: float = 1.0) -> dict[str, Any]:
    """Return what the page draws; times are nanoseconds since its first span of a request."""
    requests = break_down(traces)
    work = [
        span
        for trace in traces
        for span in trace
        if span.on_device and not span.name.startswith(f"{names.STREAM_LANE} ")
    ]
    starts = [request.start_unix_ns for request in requests]
    origin_ns = min([*starts, *(span.start_ns for span in work)], default=0)
    ends = [request.start_unix_ns + request.total_ns for request in requests]
    models = sorted({request.model for request in requests})
    labels, nodes = _Table(), _Table()
    depth = _waiting(requests, origin_ns)
    sizes = _sizes(traces)
    memory = _memory(requests, sizes, _weights_bytes(traces, sizes), origin_ns)
    streams = _streams(traces, labels, nodes, origin_ns)
    return {
        "title": title,
        "ratio": ratio,
        "length_ns": max([1, *(end - origin_ns for end in ends)]),
        "event_count": len(work) + len(requests),
        "models": models,
        "parts": list(PARTS),
        "names": labels.texts,
        "nodes": nodes.texts,
        "streams": streams,
        "requests": _requests(requests, models, origin_ns),
        "depth": depth,
        "depth_top": max(depth["value"], default=0),
        "memory": memory,
        "memory_top": max(memory["value"], default=0),
    }


class _Table:
    """Texts by number."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    @property
    def texts(self) -> list[str]:
        return list(self._places)

    def place(self, text: str) -> int:
        return self._places.setdefault(text, len(self._places))


def _streams(
    traces: Iterable[Sequence[Span]], labels: _Table, nodes: _Table, origin_ns: int
) -> list[dict[str, Any]]:
    """Return what each stream did, in order of time."""
    rows: defaultdict[int, list[tuple[int, int, int, int, int]]] = defaultdict(list)
    for trace in traces:
        request_of: dict[int, int] = {}
        for span in trace:
            own = span.attributes.get(names.REQUEST_ID) if not span.on_device else None
            request_of[span.span_id] = int(str(own or request_of.get(span.parent_id, 0)))
        # Device spans come after the host's; their lanes come first among them.
        for span in trace:
            if not span.on_device or span.name.startswith(f"{names.STREAM_LANE} "):
                continue
            lane = int(str(span.attributes.get(names.STREAM, 0)))
            start_ns = span.start_ns - origin_ns
            node = str(span.attributes.get(names.NODE, ""))
            request_id = request_of[span.span_id]
            row = (
                start_ns,
                duration_ns(span),
                labels.place(span.name),
                request_id,
                nodes.place(node),
            )
            rows[lane].append(row)
    streams = []
    for lane in sorted(rows):
        start, length, label, request, node_column = zip(*sorted(rows[lane]), strict=True)
        streams.append(
            {
                "name": f"stream {lane}",
                "start": start,
                "length": length,
                "label": label,
                "request": request,
                "node": node_column,
            }
        )
    return streams


def _requests(
    requests: Sequence[RequestBreakdown], models: Sequence[str], origin_ns: int
) -> dict[str, list[Any]]:
    model_places = {model: place for place, model in enumerate(models)}
    return {
        "id": [request.request_id for request in requests],
        "model": [model_places[request.model] for request in requests],
        "start": [request.start_unix_ns - origin_ns for request in requests],
        "begin": [_begin_ns(request) - origin_ns if _ran(request) else 0 for request in requests],
        "end": [request.start_unix_ns + request.total_ns - origin_ns for request in requests],
        "missed": [int(request.deadline_missed) for request in requests],
        "outcome": [request.outcome for request in requests],
        "parts": [list(request.parts_ns.values()) for request in requests],
        "blocked": [list(request.blocked_by) for request in requests],
    }


def _ran(request: RequestBreakdown) -> bool:
    parts = request.parts_ns
    return request.total_ns > parts["wait"] + parts["decide"]


def _begin_ns(request: RequestBreakdown) -> int:
    return request.start_unix_ns + request.parts_ns["wait"] + request.parts_ns["decide"]


def _waiting(requests: Iterable[RequestBreakdown], origin_ns: int) -> _Series:
    """Return how many of the requests that are in the trace waited at each instant."""
    changes = []
    for request in requests:
        changes.append((request.start_unix_ns - origin_ns, 1))
        changes.append((request.start_unix_ns + request.parts_ns["wait"] - origin_ns, -1))
    return _summed(0, changes)


def _memory(
    requests: Iterable[RequestBreakdown],
    sizes: dict[str, tuple[int, int]],
    weights_bytes: int,
    origin_ns: int,
) -> _Series:
    """Return weights, and the arenas' parts that running requests use, at each instant."""
    changes = []
    for request in requests:
        arena = sizes.get(request.model, (0, 0))[1]
        if arena and _ran(request):
            end_ns = request.start_unix_ns + request.total_ns
            changes.append((_begin_ns(request) - origin_ns, arena))
            changes.append((end_ns - origin_ns, -arena))
    return _summed(weights_bytes, changes)


def _summed(start: int, changes: list[tuple[int, int]]) -> _Series:
    at, values, value = [0], [start], start
    for instant, change in sorted(changes):
        value += change
        if instant == at[-1]:
            values[-1] = value
        else:
            at.append(instant)
            values.append(value)
    return {"at": at, "value": values}


def _sizes(traces: Iterable[Sequence[Span]]) -> dict[str, tuple[int, int]]:
    """Return weights and arena of each model, from the load traces, if they are there."""
    return {
        str(span.attributes[names.MODEL]): (
            int(str(span.attributes[names.WEIGHTS_BYTES])),
            int(str(span.attributes[names.ARENA_BYTES])),
        )
        for trace in traces
        for span in trace
        if names.ARENA_BYTES in span.attributes and names.MODEL in span.attributes
    }


def _weights_bytes(traces: Iterable[Sequence[Span]], sizes: dict[str, tuple[int, int]]) -> int:
    """Return the size of the weights' pool, where those that models share lie once.

    Without the trace of the start, the sum of what each model has.
    """
    pools = [
        int(str(span.attributes[f"{names.PHASE_PREFIX}size_bytes"]))
        for trace in traces
        for span in trace
        if span.attributes.get(f"{names.PHASE_PREFIX}pool") == "weights"
        and f"{names.PHASE_PREFIX}size_bytes" in span.attributes
    ]
    return max(pools, default=sum(weights for weights, _ in sizes.values()))
