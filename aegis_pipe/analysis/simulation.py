"""Runs of the real scheduler on virtual time, from event to event.

The scheduler is the one that serves requests; only time, arrivals and durations are made up.
What happens at one instant is seen in this order: segments that end, requests that arrive,
decisions. Everything is drawn from seeded generators in the order in which it is needed, so the
same seed gives the same run.
"""

from __future__ import annotations

import gc
import math
import random
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from typing import Any, Protocol

import numpy as np

from aegis_pipe.scheduling.decision import Decision
from aegis_pipe.scheduling.request import ExecutionRequest, RequestState
from aegis_pipe.scheduling.scheduler import Scheduler

OnDecisions = Callable[[tuple[Decision, ...]], None]
OnFinished = Callable[[ExecutionRequest], None]
NOBODY: Sequence[str] = ()
# A member of an enum is slow to reach through its class.
_COMPLETED = RequestState.COMPLETED


class Workload(Protocol):
    """Where requests come from."""

    @property
    def coming(self) -> Sequence[tuple[Any, ...]]:
        """What is to come, always this very list; only to be looked at.

        Entries begin with their instant, and none is before the first.
        """
        ...

    def advance(self, until_ns: int) -> None:
        """Let happen what leads to requests, up to the next request or to the end of an instant.

        Nothing else happens until then. The first of `coming` is a request afterwards, or later.
        """
        ...

    def take(self) -> ExecutionRequest:
        """Return the request that is the first of `coming`."""
        ...

    def finished(self, request: ExecutionRequest, now_ns: int) -> None:
        """Hear how a request ended, which may bring about further ones."""
        ...


class Times(Protocol):
    """How long segments hold their stream."""

    def __call__(self, request: ExecutionRequest, segment: int, beside: Sequence[str]) -> int:
        """Return nanoseconds; `beside` has the models that other streams run just now."""
        ...


def run(
    scheduler: Scheduler,
    workload: Workload,
    times: Times,
    *,
    until_ns: int | None = None,
    on_decisions: OnDecisions | None = None,
    on_finished: OnFinished | None = None,
) -> int:
    """Run until nothing is left to happen or time is up; return the last instant."""
    # What the run makes has no cycles, and collecting would look at all of it again and again.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return _run(scheduler, workload, times, until_ns, on_decisions, on_finished)
    finally:
        if was_enabled:
            gc.enable()


def _run(
    scheduler: Scheduler,
    workload: Workload,
    times: Times,
    until_ns: int | None,
    on_decisions: OnDecisions | None,
    on_finished: OnFinished | None,
) -> int:
    never = until_ns + 1 if until_ns is not None else 1 << 62
    ends: list[tuple[int, int, ExecutionRequest, int]] = []
    # Per stream until when it is busy, and with what; several segments may be in flight there.
    on_streams: dict[int, tuple[int, str]] = {}
    now_ns = 0
    # Looked up once: this loop goes round several times for every request.
    timers, batches = scheduler.timers, scheduler.batches
    next_deadline_ns, coming = scheduler.next_deadline_ns, workload.coming
    advance, take, finished = workload.advance, workload.take, workload.finished
    segment_finished, decide = scheduler.segment_finished, scheduler.decide
    open_requests, take_finished = scheduler.open_requests, scheduler.take_finished
    admit, enqueue = scheduler.admit, scheduler.enqueue
    while True:
        soonest_ns = ends[0][0] if ends else never
        if (timers and timers[0][0] < soonest_ns) or batches:
            due_ns = next_deadline_ns()
            if due_ns is not None and due_ns < soonest_ns:
                # A request may arrive with its deadline behind it.
                soonest_ns = max(due_ns, now_ns)
        if coming and coming[0][0] <= soonest_ns:
            advance(soonest_ns)
            if coming and coming[0][0] < soonest_ns:
                soonest_ns = coming[0][0]
        if soonest_ns >= never:
            return now_ns
        # An item that was held back may have arrived long ago.
        if soonest_ns > now_ns:
            now_ns = soonest_ns
        while ends and ends[0][0] <= now_ns:
            _, _, request, stream = heappop(ends)
            if on_streams[stream][0] <= now_ns:
                del on_streams[stream]
            segment_finished(request.request_id, now_ns)
        while coming and coming[0][0] <= now_ns:
            request = take()
            if admit(request, now_ns) is None:
                enqueue(request, now_ns)
            else:
                if on_finished is not None:
                    on_finished(request)
                finished(request, now_ns)
            if coming and coming[0][0] <= now_ns:
                advance(now_ns)
        decisions = decide(now_ns)
        if decisions:
            for decision in decisions:
                segment = decision.segment
                if segment >= 0:
                    request, stream = open_requests[decision.request_id], decision.stream
                    start_ns, beside = now_ns, NOBODY
                    if on_streams:
                        if stream in on_streams:
                            start_ns = on_streams[stream][0]
                        beside = [what[1] for other, what in on_streams.items() if other != stream]
                    end_ns = start_ns + times(request, segment, beside)
                    on_streams[stream] = (end_ns, request.model)
                    heappush(ends, (end_ns, decision.sequence, request, stream))
            if on_decisions is not None:
                on_decisions(decisions)
        for request in take_finished():
            if on_finished is not None:
                on_finished(request)
            finished(request, now_ns)


