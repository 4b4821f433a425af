"""How requests end, in events and in errors."""

from __future__ import annotations

from aegis_pipe.errors import (
    DeadlineExceededError,
    FatalError,
    QueueFullError,
    RequestCancelledError,
    RuntimeStoppedError,
    TransientError,
)
from aegis_pipe.events import RequestFinished
from aegis_pipe.scheduling.decision import Decision, Reason
from aegis_pipe.scheduling.request import ExecutionRequest, RequestState


def ending(request: ExecutionRequest, error: Exception | None) -> RequestFinished:
    """Return the event of a request's end."""
    return RequestFinished(
        request.finished_ns,
        request.request_id,
        request.asked_model,
        request.state,
        request.reason,
        "" if error is None else str(error),
        request.arrival_ns,
        request.started_ns,
        request.deadline_ns or 0,
        request.deadline_missed,
    )


def outcome_error(request: ExecutionRequest) -> Exception | None:
    """Return what a request's caller is told in place of a result; None if there is one."""
    if request.state is RequestState.COMPLETED:
        return None
    context = f"model `{request.asked_model}`, request {request.request_id}"
    if request.state is RequestState.EXPIRED:
        assert request.deadline_ns is not None
        late_ms = (request.finished_ns - request.deadline_ns) / 1e6
        if request.reason == Reason.WOULD_BE_LATE:
            return DeadlineExceededError(
                f"the result would be late: when {-late_ms:.3f} ms were left it still waited in "
                "the queue, and the model needs more",
                context=context,
                hint="`aegis-pipe why` shows who held the streams; allow more time or load less",
            )
        waited = (
            f"after it had run {request.next_segment} of {request.segment_count} segments"
            if request.started_ns
            else "while it waited in the queue"
        )
        return DeadlineExceededError(
            f"the deadline passed {waited} ({late_ms:.3f} ms late)",
            context=context,
            hint="`aegis-pipe why` shows who held the streams; allow more time or load less",
        )
    if request.state is RequestState.CANCELLED:
        if request.reason == Reason.RUNTIME_STOPPING:
            return _stopped_error(context)
        return RequestCancelledError(
            "the request was cancelled", context=context, hint="submit it again if it is wanted"
        )
    return request.error


def refusal_error(
    request: ExecutionRequest, refusal: Decision, needed_ns: int, fatal_error: FatalError | None
) -> TransientError:
    """Return the error for a request that was refused, if its model needs at least that long."""
    context = f"model `{request.model}`"
    if refusal.reason is Reason.WOULD_BE_LATE:
        assert request.deadline_ns is not None
        needed_ms = needed_ns / 1e6
        left_ms = (request.deadline_ns - refusal.at_ns) / 1e6
        return DeadlineExceededError(
            f"the result would be late: the model needs {needed_ms:.3f} ms, and the deadline "
            f"leaves {left_ms:.3f} ms",
            context=context,
            hint="allow more time, or have late requests run or degrade (`late`)",
        )
    if refusal.reason is Reason.QUEUE_FULL:
        return queue_full_error(request, refusal.queue_depth)
    if fatal_error is not None:
        return RuntimeStoppedError(
            f"the runtime has failed: {fatal_error.message}",
            context=context,
            hint="end the process and start it again",
        )
    return _stopped_error(context)


def queue_full_error(request: ExecutionRequest, waiting: int) -> QueueFullError:
    """Return the error for a request that found no place."""
    return QueueFullError(
        f"the queue is full: {waiting} requests wait",
        context=f"model `{request.model}`",
        hint="submit again later or more slowly, or raise `scheduler.queue_capacity`",
    )


def _stopped_error(context: str) -> RuntimeStoppedError:
    return RuntimeStoppedError(
        "the runtime is stopping", context=context, hint="open it again to go on"
    )
