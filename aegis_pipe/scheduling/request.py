"""A request and the states it moves through, by a table of legal moves and no other way."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any


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


LEGAL_MOVES: dict[RequestState, frozenset[RequestState]] = {
    RequestState.CREATED: frozenset({RequestState.QUEUED, RequestState.REJECTED}),
    RequestState.QUEUED: frozenset(
        {
            RequestState.RUNNING,
            RequestState.EXPIRED,
            RequestState.REJECTED,
            RequestState.CANCELLED,
        }
    ),
    RequestState.RUNNING: frozenset(
        {
            RequestState.PAUSED,
            RequestState.COMPLETED,
            RequestState.FAILED,
            RequestState.EXPIRED,
            RequestState.CANCELLED,
        }
    ),
    RequestState.PAUSED: frozenset(
        {RequestState.RUNNING, RequestState.EXPIRED, RequestState.CANCELLED, RequestState.FAILED}
    ),
    RequestState.COMPLETED: frozenset(),
    RequestState.FAILED: frozenset(),
    RequestState.EXPIRED: frozenset(),
    RequestState.REJECTED: frozenset(),
    RequestState.CANCELLED: frozenset(),
}


@dataclass(slots=True, eq=False)
class ExecutionRequest:
    """One inference to be scheduled. Changed by the scheduler only, through `move`."""

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
    state: RequestState = RequestState.CREATED
    next_segment: int = 0
    stream: int | None = None
    started_ns: int = 0
    reason: str = ""
    """Why it is in its final state."""
    blocked_by: tuple[int, ...] = field(default=())

    def move(self, target: RequestState) -> None:
        """Go to another state; a move that is not in the table is our bug."""
        assert target in LEGAL_MOVES[self.state], (
            f"request {self.request_id}: {self.state} -> {target} is not a legal move"
        )
        self.state = target
