"""Highest priority first, with ageing so that nobody waits for ever."""

from __future__ import annotations

from aegis_pipe.errors import PermanentError
from aegis_pipe.scheduling.decision import Reason
from aegis_pipe.scheduling.policy import KeyedPolicy
from aegis_pipe.scheduling.request import ExecutionRequest
from aegis_pipe.scheduling.request_heap import Key


class PriorityPolicy(KeyedPolicy):
    """Highest effective priority first; equal ones by arrival. Scores are effective priorities.

    Waiting `ageing_ns` is worth one level: at time t, with a = `ageing_ns`, a request's effective
    priority is

        score(t) = priority + (t - arrival) / a

    The order of two requests x, y never changes while both wait, so nothing is ever re-sorted:

        score_x(t) > score_y(t)
        <=>  a * priority_x + t - arrival_x  >  a * priority_y + t - arrival_y
        <=>  arrival_x - a * priority_x      <  arrival_y - a * priority_y

    t is gone: the right-hand side is a key known on arrival. It also bounds the wait: only
    requests that arrive less than a * (highest priority - own priority) after a request can go
    before it. `ageing_ns=0` means no ageing: strict priority, which can starve.

    Preempts at segment boundaries if the waiting request has the strictly higher priority of its
    own and the higher effective one.
    """

    name = "priority"

    def __init__(self, *, ageing_ns: int = 0) -> None:
        if ageing_ns < 0:
            raise PermanentError(
                f"ageing is {ageing_ns} ns, less than nothing",
                context="policy `priority`",
                hint="give the wait that is worth one priority level, or 0 for strict priority",
            )
        super().__init__()
        self._ageing_ns = ageing_ns

    def key(self, request: ExecutionRequest, now_ns: int) -> Key:
        """Order as proven above, then by arrival."""
        arrival_ns = request.arrival_ns
        if not self._ageing_ns:
            return (-request.priority, arrival_ns, request.request_id)
        rank = arrival_ns - self._ageing_ns * request.priority
        return (rank, arrival_ns, request.request_id)

    def score(self, request: ExecutionRequest, now_ns: int) -> float:
        """Return the effective priority."""
        if not self._ageing_ns:
            return request.priority
        return request.priority + (now_ns - request.arrival_ns) / self._ageing_ns

    def reason(self, winner: ExecutionRequest, runner_up: ExecutionRequest) -> Reason:
        """Compare own priorities: higher, lower (so it was age), or equal."""
        if winner.priority > runner_up.priority:
            return Reason.HIGHEST_PRIORITY
        if winner.priority < runner_up.priority:
            return Reason.AGED_PRIORITY
        return Reason.FIRST_ARRIVAL

    def preempts(self, waiting: ExecutionRequest, paused: ExecutionRequest, now_ns: int) -> bool:
        """Return whether the waiting one is above the paused one in both senses."""
        if waiting.priority <= paused.priority:
            return False
        # Without ageing, the higher priority is all there is to it.
        return not self._ageing_ns or self.key(waiting, now_ns)[0] < self.key(paused, now_ns)[0]
