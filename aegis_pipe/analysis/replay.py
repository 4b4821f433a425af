"""A recorded run, decided again: by the same policy to the byte, or by another one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop

from aegis_pipe.analysis.profile import median
from aegis_pipe.analysis.simulation import Prediction, Tally, run
from aegis_pipe.errors import KernelError
from aegis_pipe.scheduling.decision import Decision, DecisionKind
from aegis_pipe.scheduling.recording import (
    REASONS,
    Abandoned,
    Cancelled,
    Decided,
    Ended,
    Journal,
    Pending,
    RecordedRun,
    Rejected,
    Submitted,
    numbers_without,
)
from aegis_pipe.scheduling.request import ExecutionRequest, RequestState
from aegis_pipe.scheduling.scheduler import Scheduler

OnDecision = Callable[[Decision], None]


@dataclass(frozen=True, slots=True)
class Replay:
    """What came out."""

    journal: str
    """SHA-256 over all decisions, one line of JSON each."""
    decisions: int
    predictions: tuple[Prediction, ...]
    """Of a replay under the same policy: what the run itself did."""
    durations_ns: dict[tuple[int, int], int]
    """Time that each (request, segment) held its stream."""


def replay(recorded: RecordedRun, scheduler: Scheduler, on_decision: OnDecision) -> Replay:
    """Tell a new scheduler the same facts at the same instants.

    Refusals were made on other threads, by places that were taken a moment later or sooner: they
    are taken from the recording, with their places in the order of decisions.
    """
    models: Sequence[str] = recorded.header["models"]
    refusals = frozenset(fact.sequence for fact in recorded.facts if isinstance(fact, Rejected))
    scheduler._sequence = numbers_without(refusals)  # type: ignore[assignment]
    journal, tally = Journal(), Tally(models)
    launched: dict[tuple[int, int], Decision] = {}
    # Per stream: what is launched behind something that is in flight begins when that has ended.
    ended_ns: dict[int, int] = {}
    durations_ns: dict[tuple[int, int], int] = {}
    next_segment: defaultdict[int, int] = defaultdict(int)
    pending: list[ExecutionRequest] = []

    def keep(decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            on_decision(decision)
            if decision.segment >= 0:
                launched[decision.request_id, decision.segment] = decision
        journal.add(decisions)

    for fact in recorded.facts:
        match fact:
            case Submitted():
                request = _request(fact, models)
                refused = scheduler.admit(request, fact.at_ns)
                assert refused is None, f"the recording has a place for {request}"
                scheduler.enqueue(request, fact.at_ns)
            case Pending():
                pending.append(_request(fact, models))
                scheduler.admit(pending[-1], fact.at_ns)
            case Ended():
                key = (fact.request_id, next_segment[fact.request_id])
                next_segment[fact.request_id] += 1
                decision = launched[key]
                begun_ns = max(decision.at_ns, ended_ns.get(decision.stream, 0))
                ended_ns[decision.stream] = fact.at_ns
                durations_ns[key] = fact.at_ns - begun_ns
                error = KernelError("it failed in the recorded run") if fact.failed else None
                scheduler.segment_finished(fact.request_id, fact.at_ns, error)
            case Cancelled():
                scheduler.cancel(fact.request_id, REASONS[fact.reason])
            case Decided():
                keep(scheduler.decide(fact.at_ns))
            case Rejected():
                keep((_refusal(fact, models),))
                tally(_rejected(fact, models))
            case Abandoned():
                error = KernelError("the recorded run failed") if fact.failed else None
                keep(scheduler.abandon(fact.at_ns, error, admitted=pending))
        for request in scheduler.take_finished():
            tally(request)
    return Replay(journal.digest().hex(), journal.count, tally.predictions(), durations_ns)


def what_if(
    recorded: RecordedRun, durations_ns: dict[tuple[int, int], int], scheduler: Scheduler
) -> tuple[Prediction, ...]:
    """Let the same requests arrive at another scheduler; segments take what they took.

    What never ran in the recorded run takes its model's usual time.
    """
    models: Sequence[str] = recorded.header["models"]
    model_of = {
        fact.request_id: models[fact.model]
        for fact in recorded.facts
        if isinstance(fact, Submitted | Rejected)
    }
    by_segment: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for (request_id, segment), duration_ns in durations_ns.items():
        by_segment[model_of[request_id], segment].append(duration_ns)
    usual_ns = {key: median(values) for key, values in by_segment.items()}
    arrivals = [
        _request(fact, models) for fact in recorded.facts if isinstance(fact, Submitted | Rejected)
    ]

    def times(request: ExecutionRequest, segment: int, beside: Sequence[str]) -> int:
        known_ns = durations_ns.get((request.request_id, segment))
        return known_ns if known_ns is not None else usual_ns.get((request.model, segment), 1)

    tally = Tally(models)
    run(scheduler, _Arrivals(arrivals), times, on_finished=tally)
    return tally.predictions()


class _Arrivals:
    """A `Workload` of requests that are known beforehand."""

    def __init__(self, requests: Sequence[ExecutionRequest]) -> None:
        self.coming = [(each.arrival_ns, each.request_id, each) for each in requests]
        heapify(self.coming)

    def advance(self, until_ns: int) -> None:
        """Nothing leads to a request."""
        return

    def take(self) -> ExecutionRequest:
        """Return the next one."""
        return heappop(self.coming)[-1]

    def finished(self, request: ExecutionRequest, now_ns: int) -> None:
        """Nothing follows from it."""
        return


def _request(fact: Submitted | Pending | Rejected, models: Sequence[str]) -> ExecutionRequest:
    return ExecutionRequest(
        fact.request_id,
        models[fact.model],
        fact.arrival_ns,
        fact.segment_count,
        fact.priority,
        None if fact.deadline_ns < 0 else fact.deadline_ns,
    )


def _rejected(fact: Rejected, models: Sequence[str]) -> ExecutionRequest:
    request = _request(fact, models)
    request.move(RequestState.REJECTED)
    request.finished_ns = fact.at_ns
    return request


def _refusal(fact: Rejected, models: Sequence[str]) -> Decision:
    return Decision(
        fact.sequence,
        fact.at_ns,
        DecisionKind.REJECT,
        fact.request_id,
        models[fact.model],
        -1,
        -1,
        REASONS[fact.reason],
        fact.queue_depth,
    )
