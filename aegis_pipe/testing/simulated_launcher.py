"""Segments that take a known time on a virtual clock, and whole runs of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from aegis_pipe.scheduling.decision import Decision
from aegis_pipe.scheduling.loop import SegmentCompletion
from aegis_pipe.scheduling.request import ExecutionRequest, RequestState
from aegis_pipe.scheduling.scheduler import Scheduler
from aegis_pipe.testing.virtual_clock import VirtualClock

Durations = Callable[[ExecutionRequest, int], int]
"""Nanoseconds that a request's segment (by number) takes."""


def durations_by_model(durations_ns: Mapping[str, Sequence[int]]) -> Durations:
    """Let every request of a model take the same time, given per segment."""
    return lambda request, segment: durations_ns[request.model][segment]


Failures = Callable[[ExecutionRequest, int], Exception | None]
"""What a request's segment (by number) ends with; None if it goes well."""


def _do_nothing() -> None:
    pass


def _no_failure(request: ExecutionRequest, segment: int) -> None:
    pass


class SimulatedLauncher:
    """A `Launcher` whose segments end after their duration on the virtual clock.

    Calls `notify` at each end. Keeps the outcome of every finished request in `finished`.
    """

    notifies = True

    def __init__(
        self,
        clock: VirtualClock,
        durations: Durations,
        notify: Callable[[], None] = _do_nothing,
        *,
        failures: Failures = _no_failure,
    ) -> None:
        self._clock = clock
        self._durations = durations
        self._failures = failures
        self._ended: list[SegmentCompletion] = []
        # Per stream the requests whose segments are in flight, in order, and the last one's end.
        self._in_flight: dict[int, deque[ExecutionRequest]] = {}
        self._busy_until_ns: dict[int, int] = {}
        self.notify = notify
        self.finished: list[tuple[ExecutionRequest, RequestState, Exception | None]] = []

    stages_ahead = False

    def stage(self, request: ExecutionRequest) -> None:
        """Do nothing: there are no inputs."""

    def launch(self, request: ExecutionRequest, segment: int, stream: int) -> None:
        """Occupy the stream for the segment's duration, once what is in flight there has ended."""
        in_flight = self._in_flight.setdefault(stream, deque())
        others = {id(each) for each in in_flight if each is not request}
        assert len(others) < 2, f"stream {stream} runs three requests"
        start_ns = max(self._clock.now_ns(), self._busy_until_ns.get(stream, 0))
        end_ns = start_ns + self._durations(request, segment)
        in_flight.append(request)
        self._busy_until_ns[stream] = end_ns
        error = self._failures(request, segment)
        completion = SegmentCompletion(request.request_id, stream, error)
        self._clock.call_at(end_ns, lambda: self._end(completion))

    def poll(self) -> Iterable[SegmentCompletion]:
        """Return what has ended, in order."""
        ended, self._ended = self._ended, []
        return ended

    def finish(
        self, request: ExecutionRequest, state: RequestState, error: Exception | None
    ) -> None:
        """Keep the outcome."""
        self.finished.append((request, state, error))

    def _end(self, completion: SegmentCompletion) -> None:
        self._in_flight[completion.stream].popleft()
        self._ended.append(completion)
        self.notify()


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What happened in a simulated run."""

    decisions: tuple[Decision, ...]
    """The whole decision log."""
    finished: tuple[ExecutionRequest, ...]
    """Requests that reached a final state, in that order."""
    end_ns: int
    """The instant at which the run ended."""


def simulate(
    scheduler: Scheduler,
    arrivals: Iterable[ExecutionRequest],
    durations: Durations,
    until_ns: int | None = None,
) -> SimulationResult:
    """Run requests through a scheduler on virtual time, jumping from event to event.

    Each request arrives at its `arrival_ns`. The run ends when nothing is left to happen, or with
    the last event up to `until_ns`; requests still open then are in no final state. What happens
    at one instant is seen in this order: segments that end, requests that arrive, decisions.
    """
    clock = VirtualClock()
    launcher = SimulatedLauncher(clock, durations)
    decisions: list[Decision] = []
    finished: list[ExecutionRequest] = []
    requests = {request.request_id: request for request in arrivals}
    waiting = sorted(
        requests.values(),
        key=lambda request: (request.arrival_ns, request.request_id),
        reverse=True,
    )
    while (now_ns := _next_event_ns(clock, scheduler, waiting)) is not None:
        if until_ns is not None and now_ns > until_ns:
            break
        clock.advance_to(now_ns)
        for completion in launcher.poll():
            scheduler.segment_finished(completion.request_id, now_ns, completion.error)
        while waiting and waiting[-1].arrival_ns <= now_ns:
            request = waiting.pop()
            refusal = scheduler.submit(request, now_ns)
            if refusal is not None:
                decisions.append(refusal)
                finished.append(request)
        for decision in scheduler.decide(now_ns):
            decisions.append(decision)
            if decision.segment >= 0:
                launcher.launch(requests[decision.request_id], decision.segment, decision.stream)
        finished += scheduler.take_finished()
    return SimulationResult(tuple(decisions), tuple(finished), clock.now_ns())


def _next_event_ns(
    clock: VirtualClock, scheduler: Scheduler, waiting: Sequence[ExecutionRequest]
) -> int | None:
    instants = (
        clock.next_call_ns(),
        scheduler.next_deadline_ns(),
        waiting[-1].arrival_ns if waiting else None,
    )
    earliest = min((instant for instant in instants if instant is not None), default=None)
    # A request may arrive with its deadline behind it.
    return None if earliest is None else max(earliest, clock.now_ns())
