"""The shapes of the three kinds of trace: what events become which spans below which.

    infer <model>                      pipeline <name>            model.load
      queue.wait                         source                     onnx.load
      schedule.decide                    transform prepare          passes
      execute                            model detect                 pass.<name>
        schedule.decide (continue)         infer <model> ...        memory.plan
        stream 0                         sink ...                   pool.reserve
          copy.in, Conv, ..., copy.out

Pure functions from collected events to `SpanNode` trees, on the runtime's clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from aegis_pipe.events import (
    CopyFinished,
    DecisionMade,
    EventSynchronised,
    ItemFinished,
    MemoryAllocated,
    ModelLoaded,
    PhaseFinished,
    RequestFinished,
    RequestSubmitted,
    SegmentFinished,
    StageFinished,
)
from aegis_pipe.telemetry import attributes as names
from aegis_pipe.telemetry.ids import Caller, SpanReference, parse_traceparent
from aegis_pipe.telemetry.kernel_times import place_kernels
from aegis_pipe.telemetry.numbers import json_number
from aegis_pipe.telemetry.spans import (
    AttributeValue,
    KernelBlock,
    SegmentCalls,
    SpanEvent,
    SpanNode,
    kernel_name,
)

RequestEvent = (
    RequestSubmitted
    | DecisionMade
    | SegmentFinished
    | CopyFinished
    | EventSynchronised
    | RequestFinished
)
KernelTable = Sequence[SegmentCalls]
"""What each segment calls."""

_STAMPS_BYTES: Final = 16
"""Of one call: its start and its end."""


@dataclass(slots=True, eq=False)
class RequestRecord:
    """What was heard of one request so far."""

    request_id: int
    own: SpanReference
    """Its ids, if no caller and no pipeline's item lends it a trace."""
    heard_ns: int = 0
    """Instant of the first event that was heard of it."""
    submitted: RequestSubmitted | None = None
    finished: RequestFinished | None = None
    decisions: list[DecisionMade] = field(default_factory=list)
    segments: list[SegmentFinished] = field(default_factory=list)
    copies: list[CopyFinished] = field(default_factory=list)
    crossings: list[EventSynchronised] = field(default_factory=list)
    item: tuple[str, int] | None = None
    """The pipeline's item it belongs to, once known."""
    is_wanted: bool = False
    """A trace that is kept links here, so this one is kept too."""
    caller: Caller | None = None
    """The span this request was submitted under, if its caller told."""

    def add(self, event: RequestEvent) -> None:
        """Take note of an event of this request."""
        match event:
            case RequestSubmitted():
                self.submitted = event
                self.caller = parse_traceparent(event.parent) if event.parent else None
            case DecisionMade():
                self.decisions.append(event)
            case SegmentFinished():
                self.segments.append(event)
            case CopyFinished():
                self.copies.append(event)
            case EventSynchronised():
                self.crossings.append(event)
            case RequestFinished():
                self.finished = event

    @property
    def blocked_by(self) -> tuple[int, ...]:
        """Return the requests that held it up, each once, in the order they were named."""
        named = [other for decision in self.decisions for other in decision.blocked_by]
        if not named:
            return ()
        return tuple(dict.fromkeys(other for other in named if other != self.request_id))


def request_failure(finished: RequestFinished) -> str:
    """Describe why a request is an error to whoever looks at its trace; empty if it is not."""
    if finished.outcome in ("failed", "expired", "rejected"):
        cause = _printable(finished.error) or finished.reason
        return f"{finished.outcome}: {cause}" if cause else finished.outcome
    if finished.deadline_missed:
        return f"deadline missed by {finished.at_ns - finished.deadline_ns} ns"
    return ""


def request_tree(record: RequestRecord, kernels: KernelTable, max_spans: int) -> SpanNode:
    """Return the `infer` span of a finished request, with everything below it.

    `kernels` names the calls behind the stamps; empty if no kernel spans are wanted.
    """
    finished = record.finished
    assert finished is not None
    decisions = sorted(record.decisions, key=lambda decision: decision.sequence)
    # The scheduler's step takes its time from its beginning; what it decides about ends after that.
    end_ns = max([finished.at_ns, *(decision.end_ns for decision in decisions)])
    wait_end_ns = decisions[0].start_ns if decisions else finished.start_ns or finished.at_ns
    infer = SpanNode(
        f"{names.INFER} {finished.model}",
        finished.arrival_ns,
        end_ns,
        _request_attributes(record, finished),
        request_failure(finished),
    )
    if end_ns > finished.at_ns:
        infer.attributes[names.LIVED_NS] = finished.at_ns - finished.arrival_ns
    wait = SpanNode(names.QUEUE_WAIT, finished.arrival_ns, wait_end_ns, {})
    infer.events = [
        _decided(decision, finished.deadline_ns)
        for decision in decisions
        if decision.kind != "continue"
    ]
    infer.children = [wait, *(_decision(d, finished.deadline_ns) for d in decisions[:1])]
    if finished.start_ns or record.segments or record.copies:
        infer.children.append(_execute(record, end_ns, decisions, kernels, max_spans))
    else:
        infer.children += [_decision(d, finished.deadline_ns) for d in decisions[1:]]
    return infer


