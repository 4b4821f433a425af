"""From a stream of events to finished traces: collects, waits a little, samples, links.

Nothing is sampled before it is known how it ended. `SETTLE_NS` after its end a request is judged:
by then the other threads have told what belongs to it, such as the pipeline's stage around it. As
long again it is held, in case a later request that is kept was blocked by it. Then its trace is
built or forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from aegis_pipe.events import (
    CopyFinished,
    DecisionMade,
    Event,
    EventSynchronised,
    ItemFinished,
    MemoryAllocated,
    ModelLoaded,
    PhaseFinished,
    RequestFinished,
    RequestSubmitted,
    SegmentFinished,
    StageFinished,
    instant_ns,
)
from aegis_pipe.telemetry import attributes as names
from aegis_pipe.telemetry.bounded import BoundedDict
from aegis_pipe.telemetry.config import TelemetryConfig
from aegis_pipe.telemetry.ids import (
    Caller,
    Identifiers,
    SpanReference,
    format_traceparent,
    is_within_ratio,
    parse_traceparent,
)
from aegis_pipe.telemetry.loads import LoadTraces
from aegis_pipe.telemetry.spans import SpanLink, SpanNode, Trace, flatten
from aegis_pipe.telemetry.traces import (
    RequestRecord,
    item_failure,
    item_tree,
    request_failure,
    request_tree,
)

SETTLE_NS: Final = 200_000_000
"""How late another thread may tell what belongs to a finished request."""
OVERDUE_NS: Final = 2_000_000_000
"""How long at most it waits for the requests that blocked it, so that it can link to them."""

LOST_NS: Final = 10_000_000_000
"""How long a request may stay open once events were lost: its end may have been among them."""

_OPEN_MAX: Final = 16_384
"""Open requests or items that are kept track of."""
_REMEMBERED_MAX: Final = 16_384
_NEVER_NS: Final = 2**63


@dataclass(slots=True, eq=False)
class _Item:
    """What was heard of one pipeline item so far."""

    key: tuple[str, int]
    stages: list[StageFinished] = field(default_factory=list)
    requests: list[RequestRecord] = field(default_factory=list)
    finished: ItemFinished | None = None


@dataclass(slots=True, eq=False)
class _Unit:
    """What becomes one trace: a request by itself, or an item with its requests."""

    requests: Sequence[RequestRecord]
    item: _Item | None
    ended_ns: int
    blockers: tuple[int, ...] = ()
    is_special: bool = False
    """Kept for its own sake."""

    @property
    def is_kept(self) -> bool:
        """Return whether it is exported: for its own sake, or because a kept one links to it."""
        return self.is_special or any(record.is_wanted for record in self.requests)


def _ended_ns(part: RequestRecord | _Item) -> int:
    """Return when a request ended, or an item with all its requests; never, while one is open."""
    if isinstance(part, RequestRecord):
        return part.finished.at_ns if part.finished is not None else _NEVER_NS
    if part.finished is None:
        return _NEVER_NS
    return max(part.finished.end_ns, *map(_ended_ns, part.requests), 0)


class TraceAssembler:
    """Turns events into spans; to be used by one thread.

    The spans depend on the events, the run id and the settings, not on how the events were cut
    into batches, as long as no thread is later than `SETTLE_NS`.
    """

    def __init__(
        self, config: TelemetryConfig, identifiers: Identifiers, to_unix_ns: Callable[[int], int]
    ) -> None:
        self._config = config
        self._identifiers = identifiers
        self._to_unix_ns = to_unix_ns
        self._loads = LoadTraces(identifiers, to_unix_ns)
        self._requests = BoundedDict[int, RequestRecord](_OPEN_MAX)
        self._items = BoundedDict[tuple[str, int], _Item](_OPEN_MAX)
        self._settled = BoundedDict[int, SpanReference | None](_REMEMBERED_MAX)
        """Requests that are done with, and where those that were kept are."""
        self._ended: list[RequestRecord | _Item] = []
        """What has ended and was not judged yet."""
        self._held: list[_Unit] = []
        """What was judged and not built or forgotten yet."""
        self._judged: dict[int, _Unit] = {}
        """The held units by their requests."""
        self._given_up = 0
        self._last_in_ratio = (-1, False)
        self.dropped_events = 0
        """Events that are known to have been lost; traces say so."""
        self._dropped_at_ns = 0

    @property
    def abandoned(self) -> int:
        """Requests, items and phases given up because their end was never heard of."""
        evicted = self._requests.evicted + self._items.evicted + self._loads.abandoned
        return self._given_up + evicted

    def add(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            # The many first.
            case (
                RequestSubmitted()
                | DecisionMade()
                | SegmentFinished()
                | CopyFinished()
                | EventSynchronised()
                | RequestFinished()
            ):
                record = self._record(event.request_id, instant_ns(event))
                if record is not None:
                    record.add(event)
                    if record.finished is event:
                        self._ended.append(record)
            case PhaseFinished():
                self._loads.add_phase(event)
            case ModelLoaded():
                self._loads.add_loaded(event)
            case MemoryAllocated():
                self._loads.add_allocation(event)
            case StageFinished():
                self._add_stage(event)
            case ItemFinished():
                item = self._item((event.pipeline, event.item))
                item.finished = event
                self._ended.append(item)
            case _:
                pass  # The log has it; no trace does.

    def note_dropped(self, count: int, now_ns: int) -> None:
        """Take note of how many events were lost by now."""
        if count != self.dropped_events:
            self.dropped_events, self._dropped_at_ns = count, now_ns

    def settle(self, now_ns: int) -> Iterator[Trace]:
        """Yield the traces of everything that ended long enough before now; use it up."""
        self._give_up_lost(min(self._dropped_at_ns, now_ns - LOST_NS))
        yield from self._settle(now_ns - SETTLE_NS, now_ns - 2 * SETTLE_NS, now_ns - OVERDUE_NS)

    def flush(self) -> Iterator[Trace]:
        """Yield the traces of everything that has ended, and give up what has not; use it up."""
        latest_ns = _NEVER_NS - 1
        yield from self._settle(latest_ns, latest_ns, latest_ns)
        self._given_up += len(self._requests) + len(self._items) + self._loads.flush()
        self._requests.clear()
        self._items.clear()
        self._ended.clear()

    def _give_up_lost(self, heard_ns: int) -> None:
        """Give up what was heard of by then and is still open: its end may have been lost."""
        lost = []
        for request_id, record in self._requests.items():
            if record.heard_ns > heard_ns:
                break
            if record.finished is None:
                lost.append(request_id)
        for request_id in lost:
            del self._requests[request_id]
            self._settled[request_id] = None
        self._given_up += len(lost)

    def _record(self, request_id: int, heard_ns: int) -> RequestRecord | None:
        """Return the record of a request, made if need be; None if it is already done with."""
        record = self._requests.get(request_id)
        if record is None and request_id not in self._settled:
            own = self._identifiers.root("request", request_id)
            record = self._requests[request_id] = RequestRecord(request_id, own, heard_ns)
        return record

    def _item(self, key: tuple[str, int]) -> _Item:
        item = self._items.get(key)
        if item is None:
            item = self._items[key] = _Item(key)
        return item

    def _add_stage(self, event: StageFinished) -> None:
        key = (event.pipeline, event.item)
        item = self._item(key)
        item.stages.append(event)
        if (
            event.request_id
            and (record := self._record(event.request_id, event.end_ns)) is not None
        ):
            record.item = key
            item.requests.append(record)

    def _settle(self, judged_ns: int, built_ns: int, overdue_ns: int) -> Iterator[Trace]:
        yield from self._loads.settle(judged_ns)
        judged = self._take_ended(judged_ns)
        for unit in judged:
            self._judged.update((record.request_id, unit) for record in unit.requests)
        for unit in judged:
            if unit.is_special:
                self._keep_blockers(unit)
        self._held += judged
        ready: list[_Unit] = []
        held: list[_Unit] = []
        for unit in self._held:
            is_ready = unit.ended_ns <= built_ns and self._is_ready(unit, overdue_ns)
            (ready if is_ready else held).append(unit)
        self._held = held
        for unit in ready:
            if unit.is_kept:
                yield self._build(unit)
            self._forget(unit)

    def _take_ended(self, judged_ns: int) -> list[_Unit]:
        """Remove what ended by then, and judge it."""
        units = []
        later: list[RequestRecord | _Item] = []
        for part in self._ended:
            ended_ns = _ended_ns(part)
            if ended_ns > judged_ns:
                later.append(part)
            elif isinstance(part, _Item):
                units.append(self._unit(part.requests, part, ended_ns))
            elif part.item not in self._items:
                units.append(self._unit([part], None, ended_ns))
        self._ended = later
        return units

    def _unit(self, requests: Sequence[RequestRecord], item: _Item | None, ended_ns: int) -> _Unit:
        unit = _Unit(requests, item, ended_ns)
        unit.blockers = tuple([blocker for record in requests for blocker in record.blocked_by])
        ends = [record.finished for record in requests]
        is_special = any(map(self._is_special, ends)) or (
            item is not None and self._is_special(item.finished)
        )
        unit.is_special = is_special or self._is_sampled(unit)
        return unit

    def _keep_blockers(self, unit: _Unit) -> None:
        """Have those kept that a kept trace links to, unless they ended long before it did."""
        for blocker in unit.blockers:
            record = self._requests.get(blocker)
            if record is not None and unit.ended_ns - _ended_ns(record) <= SETTLE_NS:
                record.is_wanted = True

    def _is_ready(self, unit: _Unit, overdue_ns: int) -> bool:
        """Return whether all that it may link to has ended too, or it can wait no longer."""
        are_blockers_known = all(
            blocker in self._judged or blocker not in self._requests for blocker in unit.blockers
        )
        return are_blockers_known or unit.ended_ns <= overdue_ns

    def _is_special(self, end: RequestFinished | ItemFinished | None) -> bool:
        match end:
            case RequestFinished():
                is_miss = end.deadline_missed or end.outcome == "expired"
                is_error = bool(request_failure(end)) and not is_miss
                duration_ns = end.at_ns - end.arrival_ns
            case ItemFinished():
                is_miss, is_error = False, bool(item_failure(end))
                duration_ns = end.end_ns - end.start_ns
            case None:
                return False
        return (
            (is_error and "error" in self._config.always)
            or (is_miss and "deadline_miss" in self._config.always)
            or 0 < self._config.slow_ns <= duration_ns
        )

    def _is_sampled(self, unit: _Unit) -> bool:
        """Decide by the caller's wish or the ratio; an item goes by its first request."""
        for record in unit.requests:
            caller = record.caller
            if caller is not None and caller.is_sampled:
                return True
        if unit.requests:
            first = min(unit.requests, key=lambda record: record.request_id)
            return is_within_ratio(first.own.trace_id, self._config.ratio)
        return is_within_ratio(self._unit_span(unit).trace_id, self._config.ratio)

    def is_in_ratio(self, request_id: int) -> bool:
        """Return whether a request is kept even if nothing is special about it."""
        # Asked for each segment of a request, one after the other.
        last_id, is_in = self._last_in_ratio
        if request_id != last_id:
            trace_id = self._identifiers.root("request", request_id).trace_id
            is_in = is_within_ratio(trace_id, self._config.ratio)
            self._last_in_ratio = request_id, is_in
        return is_in

    def traceparent(self, request_id: int, caller_text: str) -> str:
        """Return the W3C `traceparent` of a request's `infer` span; for any thread."""
        own = self._identifiers.root("request", request_id)
        caller = parse_traceparent(caller_text)
        is_sampled = is_within_ratio(own.trace_id, self._config.ratio)
        if caller is not None:
            own = own._replace(trace_id=caller.span.trace_id)
            is_sampled |= caller.is_sampled
        return format_traceparent(Caller(own, is_sampled))

    def _span_of(self, record: RequestRecord) -> SpanReference:
        """Return the ids of a request's `infer` span."""
        own = record.own
        if record.item is not None:
            return own._replace(trace_id=self._item_span(record.item).trace_id)
        if record.caller is not None:
            return own._replace(trace_id=record.caller.span.trace_id)
        return own

    def _item_span(self, key: tuple[str, int]) -> SpanReference:
        return self._identifiers.root("item", f"{key[1]} {key[0]}")

    def _unit_span(self, unit: _Unit) -> SpanReference:
        if unit.item is None:
            return self._span_of(unit.requests[0])
        return self._item_span(unit.item.key)

    def _build(self, unit: _Unit) -> Trace:
        trees = {record.request_id: self._infer(record) for record in unit.requests}
        parent = None
        if unit.item is None:
            tree = trees[unit.requests[0].request_id]
            caller = unit.requests[0].caller
            parent = caller.span if caller is not None else None
        else:
            tree = self._item_tree(unit.item, trees)
        if self.dropped_events:
            tree.attributes[names.DROPPED_EVENTS] = self.dropped_events
        return flatten(tree, self._unit_span(unit), self._to_unix_ns, parent=parent)

    def _infer(self, record: RequestRecord) -> SpanNode:
        assert record.finished is not None
        # What ran is not always what was asked for: a batch's variant, or a stand-in.
        model = record.segments[0].model if record.segments else record.finished.model
        # As it was when this request ran: a reload may have loaded another one since.
        at_ns = record.segments[0].launch_ns if record.segments else record.finished.at_ns
        kernels = () if self._config.kernels == "never" else self._loads.kernels(model, at_ns)
        tree = request_tree(record, kernels, self._config.max_spans)
        tree.own_span_id = self._span_of(record).span_id
        load = self._loads.span_of(model, at_ns)
        if load is not None:
            tree.links.append(SpanLink(load, names.LINK_MODEL_LOAD))
        for blocker in record.blocked_by:
            span = self._kept_span(blocker)
            if span is not None:
                tree.links.append(SpanLink(span, names.LINK_BLOCKED_BY))
        return tree

    def _kept_span(self, request_id: int) -> SpanReference | None:
        """Return a request's span if it was exported or is certainly going to be."""
        unit = self._judged.get(request_id)
        if unit is None or request_id not in self._requests:
            return self._settled.get(request_id)
        return self._span_of(self._requests[request_id]) if unit.is_kept else None

    def _item_tree(self, item: _Item, trees: dict[int, SpanNode]) -> SpanNode:
        assert item.finished is not None
        tree, stages = item_tree(item.finished, item.stages, trees)
        for stage, node in zip(item.stages, stages, strict=True):
            span = self._settled.get(stage.request_id)
            # A request whose trace was built before its stage was heard of.
            if span is not None and stage.request_id not in trees:
                node.links.append(SpanLink(span, names.LINK_INFER))
        return tree

    def _forget(self, unit: _Unit) -> None:
        is_kept = unit.is_kept
        for record in unit.requests:
            self._settled[record.request_id] = self._span_of(record) if is_kept else None
            self._requests.pop(record.request_id, None)
            self._judged.pop(record.request_id, None)
        if unit.item is not None:
            self._items.pop(unit.item.key, None)