# --- requests -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StageLoad:
    """A model stage of a stream of items."""

    name: str
    model: str
    segment_count: int
    priority: int
    after: tuple[str, ...] = ()
    """Stages whose results it needs."""
    deadline_ns: int | None = None
    """Of the request, from its submission; used where the items have no deadline."""
    host_ns: Sequence[int] = ()
    """Distribution of the time on the host before its submission; empty for none."""
    wakes_ns: Sequence[int] = ()
    """Distribution of the time from submission until the scheduler can act on it, when idle."""


@dataclass(frozen=True, slots=True)
class Load:
    """Items that arrive and pass through model stages: a pipeline, or a caller of one model."""

    name: str
    stages: tuple[StageLoad, ...]
    """In an order in which each follows those it needs."""
    arrivals: Callable[[], Iterator[int]]
    """Makes the instants, ascending; they repeat one instant where items are taken at once."""
    window: int | None = None
    """Most items under way; None: no limit. Arrivals wait, or are dropped with `drops`."""
    drops: bool = False
    deadline_ns: int | None = None
    """From an item's arrival, for all of its requests."""


@dataclass(slots=True, eq=False)
class _Item:
    """What passes through several stages; where there is only one, nothing has to be kept."""

    origin_ns: int
    left: int = 0
    done: tuple[str, ...] = ()
    """Stages that are completed, where others wait for them."""


class _Source:
    """A load with its arrivals and its items under way."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.arrivals = load.arrivals()
        self.first = tuple(stage for stage in load.stages if not stage.after)
        self.only = load.stages[0] if len(load.stages) == 1 else None
        self.has_more = len(self.first) < len(load.stages)
        self.window = load.window
        self.deadline_ns = load.deadline_ns
        self.under_way = 0
        self.holds_back = False
        """Whether an item has arrived and waits for another one to leave."""


_Coming = tuple[int, int, _Source, StageLoad | None, int, int | None, _Item | None]
"""Instant, number, source, stage, instant of submission, deadline and item; the arrival of an item,
which is made only then, has no stage."""


class Loads:
    """A `Workload` of several loads; their requests are numbered as they are submitted."""

    def __init__(self, loads: Sequence[Load], seed: int) -> None:
        self._draw = random.Random(seed).random
        self.coming: list[_Coming] = []
        """A heap."""
        self._numbers = 0
        self._requests = 0
        self.dropped = dict.fromkeys((load.name for load in loads), 0)
        for load in loads:
            self._expect(_Source(load))

    def advance(self, until_ns: int) -> None:
        """Let items arrive, up to the next request or to the end of an instant."""
        coming = self.coming
        while coming:
            instant_ns, _, source, stage, _, _, _ = coming[0]
            if stage is not None or instant_ns > until_ns:
                return
            if source.window is None or source.under_way < source.window:
                self._begin(source, instant_ns)
            elif source.load.drops:
                self.dropped[source.load.name] += 1
            else:
                source.holds_back = True
                heappop(coming)
                continue
            # Nothing that has been added meanwhile goes before the arrival itself.
            next_ns = next(source.arrivals, None)
            if next_ns is None:
                heappop(coming)
            else:
                self._numbers += 1
                heapreplace(coming, (next_ns, self._numbers, source, None, 0, None, None))

    def take(self) -> ExecutionRequest:
        """Return the next request."""
        _, _, source, stage, submitted_ns, deadline_ns, item = heappop(self.coming)
        assert stage is not None
        number = self._requests = self._requests + 1
        # It arrived when it was submitted; that is known only now.
        return ExecutionRequest(
            number,
            stage.model,
            submitted_ns,
            stage.segment_count,
            stage.priority,
            deadline_ns,
            (source, stage, item),
        )

    def finished(self, request: ExecutionRequest, now_ns: int) -> None:
        """Send the item on to the stages that waited for this one, or let it leave."""
        source, stage, item = request.payload
        if item is not None:
            item.left -= 1
            if source.has_more and request.state is _COMPLETED:
                item.done = (*item.done, stage.name)
                for other in source.load.stages:
                    if stage.name in other.after and all(name in item.done for name in other.after):
                        item.left += 1
                        self._submit(source, other, now_ns, item.origin_ns, item)
            if item.left:
                return
        source.under_way -= 1
        if source.holds_back:
            source.holds_back = False
            self._begin(source, now_ns)
            self._expect(source)

    def _expect(self, source: _Source) -> None:
        instant_ns = next(source.arrivals, None)
        if instant_ns is not None:
            self._numbers += 1
            heappush(self.coming, (instant_ns, self._numbers, source, None, 0, None, None))

    def _begin(self, source: _Source, now_ns: int) -> None:
        source.under_way += 1
        if source.only is not None:
            self._submit(source, source.only, now_ns, now_ns, None)
            return
        item = _Item(now_ns, len(source.first))
        for stage in source.first:
            self._submit(source, stage, now_ns, now_ns, item)

    def _submit(
        self, source: _Source, stage: StageLoad, now_ns: int, origin_ns: int, item: _Item | None
    ) -> None:
        host_ns, wakes_ns = stage.host_ns, stage.wakes_ns
        if host_ns:
            now_ns += host_ns[int(self._draw() * len(host_ns))]
        wake_ns = wakes_ns[int(self._draw() * len(wakes_ns))] if wakes_ns else 0
        deadline_ns = source.deadline_ns
        if deadline_ns is not None:
            deadline_ns += origin_ns
        elif stage.deadline_ns is not None:
            deadline_ns = now_ns + stage.deadline_ns
        self._numbers += 1
        heappush(
            self.coming,
            (now_ns + wake_ns, self._numbers, source, stage, now_ns, deadline_ns, item),
        )


def periodic(period_ns: int, start_ns: int = 0) -> Callable[[], Iterator[int]]:
    """Return arrivals at a fixed distance."""

    def make() -> Iterator[int]:
        instant_ns = start_ns
        while True:
            yield instant_ns
            instant_ns += period_ns

    return make


def poisson(rate_per_s: float, seed: int) -> Callable[[], Iterator[int]]:
    """Return arrivals of a Poisson process."""

    def make() -> Iterator[int]:
        draw, log = random.Random(seed).random, math.log
        mean_ns, instant_ns = 1e9 / rate_per_s, 0.0
        while True:
            instant_ns -= log(1.0 - draw()) * mean_ns
            yield round(instant_ns)

    return make


def always(start_ns: int = 0) -> Callable[[], Iterator[int]]:
    """Return arrivals of a source that offers an item whenever one is taken."""

    def make() -> Iterator[int]:
        while True:
            yield start_ns

    return make


# --- durations ----------------------------------------------------------------------------------


def fixed_times(segments_ns: Mapping[str, Sequence[int]]) -> Times:
    """Let every request of a model take the same time, given per segment."""

    def times(request: ExecutionRequest, segment: int, beside: Sequence[str]) -> int:
        return segments_ns[request.model][segment]

    return times


# --- figures ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prediction:
    """One model's figures of a simulated run; durations in nanoseconds."""

    model: str
    submitted: int
    completed: int
    misses: int
    """Requests whose result came late or not at all."""
    dropped: int
    """Expired, rejected or cancelled."""
    p50_ns: int
    """Arrival to result, of completed requests."""
    p99_ns: int
    longest_ns: int