def _request_attributes(
    record: RequestRecord, finished: RequestFinished
) -> dict[str, AttributeValue]:
    values: dict[str, AttributeValue] = {
        names.REQUEST_ID: finished.request_id,
        names.MODEL: finished.model,
        names.OUTCOME: finished.outcome,
        names.DEADLINE_MISSED: finished.deadline_missed,
    }
    if finished.reason:
        values[names.REASON] = finished.reason
    if record.submitted is not None:
        values[names.PRIORITY] = record.submitted.priority
        values[names.QUEUE_DEPTH] = record.submitted.queue_depth
    if finished.deadline_ns:
        values[names.DEADLINE_NS] = finished.deadline_ns - finished.arrival_ns
        values[names.SLACK_NS] = finished.deadline_ns - finished.at_ns
    if record.blocked_by:
        values[names.BLOCKED_BY] = record.blocked_by
    return values


def _segment_times(segments: Sequence[SegmentFinished], arrival_ns: int) -> list[int]:
    return [
        number
        for done in sorted(segments, key=lambda done: done.segment)
        for number in (
            done.segment,
            done.launch_ns - arrival_ns,
            done.start_ns - arrival_ns,
            done.end_ns - arrival_ns,
        )
    ]


def _decided(decision: DecisionMade, deadline_ns: int) -> SpanEvent:
    """Return the reason once more, as an event of the request itself."""
    values: dict[str, AttributeValue] = {
        names.DECISION: decision.kind,
        names.RULE: decision.reason,
    }
    if decision.candidates:
        values[names.CANDIDATE_IDS] = [other for other, _ in decision.candidates]
    if decision.kind == "start":
        values[names.WINNER] = decision.request_id
    if deadline_ns:
        values[names.SLACK_NS] = deadline_ns - decision.end_ns
    return SpanEvent(decision.end_ns, names.DECIDED_EVENT, values)


def _decision(decision: DecisionMade, deadline_ns: int) -> SpanNode:
    node = SpanNode(
        names.SCHEDULE_DECIDE,
        decision.start_ns,
        decision.end_ns,
        {
            names.DECISION: decision.kind,
            names.DECISION_SEQUENCE: decision.sequence,
            names.RULE: decision.reason,
            names.POLICY: decision.policy,
            names.QUEUE_DEPTH: decision.queue_depth,
            names.REQUEST_ID: decision.request_id,
        },
    )
    if decision.stream >= 0:
        node.attributes[names.STREAM] = decision.stream
    if deadline_ns:
        node.attributes[names.SLACK_NS] = deadline_ns - decision.end_ns
    if decision.candidates:
        node.attributes[names.CANDIDATE_IDS] = [other for other, _ in decision.candidates]
        node.attributes[names.CANDIDATE_SCORES] = [float(s) for _, s in decision.candidates]
    # Candidates wait for a stream; only a `start` chooses among them, and what continues has one.
    if decision.kind == "start":
        node.attributes[names.WINNER] = decision.request_id
    if decision.blocked_by:
        node.attributes[names.BLOCKED_BY] = decision.blocked_by
    return node


def _execute(
    record: RequestRecord,
    end_ns: int,
    decisions: Sequence[DecisionMade],
    kernels: KernelTable,
    max_spans: int,
) -> SpanNode:
    finished = record.finished
    assert finished is not None
    start_ns = decisions[0].end_ns if decisions else finished.start_ns or finished.arrival_ns
    node = SpanNode(names.EXECUTE, start_ns, end_ns)
    node.events = [_crossing(event) for event in record.crossings]
    later = decisions[1:]
    done: list[SegmentFinished | CopyFinished] = [*record.segments, *record.copies]
    blocks = [_kernels(segment, kernels) for segment in record.segments]
    spans = len(later) + sum(len(block.calls.calls) if block else 1 for block in blocks)
    is_over = spans > max_spans
    if is_over and later:
        node.attributes[names.DECISIONS_OMITTED] = len(later)
        node.attributes[names.DECISIONS_LOG] = _decision_log(later, start_ns)
    else:
        node.children = [_decision(decision, finished.deadline_ns) for decision in later]
    for stream in sorted({part.stream for part in done}):
        node.children.append(_lane(stream, record, blocks, is_aggregated=is_over))
    return node


