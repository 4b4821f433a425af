"""Earliest deadline first."""

from __future__ import annotations

from aegis_pipe.scheduling.decision import Reason
from aegis_pipe.scheduling.policy import KeyedPolicy
from aegis_pipe.scheduling.request import ExecutionRequest
from aegis_pipe.scheduling.request_heap import Key

NO_DEADLINE_NS = 1 << 62
"""Stands for "never" (146 years): after every real deadline."""


class EdfPolicy(KeyedPolicy):
    """Whose result is due first is next; equal ones, and those without a deadline, by arrival.

    Scores are nanoseconds of slack, negated. Preempts at segment boundaries if the waiting
    request is due strictly earlier. A request without a deadline goes last, and waits as long as
    there are requests with one: give it a deadline if it must not starve.
    """

    name = "edf"

    def key(self, request: ExecutionRequest, now_ns: int) -> Key:
        """Order by deadline, then by arrival."""
        deadline_ns = request.deadline_ns
        due_ns = NO_DEADLINE_NS if deadline_ns is None else deadline_ns
        return (due_ns, request.arrival_ns, request.request_id)

    def score(self, request: ExecutionRequest, now_ns: int) -> float:
        """Return the slack, negated."""
        deadline_ns = request.deadline_ns
        return now_ns - (NO_DEADLINE_NS if deadline_ns is None else deadline_ns)

    def reason(self, winner: ExecutionRequest, runner_up: ExecutionRequest) -> Reason:
        """Deadlines decide, or arrival between equal ones."""
        if _due_ns(winner) < _due_ns(runner_up):
            return Reason.EARLIEST_DEADLINE
        return Reason.FIRST_ARRIVAL

    def preempts(self, waiting: ExecutionRequest, paused: ExecutionRequest, now_ns: int) -> bool:
        """Return whether the waiting one is due earlier."""
        return _due_ns(waiting) < _due_ns(paused)


def _due_ns(request: ExecutionRequest) -> int:
    return NO_DEADLINE_NS if request.deadline_ns is None else request.deadline_ns
