"""What `Scheduler.decide` returns: plain values that say what to do and why."""

from __future__ import annotations

import enum
import json
from typing import NamedTuple


class DecisionKind(enum.StrEnum):
    """What is to be done with a request."""

    START = "start"
    CONTINUE = "continue"
    EXPIRE = "expire"
    REJECT = "reject"
    CANCEL = "cancel"
    DEGRADE = "degrade"
    """The request waits on, for the model that stands in for its own."""


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
    BATCHED = "batched"
    """Goes along with the request whose `start` stands before this one on the stream."""
    DEADLINE_PASSED = "deadline_passed"
    WOULD_BE_LATE = "would_be_late"
    """The time left is less than its model is known to need."""
    DEGRADED = "degraded"
    """Completed by the model that stands in for its own."""
    QUEUE_FULL = "queue_full"
    CALLER_CANCELLED = "caller_cancelled"
    RUNTIME_STOPPING = "runtime_stopping"
    SEGMENT_FAILED = "segment_failed"
    """Launching or running a segment raised; the request's error says what."""
    RUNTIME_FAILED = "runtime_failed"
    """A fatal error ended the runtime with this request open."""


class Decision(NamedTuple):
    """One decision about one request."""

    sequence: int
    """Position in the run's decision log; ascending, no gaps."""
    at_ns: int
    kind: DecisionKind
    request_id: int
    model: str
    segment: int
    """The segment to launch, for `start` and `continue`; -1 otherwise, and of a `start` that goes
    along in a batch."""
    stream: int
    """-1 where no stream is involved."""
    reason: Reason
    """Of a `start`: the rule that set the winner apart from the runner-up."""
    queue_depth: int
    """Requests waiting before the decision."""
    candidates: tuple[tuple[int, float], ...] = ()
    """Best waiting requests as (request_id, score), best first; of a `start` the winner leads.
    Empty for `reject` and `cancel`, which nobody competes for."""
    blocked_by: tuple[int, ...] = ()
    """Requests that held its streams while it waited: those at its arrival, then the latest few
    that started before it."""


def format_decision(decision: Decision) -> str:
    """Format as one line of JSON whose bytes depend on the decision alone."""
    return json.dumps(decision._asdict(), separators=(",", ":"))
