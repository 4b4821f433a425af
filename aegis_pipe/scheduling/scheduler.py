"""Decides who runs next, on which stream, and why.

The scheduler is a state machine without input or output: it reads no clock, starts no thread
and launches nothing. Facts go in (`submit`, `cancel`, `segment_finished`), decisions come out
(`decide`), and its own state has already changed when they do: whoever holds a decision only has
to carry it out. The same facts at the same instants give the same decisions, byte for byte.

    queued --start--> running --segment_finished--> paused --continue--> running ... completed

A paused request stands at a segment boundary and still holds its stream. With preemption, the
policy may let a waiting request take the stream there; the paused one is then *suspended* on that
stream and goes on when the stream is given back. It never moves to another stream, because its
intermediate tensors lie in that stream's memory; for the same reason nobody can preempt a request
of its own model.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from aegis_pipe.scheduling.decision import Decision, DecisionKind, Reason
from aegis_pipe.scheduling.policy import NO_MODELS, Candidates, SchedulingPolicy
from aegis_pipe.scheduling.queue import BoundedQueue
from aegis_pipe.scheduling.request import ExecutionRequest, RequestState
from aegis_pipe.scheduling.stream_pool import StreamPool

Late = Literal["drop", "run"]
"""What becomes of a request whose deadline has passed: it expires, or is only counted as late."""

CANDIDATES_MAX = 4
BLOCKERS_MAX = 8


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """What the scheduler has done so far, and where its requests stand now."""

    waiting: int
    """Requests that hold a place in the queue."""
    running: int
    paused: int
    """Requests at a segment boundary that hold their stream."""
    suspended: int
    """Requests whose stream was taken at a segment boundary."""
    submitted: int
    """Requests that got a place in the queue."""
    started: int
    preempted: int
    completed: int
    failed: int
    expired: int
    cancelled: int
    rejected: int
    """Requests refused for want of a place, or because the runtime was stopping."""
    deadline_missed: int
    """Requests whose result came late or not at all."""
    queue_depth_max: int


class Scheduler:
    """Queue, free streams and policy in; decisions out.

    `late` says per model what a passed deadline means; "drop" unless named. A waiting request is
    dropped once its deadline has come; a running one at the end of its segment, if that came too
    late. `preemption` allows preemption at segment boundaries; of models that `memory_of` gives
    the same value, whose intermediate tensors share memory on a stream, none preempts another.

    Everything but `admit` and `statistics` belongs to one thread.
    """

    def __init__(
        self,
        policy: SchedulingPolicy,
        streams: StreamPool,
        *,
        queue_capacity: int,
        model_capacity: Mapping[str, int] | None = None,
        late: Mapping[str, Late] | None = None,
        preemption: bool = False,
        memory_of: Mapping[str, Hashable] | None = None,
    ) -> None:
        self.queue = BoundedQueue(policy, queue_capacity, model_capacity)
        self._policy = policy
        self._streams = streams
        self._runs_late = frozenset(model for model, what in (late or {}).items() if what == "run")
        self._preemption = preemption
        self._sharing = _sharing(memory_of or {})
        self._requests: dict[int, ExecutionRequest] = {}
        # Streams whose holder is paused, waiting for `decide`.
        self._boundaries: set[int] = set()
        # Per stream the requests that were preempted there; the last one goes on first.
        self._suspended: list[list[ExecutionRequest]] = [[] for _ in range(streams.count)]
        self._to_cancel: list[ExecutionRequest] = []
        self._finished: list[ExecutionRequest] = []
        self._decisions: list[Decision] = []
        # (instant, stream, request_id) of the latest times a stream changed hands.
        self._takeovers: deque[tuple[int, int, int]] = deque(maxlen=BLOCKERS_MAX * streams.count)
        # next() of an itertools.count is atomic: `admit` runs on other threads.
        self._sequence = itertools.count()
        self._final_counts = dict.fromkeys(RequestState, 0)
        self._submitted = self._started = self._preempted = 0
        self._running = self._deadline_missed = self._queue_depth_max = 0

    def __repr__(self) -> str:
        return f"<Scheduler {self.policy_name}: {self.queue!r} {self._streams!r}>"

    @property
    def policy_name(self) -> str:
        """Name of the policy in force."""
        return self._policy.name

    @property
    def running(self) -> int:
        """Number of requests with a segment on a stream."""
        return self._running

    @property
    def is_idle(self) -> bool:
        """Return whether no request is open and none is about to be enqueued."""
        return not self._requests and not self.queue.places_taken

    def submit(self, request: ExecutionRequest, now_ns: int) -> Decision | None:
        """Enqueue a request and return None, or return the decision to reject it."""
        refusal = self.admit(request, now_ns)
        if refusal is None:
            self.enqueue(request, now_ns)
        return refusal

    def admit(self, request: ExecutionRequest, now_ns: int) -> Decision | None:
        """First half of `submit`, from any thread: take a place, or reject at once."""
        reason = self.queue.reserve(request.model)
        if reason is None:
            return None
        request.move(RequestState.REJECTED)
        request.reason = reason
        request.finished_ns = now_ns
        return Decision(
            next(self._sequence),
            now_ns,
            DecisionKind.REJECT,
            request.request_id,
            request.model,
            -1,
            -1,
            reason,
            self.queue.places_taken,
        )

    def enqueue(self, request: ExecutionRequest, now_ns: int) -> None:
        """Second half of `submit`: put an admitted request into its place."""
        assert request.request_id not in self._requests, f"request {request.request_id} is open"
        self._requests[request.request_id] = request
        request.move(RequestState.QUEUED)
        if not self._streams.has_free_for(request.model):
            request.blocked_by = self._streams.holders_for(request.model)
        self.queue.push(request, now_ns)
        self._set_timer(request)
        self._submitted += 1
        self._queue_depth_max = max(self._queue_depth_max, len(self.queue))

    def cancel(self, request_id: int, reason: Reason = Reason.CALLER_CANCELLED) -> bool:
        """Ask for a request to end; return whether it was open.

        The decision follows with the next `decide`, or at the end of the running segment.
        """
        request = self._requests.get(request_id)
        if request is None:
            return False
        if request.cancel_reason is None:
            request.cancel_reason = reason
            self._to_cancel.append(request)
        return True

    def cancel_all(self, reason: Reason) -> None:
        """Ask for every open request to end."""
        for request_id in self._requests:
            self.cancel(request_id, reason)

    def segment_finished(
        self, request_id: int, now_ns: int, error: Exception | None = None
    ) -> None:
        """Take note that a request's segment left its stream, with or without an error."""
        request = self._requests[request_id]
        assert request.state is RequestState.RUNNING, f"request {request_id} was not running"
        assert request.stream is not None
        self._running -= 1
        request.next_segment += 1
        self._policy.served(request, now_ns - request.launched_ns)
        is_last = request.next_segment == request.segment_count
        if error is not None:
            request.error = error
            self._finish(request, RequestState.FAILED, Reason.SEGMENT_FAILED, now_ns)
        elif is_last and request.cancel_reason is None and not self._is_dropped(request, now_ns):
            self._finish(request, RequestState.COMPLETED, "", now_ns)
        else:
            self._pause(request)

    def decide(self, now_ns: int) -> tuple[Decision, ...]:
        """Decide everything that can be decided now.

        In this order: cancellations, expiries, starts on free streams, and streams at a segment
        boundary. Starts come first so that nobody is preempted while a stream is free.
        """
        self._cancel_waiting(now_ns)
        self._expire_waiting(now_ns)
        self._fill_free_streams(now_ns)
        for stream in sorted(self._boundaries):
            self._pass_boundary(stream, now_ns)
        self._boundaries.clear()
        return self._take_decisions()

    def abandon(
        self,
        now_ns: int,
        error: Exception | None = None,
        *,
        admitted: Iterable[ExecutionRequest] = (),
    ) -> tuple[Decision, ...]:
        """End all open requests, and those `admitted` but not enqueued, on the spot.

        With an error they fail with it, otherwise they are cancelled. Nothing can run afterwards:
        the policy is not even asked, because it may be what failed.
        """
        reason = Reason.RUNTIME_STOPPING if error is None else Reason.RUNTIME_FAILED
        state = RequestState.CANCELLED if error is None else RequestState.FAILED
        # By identifier: one whose enqueueing failed half-way is in both.
        for request in (
            self._requests | {request.request_id: request for request in admitted}
        ).values():
            if request.state in (RequestState.CREATED, RequestState.QUEUED):
                self.queue.release(request.model)
            if error is None:
                self._decide(DecisionKind.CANCEL, request, reason, now_ns)
            request.error = error
            self._close(request, state, reason, now_ns)
        self._requests.clear()
        self._boundaries.clear()
        self._suspended = [[] for _ in self._suspended]
        self._running = 0
        return self._take_decisions()

    def take_finished(self) -> tuple[ExecutionRequest, ...]:
        """Return the requests that reached a final state since the last call, in order."""
        finished = tuple(self._finished)
        self._finished.clear()
        return finished

    def next_deadline_ns(self) -> int | None:
        """Return when `decide` has to be called even if nothing happens; None for never."""
        return self.queue.next_deadline_ns()

    def statistics(self) -> SchedulerStatistics:
        """Return counts of what happened and of where requests stand.

        From another thread the counts may be of slightly different moments.
        """
        return SchedulerStatistics(
            waiting=self.queue.places_taken,
            running=self._running,
            paused=len(self._boundaries),
            suspended=sum(map(len, self._suspended)),
            submitted=self._submitted,
            started=self._started,
            preempted=self._preempted,
            completed=self._final_counts[RequestState.COMPLETED],
            failed=self._final_counts[RequestState.FAILED],
            expired=self._final_counts[RequestState.EXPIRED],
            cancelled=self._final_counts[RequestState.CANCELLED],
            rejected=self.queue.refusals,
            deadline_missed=self._deadline_missed,
            queue_depth_max=self._queue_depth_max,
        )

    # What `decide` does, in its order.

    def _cancel_waiting(self, now_ns: int) -> None:
        for request in self._to_cancel:
            # A running one comes back here when its segment ends.
            if request.state in (RequestState.QUEUED, RequestState.PAUSED):
                assert request.cancel_reason is not None
                self._decide(DecisionKind.CANCEL, request, request.cancel_reason, now_ns)
                self._finish(request, RequestState.CANCELLED, request.cancel_reason, now_ns)
        self._to_cancel.clear()

    def _expire_waiting(self, now_ns: int) -> None:
        while (request := self.queue.pop_due(now_ns)) is not None:
            self._decide(
                DecisionKind.EXPIRE,
                request,
                Reason.DEADLINE_PASSED,
                now_ns,
                candidates=self._candidates(now_ns, NO_MODELS),
                blocked_by=self._blockers(request),
            )
            self._finish(request, RequestState.EXPIRED, Reason.DEADLINE_PASSED, now_ns)

    def _fill_free_streams(self, now_ns: int) -> None:
        while len(self.queue) and self._streams.has_free:
            skip = self._streams.models_without_free()
            candidates = self._candidates(now_ns, skip)
            if not candidates:
                return
            depth = len(self.queue)
            request, reason = self.queue.pop(now_ns, skip)
            stream = self._streams.acquire(request)
            self._start(request, stream, reason, now_ns, depth, candidates)

    def _pass_boundary(self, stream: int, now_ns: int) -> None:
        paused = self._streams.holder(stream)
        assert paused is not None
        skip = self._models_that_can_not_preempt(stream, paused)
        candidates = self._candidates(now_ns, skip)
        waiting = self._policy.peek(now_ns, skip) if self._preemption else None
        if waiting is None or not self._policy.preempts(waiting, paused, now_ns):
            self._continue(paused, stream, now_ns, candidates)
            return
        depth = len(self.queue)
        request, reason = self.queue.pop(now_ns, skip)
        self._suspended[stream].append(paused)
        self._preempted += 1
        self._streams.hand_over(stream, request)
        self._start(request, stream, reason, now_ns, depth, candidates)

    def _start(
        self,
        request: ExecutionRequest,
        stream: int,
        reason: Reason,
        now_ns: int,
        queue_depth: int,
        candidates: Candidates,
    ) -> None:
        request.stream = stream
        request.started_ns = now_ns
        self._started += 1
        blocked_by = self._blockers(request)
        self._takeovers.append((now_ns, stream, request.request_id))
        self._run(request, now_ns)
        self._decide(
            DecisionKind.START, request, reason, now_ns, queue_depth, candidates, blocked_by
        )

    def _continue(
        self, request: ExecutionRequest, stream: int, now_ns: int, candidates: Candidates
    ) -> None:
        # Only one that was suspended had to wait for anybody since its last segment.
        blocked_by = self._preemptors(request, stream)
        if blocked_by:
            self._takeovers.append((now_ns, stream, request.request_id))
        self._run(request, now_ns)
        self._decide(
            DecisionKind.CONTINUE,
            request,
            Reason.NEXT_SEGMENT,
            now_ns,
            candidates=candidates,
            blocked_by=blocked_by,
        )

    # Moves of one request.

    def _run(self, request: ExecutionRequest, now_ns: int) -> None:
        self.queue.clear_timer(request)
        request.move(RequestState.RUNNING)
        request.launched_ns = now_ns
        self._running += 1

    def _pause(self, request: ExecutionRequest) -> None:
        assert request.stream is not None
        request.move(RequestState.PAUSED)
        self._boundaries.add(request.stream)
        self._set_timer(request)
        if request.cancel_reason is not None:
            self._to_cancel.append(request)

    def _finish(
        self, request: ExecutionRequest, state: RequestState, reason: str, now_ns: int
    ) -> None:
        if request.state is RequestState.QUEUED:
            self.queue.remove(request)
        else:
            self._leave_stream(request)
        self.queue.clear_timer(request)
        del self._requests[request.request_id]
        self._close(request, state, reason, now_ns)

    def _close(
        self, request: ExecutionRequest, state: RequestState, reason: str, now_ns: int
    ) -> None:
        request.move(state)
        request.reason = reason
        request.finished_ns = now_ns
        self._final_counts[state] += 1
        self._deadline_missed += request.deadline_missed
        self._finished.append(request)

    def _leave_stream(self, request: ExecutionRequest) -> None:
        stream = request.stream
        assert stream is not None
        suspended = self._suspended[stream]
        if self._streams.holder(stream) is not request:
            suspended.remove(request)
        elif suspended:
            self._streams.hand_over(stream, suspended.pop())
            self._boundaries.add(stream)
        else:
            self._streams.release(stream)
            self._boundaries.discard(stream)

    # What the above need to know.

    def _set_timer(self, request: ExecutionRequest) -> None:
        if request.deadline_ns is not None and request.model not in self._runs_late:
            self.queue.set_timer(request)

    def _is_dropped(self, request: ExecutionRequest, now_ns: int) -> bool:
        deadline_ns = request.deadline_ns
        late = deadline_ns is not None and now_ns > deadline_ns
        return late and request.model not in self._runs_late

    def _candidates(self, now_ns: int, skip: frozenset[str]) -> Candidates:
        if not len(self.queue):
            return ()
        return self._policy.candidates(now_ns, CANDIDATES_MAX, skip)

    def _models_that_can_not_preempt(self, stream: int, paused: ExecutionRequest) -> frozenset[str]:
        if not self._preemption:
            return NO_MODELS
        started = (paused, *self._suspended[stream])
        busy = (self._sharing.get(each.model, frozenset((each.model,))) for each in started)
        return self._streams.models_barred_from(stream).union(*busy)

    def _blockers(self, request: ExecutionRequest) -> tuple[int, ...]:
        """Return who held its streams at arrival, then the latest few to take one since."""
        usable = self._streams.streams_of(request.model)
        latest: list[int] = []
        for at_ns, stream, request_id in reversed(self._takeovers):
            if at_ns < request.arrival_ns or len(latest) == BLOCKERS_MAX:
                break
            if usable >> stream & 1 and request_id != request.request_id:
                latest.append(request_id)
        latest.reverse()
        return tuple(dict.fromkeys((*request.blocked_by, *latest)))

    def _preemptors(self, request: ExecutionRequest, stream: int) -> tuple[int, ...]:
        """Return the latest few that took its stream since its last segment."""
        if not self._preemption:
            return ()
        latest: list[int] = []
        for _, taken, request_id in reversed(self._takeovers):
            if request_id == request.request_id or len(latest) == BLOCKERS_MAX:
                break
            if taken == stream:
                latest.append(request_id)
        latest.reverse()
        return tuple(dict.fromkeys(latest))

    def _decide(
        self,
        kind: DecisionKind,
        request: ExecutionRequest,
        reason: Reason,
        now_ns: int,
        queue_depth: int | None = None,
        candidates: Candidates = (),
        blocked_by: tuple[int, ...] = (),
    ) -> None:
        launches = kind is DecisionKind.START or kind is DecisionKind.CONTINUE
        self._decisions.append(
            Decision(
                next(self._sequence),
                now_ns,
                kind,
                request.request_id,
                request.model,
                request.next_segment if launches else -1,
                -1 if request.stream is None else request.stream,
                reason,
                len(self.queue) if queue_depth is None else queue_depth,
                candidates,
                blocked_by,
            )
        )

    def _take_decisions(self) -> tuple[Decision, ...]:
        decisions = tuple(self._decisions)
        self._decisions.clear()
        return decisions


def _sharing(memory_of: Mapping[str, Hashable]) -> dict[str, frozenset[str]]:
    """Return for each model all models that use the same memory, itself included."""
    return {
        model: frozenset(other for other, place in memory_of.items() if place == memory)
        for model, memory in memory_of.items()
    }
