"""A request and the states it moves through, by a table of legal moves."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from aegis_pipe.scheduling.decision import Reason


class RequestState(enum.StrEnum):
    """Where a request stands."""

    CREATED = "created"
    QUEUED = "queued"
    RUNNING = "running"
    """A segment is on a stream."""
    PAUSED = "paused"
    """Between two segments, waiting for `continue`."""
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    REJECTED = "rejected"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Return whether no move leads out of this state."""
        return not LEGAL_MOVES[self]


# A member of an enum is slow to reach through its class.
_EXPIRED = RequestState.EXPIRED
# Every open request can fail (with the whole runtime, at the latest) or be cancelled.
_ABANDONED = frozenset({RequestState.FAILED, RequestState.CANCELLED})

LEGAL_MOVES: dict[RequestState, frozenset[RequestState]] = {
    RequestState.CREATED: frozenset({RequestState.QUEUED, RequestState.REJECTED}) | _ABANDONED,
    RequestState.QUEUED: frozenset({RequestState.RUNNING, RequestState.EXPIRED}) | _ABANDONED,
    RequestState.RUNNING: frozenset({RequestState.PAUSED, RequestState.COMPLETED}) | _ABANDONED,
    RequestState.PAUSED: frozenset({RequestState.RUNNING, RequestState.EXPIRED}) | _ABANDONED,
    RequestState.COMPLETED: frozenset(),
    RequestState.FAILED: frozenset(),
    RequestState.EXPIRED: frozenset(),
    RequestState.REJECTED: frozenset(),
    RequestState.CANCELLED: frozenset(),
}


@dataclass(slots=True, eq=False)
class ExecutionRequest:
    """One inference to be scheduled. Changed by the scheduler only.

    What every request goes through is assigned and asserted in place there, all else by `move`.
    """

    request_id: int
    """Ascending with arrival; the last tie-break everywhere."""
    model: str
    arrival_ns: int
    segment_count: int = 1
    priority: int = 0
    """Higher is more urgent."""
    deadline_ns: int | None = None
    """Instant by which the result is due."""
    payload: Any = None
    """What the launcher needs (inputs, future); the scheduler never looks at it."""
    traceparent: str = ""
    """W3C `traceparent` of the caller, or empty."""
    state: RequestState = RequestState.CREATED
    next_segment: int = 0
    """Segments already finished."""
    launched_segments: int = 0
    """Segments already handed out; what is above `next_segment` is in flight."""
    stream: int | None = None
    started_ns: int = 0
    """When it left the queue; 0 if it has not."""
    launched_ns: int = 0
    """When its latest segment was handed out."""
    busy_since_ns: int = 0
    """Since when its stream has worked on what is in flight."""
    finished_ns: int = 0
    """When it reached its final state; 0 until then."""
    reason: str = ""
    """Why it is in its final state: a `Reason`, or empty for a plain completion."""
    error: Exception | None = None
    """What went wrong, if it failed."""
    cancel_reason: Reason | None = None
    """Set once somebody has asked for it to end; a running segment is finished first."""
    timer_ns: int | None = None
    """When `Deadlines` reports it as late; None for never."""
    blocked_by: tuple[int, ...] = ()
    """Requests that held its streams when it arrived."""
    companions: tuple[ExecutionRequest, ...] = ()
    """Requests of its model that run along with it, in one batch."""
    leader: ExecutionRequest | None = None
    """The request that it runs along with: that one holds the stream."""
    batch_size: int = 1
    """Rows of the variant that it runs in."""
    degraded_from: str = ""
    """The model that was asked for, if another one stands in for it."""

    @property
    def asked_model(self) -> str:
        """The model that was asked for."""
        return self.degraded_from or self.model

    @property
    def deadline_missed(self) -> bool:
        """Return whether it ended without a result in time; finishing on the dot is in time."""
        if self.deadline_ns is None:
            return False
        return self.finished_ns > self.deadline_ns or self.state is _EXPIRED

    def move(self, target: RequestState) -> None:
        """Go to another state; a move that is not in the table is our bug."""
        assert target in LEGAL_MOVES[self.state], (
            f"request {self.request_id}: {self.state} -> {target} is not a legal move"
        )
        self.state = target
