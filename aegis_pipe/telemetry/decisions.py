"""The scheduler's decisions, rebuilt from traces alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

from aegis_pipe.events import DecisionMade
from aegis_pipe.telemetry import attributes as names
from aegis_pipe.telemetry.breakdown import duration_ns
from aegis_pipe.telemetry.numbers import from_json_number
from aegis_pipe.telemetry.spans import Span


def decisions(traces: Iterable[Sequence[Span]]) -> list[DecisionMade]:
    """Return every decision in the traces, in the order of the run's decision log.

    Complete if every trace was kept (`traces.ratio = 1`). Instants are those of the spans: since
    the Unix epoch.
    """
    found = [decision for trace in traces for decision in _of_trace(trace)]
    return sorted(found, key=lambda decision: decision.sequence)


def _of_trace(trace: Sequence[Span]) -> Iterator[DecisionMade]:
    by_id = {span.span_id: span for span in trace}
    for span in trace:
        if span.name == names.SCHEDULE_DECIDE:
            yield _of_span(span, _infer(span, by_id))
        elif names.DECISIONS_LOG in span.attributes:
            infer = _infer(span, by_id)
            first = next(s for s in trace if s.name == names.SCHEDULE_DECIDE)
            yield from _of_log(span, infer, str(first.attributes[names.POLICY]))


def _infer(span: Span, by_id: dict[int, Span]) -> Span:
    while not span.name.startswith(f"{names.INFER} "):
        span = by_id[span.parent_id]
    return span


def _of_span(span: Span, infer: Span) -> DecisionMade:
    values = cast(dict[str, Any], span.attributes)
    ids, scores = values.get(names.CANDIDATE_IDS, ()), values.get(names.CANDIDATE_SCORES, ())
    return DecisionMade(
        start_ns=span.start_ns,
        end_ns=span.start_ns + duration_ns(span),
        sequence=values[names.DECISION_SEQUENCE],
        kind=values[names.DECISION],
        request_id=values[names.REQUEST_ID],
        model=str(infer.attributes[names.MODEL]),
        policy=values[names.POLICY],
        reason=values[names.RULE],
        stream=values.get(names.STREAM, -1),
        queue_depth=values[names.QUEUE_DEPTH],
        candidates=tuple((i, from_json_number(s)) for i, s in zip(ids, scores, strict=True)),
        blocked_by=tuple(values.get(names.BLOCKED_BY, ())),
    )


def _of_log(execute: Span, infer: Span, policy: str) -> Iterator[DecisionMade]:
    for row in json.loads(str(execute.attributes[names.DECISIONS_LOG])):
        after_ns, length_ns, sequence, kind, rule, stream, depth, candidates, blocked_by = row
        start_ns = execute.start_ns + after_ns
        yield DecisionMade(
            start_ns=start_ns,
            end_ns=start_ns + length_ns,
            sequence=sequence,
            kind=kind,
            request_id=int(str(infer.attributes[names.REQUEST_ID])),
            model=str(infer.attributes[names.MODEL]),
            policy=policy,
            reason=rule,
            stream=stream,
            queue_depth=depth,
            candidates=tuple((other, from_json_number(score)) for other, score in candidates),
            blocked_by=tuple(blocked_by),
        )
