"""A run's log, rebuilt from its traces alone: the lines and fields that explain its requests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

from aegis_pipe.errors import PermanentError
from aegis_pipe.telemetry import attributes as names
from aegis_pipe.telemetry.breakdown import duration_ns
from aegis_pipe.telemetry.decisions import decisions
from aegis_pipe.telemetry.json_log import JsonLogFormat, request_name, stream_name
from aegis_pipe.telemetry.spans import Span

_TIMES = 4
"""Numbers that `aegis.segment_times_ns` has of a segment."""


def log_lines(traces: Sequence[Sequence[Span]]) -> Iterator[dict[str, Any]]:
    """Yield parsed lines as the run's log has them, by kind and not by time.

    Whole: `schedule_decision`. In part: `request_submitted` and `request_finished` (identity,
    priority, outcome, times, deadline), `segment_finished` (without kernels), `copy_finished` and
    `manifest_reloaded` (times). Raises a PermanentError if the traces do not tell a segment's
    times.
    """
    # Spans have the time of the log already.
    line_format = JsonLogFormat(lambda instant_ns: instant_ns)
    for decision in decisions(traces):
        yield line_format.values(decision)
    for trace in traces:
        children: defaultdict[int, list[Span]] = defaultdict(list)
        for span in trace:
            children[span.parent_id].append(span)
        for span in trace:
            if span.name.startswith(f"{names.INFER} "):
                yield from _of_request(span, children)
            elif span.name == names.RELOAD:
                end_ns = span.start_ns + duration_ns(span)
                yield {"event": "manifest_reloaded", "start_ns": span.start_ns, "end_ns": end_ns}


def dropped_events(traces: Iterable[Sequence[Span]]) -> int:
    """Return how many events the run is known to have lost."""
    counts = [span.attributes.get(names.DROPPED_EVENTS, 0) for trace in traces for span in trace]
    return max(map(cast(Any, int), counts), default=0)


def _of_request(infer: Span, children: dict[int, list[Span]]) -> Iterator[dict[str, Any]]:
    values = cast(dict[str, Any], infer.attributes)
    named = {"request_id": request_name(values[names.REQUEST_ID]), "model": values[names.MODEL]}
    # Not that of `infer`, which viewers may want to see moved.
    arrival_ns = next(s.start_ns for s in children[infer.span_id] if s.name == names.QUEUE_WAIT)
    if names.PRIORITY in values:
        yield {"event": "request_submitted", **named, "priority": values[names.PRIORITY]}
    allowed_ns = values.get(names.DEADLINE_NS)
    yield {
        "event": "request_finished",
        **named,
        "outcome": values[names.OUTCOME],
        "reason": values.get(names.REASON, ""),
        "arrival_ns": arrival_ns,
        "deadline_ns": None if allowed_ns is None else arrival_ns + allowed_ns,
        "deadline_missed": values[names.DEADLINE_MISSED],
        "timestamp": arrival_ns + values.get(names.LIVED_NS, duration_ns(infer)),
    }
    for execute in children[infer.span_id]:
        if execute.name == names.EXECUTE:
            for lane in children[execute.span_id]:
                if lane.name.startswith(f"{names.STREAM_LANE} "):
                    yield from _of_lane(lane, children[lane.span_id], named, arrival_ns)


def _of_lane(
    lane: Span, work: Iterable[Span], named: dict[str, Any], arrival_ns: int
) -> Iterator[dict[str, Any]]:
    values = cast(dict[str, Any], lane.attributes)
    times = values.get(names.SEGMENT_TIMES_NS, ())
    if len(times) != _TIMES * values[names.SEGMENTS]:
        raise PermanentError(
            f"the trace of {named['request_id']} does not tell when its segments were launched",
            context="trace",
            hint="it was written by another version of aegis-pipe: record the run again, or "
            "explain it from its log (`telemetry.log`)",
        )
    ran = {**named, "model": values.get(names.MODEL, named["model"])}
    for place in range(0, len(times), _TIMES):
        segment, launch_ns, start_ns, end_ns = times[place : place + _TIMES]
        yield {
            "event": "segment_finished",
            **ran,
            "segment": segment,
            "stream_id": stream_name(values[names.STREAM]),
            "launch_ns": arrival_ns + launch_ns,
            "start_ns": arrival_ns + start_ns,
            "end_ns": arrival_ns + end_ns,
        }
    for span in work:
        if span.name.startswith(f"{names.COPY}."):
            end_ns = span.start_ns + duration_ns(span)
            yield {"event": "copy_finished", **named, "start_ns": span.start_ns, "end_ns": end_ns}
