"""First come, first served."""

from __future__ import annotations

from aegis_pipe.scheduling.decision import Reason
from aegis_pipe.scheduling.policy import KeyedPolicy
from aegis_pipe.scheduling.request import ExecutionRequest
from aegis_pipe.scheduling.request_heap import Key


class FifoPolicy(KeyedPolicy):
    """Whoever arrived first is next; never preempts. Scores are nanoseconds waited."""

    name = "fifo"

    def key(self, request: ExecutionRequest, now_ns: int) -> Key:
        """Order by arrival."""
        return (request.arrival_ns, request.request_id)

    def score(self, request: ExecutionRequest, now_ns: int) -> float:
        """Return nanoseconds waited."""
        return now_ns - request.arrival_ns

    def reason(self, winner: ExecutionRequest, runner_up: ExecutionRequest) -> Reason:
        """Only arrival counts."""
        return Reason.FIRST_ARRIVAL