class Tally:
    """Counts what becomes of requests, by model."""

    def __init__(self, models: Sequence[str]) -> None:
        self._latencies = {model: array("q") for model in models}
        self._dropped = dict.fromkeys(models, 0)
        self._misses = dict.fromkeys(models, 0)

    def __call__(self, request: ExecutionRequest) -> None:
        """Take note of a request that is over."""
        model, finished_ns = request.degraded_from or request.model, request.finished_ns
        deadline_ns = request.deadline_ns
        if request.state is _COMPLETED:
            self._latencies[model].append(finished_ns - request.arrival_ns)
            if deadline_ns is not None and finished_ns > deadline_ns:
                self._misses[model] += 1
            return
        self._dropped[model] += 1
        if request.deadline_missed:
            self._misses[model] += 1

    def add(self, other: Tally) -> None:
        """Take over what another one has counted, of the same models."""
        for model, latencies in other._latencies.items():
            self._latencies[model].extend(latencies)
            self._dropped[model] += other._dropped[model]
            self._misses[model] += other._misses[model]

    def predictions(self) -> tuple[Prediction, ...]:
        """Return the figures so far, exact over all requests."""
        return tuple(self._prediction(model) for model in self._latencies)

    def _prediction(self, model: str) -> Prediction:
        ordered = np.sort(np.frombuffer(self._latencies[model], np.int64))
        completed = len(ordered)
        return Prediction(
            model,
            completed + self._dropped[model],
            completed,
            self._misses[model],
            self._dropped[model],
            _at(ordered, 0.5),
            _at(ordered, 0.99),
            int(ordered[-1]) if completed else 0,
        )


def _at(ordered: np.ndarray, q: float) -> int:
    if not len(ordered):
        return 0
    return int(ordered[max(0, -(-round(q * 1e6) * len(ordered) // 1_000_000) - 1)])
