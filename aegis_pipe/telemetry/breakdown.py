"""What became of each request's time, from its spans alone: parts that add up to the whole."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from aegis_pipe.telemetry import attributes as names
from aegis_pipe.telemetry.spans import Span

PARTS: Final = {
    "wait": "in the queue",
    "decide": "the scheduler's decision to start it",
    "launch": "from that decision to the first work on a stream; with `in_flight` above 1 also "
    "behind the request before",
    "copy": "inputs to the device, outputs to the host",
    "run": "kernels",
    "between": "between its segments: decisions, launches, more urgent requests",
    "report": "from the last work on a stream to the result",
}
"""Part -> meaning, in the order of time."""


class RequestBreakdown(NamedTuple):
    """One request's time; nanoseconds."""

    request_id: int
    model: str
    outcome: str
    deadline_missed: bool
    start_unix_ns: int
    total_ns: int
    parts_ns: dict[str, int]
    """By the names of `PARTS`."""
    blocked_by: tuple[int, ...]

    @property
    def accounted_ns(self) -> int:
        """Return the sum of the parts."""
        return sum(self.parts_ns.values())


class ModelBreakdown(NamedTuple):
    """The requests of one model taken together."""

    model: str
    requests: int
    missed: int
    failed: int
    """Ended otherwise than completed."""
    p50_ns: int
    p99_ns: int
    parts_ns: dict[str, float]
    """Means."""
    accounted: float
    """Sum of all parts over sum of all totals; 1 if nothing is missing."""
    blockers: dict[str, int]
    """Models whose requests held it up, and how many of its requests they did; most first."""


def break_down(traces: Iterable[Sequence[Span]]) -> list[RequestBreakdown]:
    """Return every request of the traces, in the order of arrival."""
    found = [request for trace in traces for request in _of_trace(trace)]
    return sorted(found, key=lambda request: (request.start_unix_ns, request.request_id))


def by_model(requests: Sequence[RequestBreakdown]) -> list[ModelBreakdown]:
    """Return the requests summed up per model, models in alphabetical order."""
    models: defaultdict[str, list[RequestBreakdown]] = defaultdict(list)
    model_of = {request.request_id: request.model for request in requests}
    for request in requests:
        models[request.model].append(request)
    return [_of_model(model, models[model], model_of) for model in sorted(models)]


def _of_model(
    model: str, requests: Sequence[RequestBreakdown], model_of: dict[int, str]
) -> ModelBreakdown:
    totals = sorted(request.total_ns for request in requests)
    blockers: Counter[str] = Counter()
    for request in requests:
        blockers.update({model_of.get(other, "(not kept)") for other in request.blocked_by})
    return ModelBreakdown(
        model=model,
        requests=len(requests),
        missed=sum(request.deadline_missed for request in requests),
        failed=sum(request.outcome != "completed" for request in requests),
        p50_ns=totals[(len(totals) - 1) // 2],
        p99_ns=totals[-(-99 * len(totals) // 100) - 1],
        parts_ns={
            part: sum(request.parts_ns[part] for request in requests) / len(requests)
            for part in PARTS
        },
        accounted=sum(r.accounted_ns for r in requests) / max(1, sum(totals)),
        blockers=dict(sorted(blockers.items(), key=lambda item: (-item[1], item[0]))),
    )


def _of_trace(trace: Sequence[Span]) -> Iterator[RequestBreakdown]:
    children: defaultdict[int, list[Span]] = defaultdict(list)
    for span in trace:
        children[span.parent_id].append(span)
    for span in trace:
        if span.name.startswith(f"{names.INFER} "):
            yield _of_request(span, children)


def _of_request(infer: Span, children: dict[int, list[Span]]) -> RequestBreakdown:
    parts = dict.fromkeys(PARTS, 0)
    for span in children[infer.span_id]:
        if span.name == names.QUEUE_WAIT:
            parts["wait"] += duration_ns(span)
        elif span.name == names.SCHEDULE_DECIDE:
            parts["decide"] += duration_ns(span)
        elif span.name == names.EXECUTE:
            _add_execution(parts, span, children)
    values = infer.attributes
    blocked_by = values.get(names.BLOCKED_BY, ())
    assert isinstance(blocked_by, Sequence)
    return RequestBreakdown(
        request_id=int(str(values[names.REQUEST_ID])),
        model=str(values[names.MODEL]),
        outcome=str(values[names.OUTCOME]),
        deadline_missed=bool(values[names.DEADLINE_MISSED]),
        start_unix_ns=infer.start_ns,
        total_ns=duration_ns(infer),
        parts_ns=parts,
        blocked_by=tuple(int(other) for other in blocked_by),
    )


def _add_execution(parts: dict[str, int], execute: Span, children: dict[int, list[Span]]) -> None:
    """Split an `execute` span by what its streams did; overlapping work counts once."""
    end_ns = execute.start_ns + duration_ns(execute)
    lanes = [s for s in children[execute.span_id] if s.name.startswith(f"{names.STREAM_LANE} ")]
    work = [span for lane in lanes for span in children[lane.span_id]]
    if not work:
        parts["launch"] += end_ns - execute.start_ns
        return
    if any(span.attributes.get(names.AGGREGATED) for span in work):
        _add_aggregated(parts, execute.start_ns, end_ns, lanes, work)
        return
    reached_ns = execute.start_ns
    part_before = "launch"
    for span in sorted(work, key=lambda span: span.start_ns):
        start_ns, done_ns = span.start_ns, span.start_ns + duration_ns(span)
        parts[part_before] += max(0, start_ns - reached_ns)
        kind = "copy" if span.name.startswith(f"{names.COPY}.") else "run"
        parts[kind] += max(0, done_ns - max(start_ns, reached_ns))
        reached_ns = max(reached_ns, done_ns)
        part_before = "between"
    parts["report"] += max(0, end_ns - reached_ns)


def _add_aggregated(
    parts: dict[str, int], start_ns: int, end_ns: int, lanes: Sequence[Span], work: Sequence[Span]
) -> None:
    """Do the same from sums, where the single kernels are not told."""
    first_ns = min(lane.start_ns for lane in lanes)
    last_ns = max(lane.start_ns + duration_ns(lane) for lane in lanes)
    for span in work:
        parts["copy" if span.name.startswith(f"{names.COPY}.") else "run"] += duration_ns(span)
    parts["launch"] += first_ns - start_ns
    parts["between"] += max(0, last_ns - first_ns - sum(map(duration_ns, work)))
    parts["report"] += max(0, end_ns - last_ns)


def duration_ns(span: Span) -> int:
    """Return a span's true duration; its times may have been moved for viewers."""
    return int(str(span.attributes.get(names.DURATION_NS, span.end_ns - span.start_ns)))
