"""What `Scheduler.decide` returns: plain values that say what to do and why."""

from __future__ import annotations

import enum
from typing import NamedTuple


class DecisionKind(enum.StrEnum):
    """What is to be done with a request."""

    START = "start"
    CONTINUE = "continue"
    EXPIRE = "expire"
    REJECT = "reject"
    CANCEL = "cancel"


class Reason(enum.StrEnum):
    """Why; codes are stable, users filter traces by them."""

    ONLY_CANDIDATE = "only_candidate"
    FIRST_ARRIVAL = "first_arrival"
    HIGHEST_PRIORITY = "highest_priority"
    AGED_PRIORITY = "aged_priority"
    """Won because waiting raised its priority above another's."""
    EARLIEST_DEADLINE = "earliest_deadline"
    LEAST_SERVICE = "least_service"
    POLICY = "policy"
    """A custom policy's choice."""
    NEXT_SEGMENT = "next_segment"
    DEADLINE_PASSED = "deadline_passed"
    QUEUE_FULL = "queue_full"
    CALLER_CANCELLED = "caller_cancelled"
    RUNTIME_STOPPING = "runtime_stopping"


class Decision(NamedTuple):
    """One decision about one request."""

    sequence: int
    at_ns: int
    kind: DecisionKind
    request_id: int
    model: str
    segment: int
    """The segment to launch, for `start` and `continue`; -1 otherwise."""
    stream: int
    """-1 where no stream is involved."""
    reason: Reason
    queue_depth: int
    candidates: tuple[tuple[int, float], ...] = ()
    blocked_by: tuple[int, ...] = ()