def _decision_log(decisions: Sequence[DecisionMade], origin_ns: int) -> str:
    rows = [
        (
            decision.start_ns - origin_ns,
            decision.end_ns - decision.start_ns,
            decision.sequence,
            decision.kind,
            decision.reason,
            decision.stream,
            decision.queue_depth,
            [(other, json_number(score)) for other, score in decision.candidates],
            decision.blocked_by,
        )
        for decision in decisions
    ]
    return json.dumps(rows, separators=(",", ":"))


def _crossing(event: EventSynchronised) -> SpanEvent:
    return SpanEvent(
        event.at_ns,
        names.EVENT_SYNCHRONISED_EVENT,
        {
            names.TENSOR: event.tensor,
            names.RECORD_STREAM: event.record_stream,
            names.WAIT_STREAM: event.wait_stream,
        },
    )


def _lane(
    stream: int,
    record: RequestRecord,
    blocks: Sequence[KernelBlock | None],
    *,
    is_aggregated: bool,
) -> SpanNode:
    """Return what one stream did; `blocks` runs parallel to the record's segments."""
    segments = [
        (done, block)
        for done, block in zip(record.segments, blocks, strict=True)
        if done.stream == stream
    ]
    copies = [done for done in record.copies if done.stream == stream]
    done: list[SegmentFinished | CopyFinished] = [*(done for done, _ in segments), *copies]
    lane = SpanNode(
        f"{names.STREAM_LANE} {stream}",
        min(part.start_ns for part in done),
        max(part.end_ns for part in done),
        {
            names.STREAM: stream,
            names.SEGMENTS: len(segments),
            names.BUSY_NS: sum(part.end_ns - part.start_ns for part in done),
        },
        on_device=True,
    )
    ran, finished = [done for done, _ in segments], record.finished
    assert finished is not None
    if ran:
        lane.attributes[names.SEGMENT_TIMES_NS] = _segment_times(ran, finished.arrival_ns)
        if ran[0].model != finished.model:
            lane.attributes[names.MODEL] = ran[0].model
    stamped = [block for _, block in segments if block is not None]
    unstamped = [_segment(done) for done, block in segments if block is None]
    lane.children = [_copy(copy) for copy in copies]
    if is_aggregated:
        lane.children += [*_aggregate_segments(unstamped), *_aggregate_kernels(stamped)]
    else:
        lane.children += unstamped
        lane.blocks = stamped
    return lane


def _copy(copy: CopyFinished) -> SpanNode:
    return SpanNode(
        f"{names.COPY}.{copy.direction}",
        copy.start_ns,
        copy.end_ns,
        {names.SIZE_BYTES: copy.size_bytes, names.STREAM: copy.stream},
        on_device=True,
    )


def _kernels(done: SegmentFinished, kernels: KernelTable) -> KernelBlock | None:
    """Return a segment's kernels; None if they were not stamped or are not known."""
    if not done.kernel_times or done.segment >= len(kernels):
        return None
    calls = kernels[done.segment]
    are_all_stamped = len(done.kernel_times) == _STAMPS_BYTES * len(calls.calls)
    return KernelBlock(calls, done.stream, done.kernel_times) if are_all_stamped else None


def _segment(done: SegmentFinished) -> SpanNode:
    return SpanNode(
        names.SEGMENT_RUN,
        done.start_ns,
        done.end_ns,
        {names.SEGMENT: done.segment, names.STREAM: done.stream},
        on_device=True,
    )


def _aggregate_segments(nodes: Sequence[SpanNode]) -> list[SpanNode]:
    """Return one span for all, if there are any."""
    if not nodes:
        return []
    busy_ns = sum(node.end_ns - node.start_ns for node in nodes)
    start_ns, end_ns = nodes[0].start_ns, max(node.end_ns for node in nodes)
    return [_aggregated(names.SEGMENT_RUN, start_ns, end_ns, len(nodes), busy_ns)]


def _aggregate_kernels(blocks: Iterable[KernelBlock]) -> list[SpanNode]:
    """Return one span per operator, from the first start to the last end."""
    starts: dict[str, int] = {}
    ends: dict[str, int] = {}
    calls: dict[str, int] = {}
    busy: dict[str, int] = {}
    for block in blocks:
        block_starts, block_ends, durations = place_kernels(block.stamps, 0)
        for place, operator in enumerate(block.calls.operators):
            own = block.calls.operator_of == place
            start_ns, end_ns = int(block_starts[own].min()), int(block_ends[own].max())
            starts[operator] = min(starts.get(operator, start_ns), start_ns)
            ends[operator] = max(ends.get(operator, end_ns), end_ns)
            calls[operator] = calls.get(operator, 0) + int(own.sum())
            busy[operator] = busy.get(operator, 0) + int(durations[own].sum())
    nodes = []
    for operator, start_ns in starts.items():
        counts = ends[operator], calls[operator], busy[operator]
        node = _aggregated(kernel_name(operator), start_ns, *counts)
        node.attributes[names.OPERATOR] = operator
        nodes.append(node)
    return nodes


def _aggregated(name: str, start_ns: int, end_ns: int, calls: int, busy_ns: int) -> SpanNode:
    return SpanNode(
        name,
        start_ns,
        end_ns,
        {names.AGGREGATED: True, names.CALLS: calls, names.DURATION_NS: busy_ns},
        on_device=True,
    )


def phase_tree(
    root: PhaseFinished,
    phases: Iterable[PhaseFinished],
    loaded: Mapping[int, ModelLoaded],
    allocations: Sequence[MemoryAllocated],
) -> tuple[SpanNode, dict[int, SpanNode]]:
    """Return a load trace and its nodes by phase id.

    `phases` are the root's descendants, `loaded` goes by the phase that loaded the model, and
    each allocation becomes an event of the `pool.reserve` phase that it lies in.
    """
    nodes = {phase.phase_id: _phase(phase, loaded) for phase in (root, *phases)}
    for phase in phases:
        nodes[phase.parent_id].children.append(nodes[phase.phase_id])
    reserves = [phase for phase in (root, *phases) if phase.name == names.POOL_RESERVE]
    for event in allocations:
        place = next((phase for phase in reserves if _holds(phase, event)), None)
        if place is not None:
            nodes[place.phase_id].events.append(_allocation(event))
    return nodes[root.phase_id], nodes


def _holds(phase: PhaseFinished, event: MemoryAllocated) -> bool:
    is_same_model = phase.model in ("", event.model)
    return is_same_model and phase.start_ns <= event.at_ns <= phase.end_ns


def _phase(phase: PhaseFinished, loaded: Mapping[int, ModelLoaded]) -> SpanNode:
    node = SpanNode(phase.name, phase.start_ns, phase.end_ns, error=_printable(phase.error))
    node.attributes |= {
        key if key.startswith(names.PREFIX) else f"{names.PHASE_PREFIX}{key}": phase.attributes[key]
        for key in sorted(phase.attributes)
    }
    if phase.model:
        node.attributes[names.MODEL] = phase.model
    model = loaded.get(phase.phase_id)
    if model is not None:
        node.attributes[names.WEIGHTS_BYTES] = model.weights_bytes
        node.attributes[names.ARENA_BYTES] = model.arena_bytes
    return node


def _allocation(event: MemoryAllocated) -> SpanEvent:
    return SpanEvent(
        event.at_ns,
        names.MEMORY_ALLOCATED_EVENT,
        {
            names.POOL: event.pool,
            names.TENSOR: event.tensor,
            names.MODEL: event.model,
            names.OFFSET_BYTES: event.offset_bytes,
            names.SIZE_BYTES: event.size_bytes,
        },
    )


def item_failure(finished: ItemFinished) -> str:
    """Describe why an item failed; empty if it did not (dropping some is how a queue keeps up)."""
    if finished.outcome != "failed":
        return ""
    return f"{finished.outcome}: {_printable(finished.reason)}".removesuffix(": ")


def item_tree(
    finished: ItemFinished, stages: Iterable[StageFinished], requests: Mapping[int, SpanNode]
) -> tuple[SpanNode, list[SpanNode]]:
    """Return a pipeline item's trace and its stages' nodes; `requests` are `infer` spans by id."""
    root = SpanNode(
        f"{names.PIPELINE_ITEM} {finished.pipeline}",
        finished.start_ns,
        finished.end_ns,
        {
            names.PIPELINE: finished.pipeline,
            names.ITEM: finished.item,
            names.OUTCOME: finished.outcome,
        },
        item_failure(finished),
    )
    if finished.reason:
        root.attributes[names.REASON] = _printable(finished.reason)
    for stage in stages:
        node = SpanNode(
            stage.kind if stage.kind == stage.stage else f"{stage.kind} {stage.stage}",
            stage.start_ns,
            stage.end_ns,
            {names.STAGE: stage.stage, names.STAGE_KIND: stage.kind},
            _printable(stage.error),
        )
        if stage.request_id in requests:
            node.children.append(requests[stage.request_id])
        root.children.append(node)
    return root, root.children[:]


def _printable(text: str) -> str:
    """Replace what UTF-8 can not carry: messages may quote undecodable file names."""
    return text.encode("utf-8", "replace").decode("utf-8")
