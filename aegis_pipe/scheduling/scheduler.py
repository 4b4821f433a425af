"""Decides who runs next, on which stream, and why.

The scheduler is a state machine without input or output: it reads no clock, starts no thread
and launches nothing. Facts go in (`submit`, `cancel`, `segment_finished`), decisions come out
(`decide`), and its own state has already changed when they do: whoever holds a decision only has
to carry it out. The same facts at the same instants give the same decisions, byte for byte.

    queued --start--> running --segment_finished--> paused --continue--> running ... completed

Up to `in_flight` segments are on a stream at once, and a request can be stopped when its own are
done. A paused request stands at such a boundary and still holds its stream. With preemption, the
policy may let a waiting request take the stream there; the paused one is then *suspended* on that
stream and goes on when the stream is given back. It never moves to another stream, because its
intermediate tensors lie in that stream's memory; for the same reason nobody can preempt a request
of its own model.

A request whose segments are all launched, or that is preempted while some are in flight, *leaves*:
once there is room behind them the stream goes to whoever is next, whose segments come after in the
stream's order. So it need not idle between two requests. One leaves at a time: there are at most
two requests on a stream.

Requests of a model that batches may run along with another: it *leads* them, holds the stream and
is what the launcher sees; `segment_finished` for the leader moves them all. Each of them can be
cancelled or expire by itself, the leader too: the next one leads then.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Final

from aegis_pipe.scheduling.batching import Batching
from aegis_pipe.scheduling.decision import Decision, DecisionKind, Reason
from aegis_pipe.scheduling.model_rules import Late, RuleBook, StandIn
from aegis_pipe.scheduling.open_requests import OpenRequests
from aegis_pipe.scheduling.policy import NO_MODELS, Candidates, SchedulingPolicy
from aegis_pipe.scheduling.queue import BoundedQueue
from aegis_pipe.scheduling.request import ExecutionRequest, RequestState
from aegis_pipe.scheduling.stream_pool import StreamPool

CANDIDATES_MAX = 4

# Members of an enum are slow to reach through their class, and these are needed all the time.
_CREATED: Final = RequestState.CREATED
_QUEUED: Final = RequestState.QUEUED
_RUNNING: Final = RequestState.RUNNING
_PAUSED: Final = RequestState.PAUSED
_COMPLETED: Final = RequestState.COMPLETED
_START: Final = DecisionKind.START
_CONTINUE: Final = DecisionKind.CONTINUE
_NEXT_SEGMENT: Final = Reason.NEXT_SEGMENT


class Scheduler(OpenRequests):
    """Queue, free streams and policy in; decisions out.

    late          per model what being late means; "drop" unless named. A waiting request is
                  dropped once its deadline has come; a running one at the end of its segment, if
                  that came too late.
    stand_ins     for the models that degrade, who takes over: a waiting request that is late
                  waits on for that one, and runs however late it gets.
    needed_ns     the shortest time, where it is known, from a model's start to its result. A
                  request is late as soon as less is left: refused when it arrives, or dropped, or
                  degraded, while its deadline is still ahead.
    concurrency   most requests (or batches) of a model that have started and are not over.
    batching      which models batch, and how.
    in_flight     most segments on a stream at once, be they of one request or of two: what an
                  urgent arrival may have to wait for.
    preemption    whether the policy may preempt at segment boundaries. Of models that `memory_of`
                  gives the same value, whose intermediate tensors share memory on a stream, none
                  preempts another.
    explains      whether decisions name candidates and blockers; what is decided is the same.

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
        stand_ins: Mapping[str, StandIn] | None = None,
        needed_ns: Mapping[str, int] | None = None,
        concurrency: Mapping[str, int] | None = None,
        batching: Mapping[str, Batching] | None = None,
        in_flight: int = 1,
        preemption: bool = False,
        memory_of: Mapping[str, Hashable] | None = None,
        explains: bool = True,
    ) -> None:
        rules = RuleBook(
            streams,
            late=late or {},
            stand_ins=stand_ins or {},
            needed_ns=needed_ns or {},
            concurrency=concurrency or {},
            batching=batching or {},
            memory_of=memory_of or {},
        )
        queue = BoundedQueue(policy, queue_capacity, model_capacity)
        super().__init__(policy, streams, queue, rules, in_flight=in_flight, explains=explains)
        # Without times that are known, nothing that arrives is hopeless.
        self._refuses_late = bool(needed_ns)
        self._preemption = preemption
        # Whether there can be models that may not start though a stream is free.
        self._holds_back = bool(rules.batching or rules.limited or streams.confines)
        self._decided_ns = -1

    def __repr__(self) -> str:
        return f"<Scheduler {self.policy_name}: {self.queue!r} {self._streams!r}>"

    @property
    def policy_name(self) -> str:
        """Name of the policy in force."""
        return self._policy.name

    def submit(self, request: ExecutionRequest, now_ns: int) -> Decision | None:
        """Enqueue a request and return None, or return the decision to reject it."""
        refusal = self.admit(request, now_ns)
        if refusal is None:
            self.enqueue(request, now_ns)
        return refusal

    def admit(self, request: ExecutionRequest, now_ns: int) -> Decision | None:
        """First half of `submit`, from any thread: take a place, or reject at once."""
        reason = self.reserve(request, now_ns)
        return None if reason is None else self.reject(request, now_ns, reason)

    def reserve(self, request: ExecutionRequest, now_ns: int) -> Reason | None:
        """Take a place and return None, or return why there is none; from any thread."""
        if (
            self._refuses_late
            and request.deadline_ns is not None
            and self._deadlines.is_hopeless(request, now_ns)
        ):
            return Reason.WOULD_BE_LATE
        return self.queue.reserve(request.model)

    def reject(self, request: ExecutionRequest, now_ns: int, reason: Reason) -> Decision:
        """Decide, for what `reserve` returned, that a request ends here; from any thread."""
        self.queue.count_refusal()
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

    def needed_ns(self, model: str) -> int:
        """Return the shortest time a model is known to need; 0 if nothing is known."""
        return self._rules[model].needed_ns or 0

    def enqueue(self, request: ExecutionRequest, now_ns: int) -> None:
        """Second half of `submit`: put an admitted request into its place."""
        requests, request_id = self._requests, request.request_id
        assert request_id not in requests, f"request {request_id} is open"
        assert request.state is _CREATED, f"request {request_id} is {request.state}"
        requests[request_id] = request
        request.state = _QUEUED
        rules = self._rules[request.model]
        if self._explains and not self._streams.free & rules.streams:
            request.blocked_by = self._streams.holders_for(request.model)
        queue = self.queue
        queue.push(request, now_ns)
        if request.deadline_ns is not None:
            self._deadlines.watch_waiting(request)
        if rules.line is not None:
            rules.line.push(request, now_ns)
        self._submitted += 1
        if queue.waiting > self._queue_depth_max:
            self._queue_depth_max = queue.waiting

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
        finished, launched = request.next_segment + 1, request.launched_segments
        assert request.state is _RUNNING, f"request {request_id} was not running"
        assert finished <= launched, f"request {request_id}: no segment"
        request.next_segment = finished
        if self._hears_service:
            self._policy.served(request, now_ns - request.busy_since_ns)
        request.busy_since_ns = now_ns
        if error is not None and request.error is None:
            request.error = error
        if self._in_flight > 1:
            assert request.stream is not None
            self._make_way(request, request.stream, now_ns)
        if finished < launched:
            # It can not leave before what is in flight has.
            return
        if request.error is not None:
            self._fail(request, now_ns)
        elif finished == request.segment_count:
            self._complete(request, now_ns)
        else:
            self._pause(request)

    def decide(self, now_ns: int) -> tuple[Decision, ...]:
        """Decide everything that can be decided now.

        In this order: cancellations, requests that are late, starts on free streams, streams at a
        segment boundary, streams that can take one more segment. Starts come first so that nobody
        is preempted while a stream is free.
        """
        self._decided_ns = now_ns
        if self._to_cancel:
            self._cancel_waiting(now_ns)
        deadlines, timers = self._deadlines, self._timers
        if (timers and timers[0][0] <= now_ns) or deadlines.newest_ns <= now_ns:
            self._end_late(now_ns)
        if self.queue.waiting and self._streams.free:
            self._fill_free_streams(now_ns)
        if self._boundaries:
            for stream in sorted(self._boundaries):
                self._pass_boundary(stream, now_ns)
            self._boundaries.clear()
        if self._hungry:
            self._hungry = {each for each in sorted(self._hungry) if self._feed(each, now_ns)}
        if deadlines.newest:
            deadlines.settle()
        if not self._decisions:
            return ()
        decisions = tuple(self._decisions)
        self._decisions.clear()
        return decisions

    def upcoming(self) -> ExecutionRequest | None:
        """Return who would start now if a stream became free, if none is; decides nothing."""
        if not self.queue.waiting or self._streams.free:
            return None
        now_ns = self._decided_ns
        return self._policy.peek(now_ns, self._kept_back(now_ns))

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
            if request.state in (RequestState.CREATED, _QUEUED):
                self.queue.release(request.model)
            if error is None:
                self._decide(DecisionKind.CANCEL, request, reason, now_ns)
            request.error = error
            self._close(request, state, reason, now_ns)
        self._requests.clear()
        self._boundaries.clear()
        self._hungry.clear()
        self._leaving = [None] * len(self._leaving)
        self._suspended = [[] for _ in self._suspended]
        return self._take_decisions()

    def next_deadline_ns(self) -> int | None:
        """Return when `decide` has to be called even if nothing happens; None for never."""
        timer_ns = self._deadlines.next_ns()
        if not self._rules.batching:
            return timer_ns
        instants = [line.held_until_ns() for _, line in self._rules.batching]
        # Those in the past wait for a stream, not for the clock.
        ahead = [at_ns for at_ns in instants if at_ns is not None and at_ns > self._decided_ns]
        return min(ahead if timer_ns is None else (*ahead, timer_ns), default=None)

    # What `decide` does, in its order.

    def _cancel_waiting(self, now_ns: int) -> None:
        for request in self._to_cancel:
            # A running one comes back here when its segment ends.
            if request.state in (_QUEUED, _PAUSED):
                assert request.cancel_reason is not None
                self._decide(DecisionKind.CANCEL, request, request.cancel_reason, now_ns)
                self._finish(request, RequestState.CANCELLED, request.cancel_reason, now_ns)
        self._to_cancel.clear()

    def _end_late(self, now_ns: int) -> None:
        while (request := self._deadlines.pop_due(now_ns)) is not None:
            assert request.deadline_ns is not None
            has_passed = now_ns >= request.deadline_ns
            reason = Reason.DEADLINE_PASSED if has_passed else Reason.WOULD_BE_LATE
            stand_in = self._rules[request.model].stand_in
            if stand_in is not None and self._degrade(request, stand_in, reason, now_ns):
                continue
            self._decide(
                DecisionKind.EXPIRE,
                request,
                reason,
                now_ns,
                candidates=self._candidates(now_ns, NO_MODELS),
                blocked_by=self._blockers(request),
            )
            self._finish(request, RequestState.EXPIRED, reason, now_ns)

    def _fill_free_streams(self, now_ns: int) -> None:
        queue, policy, streams = self.queue, self._policy, self._streams
        while queue.waiting and streams.free:
            skip = NO_MODELS
            candidates: Candidates = ()
            if self._holds_back:
                skip = streams.models_without_free() | self._kept_back(now_ns)
            if self._explains:
                candidates = policy.candidates(now_ns, CANDIDATES_MAX, skip)
                if not candidates:
                    return
            elif skip and policy.peek(now_ns, skip) is None:
                return
            depth = queue.waiting
            request, reason = queue.pop(now_ns, skip)
            self._start(request, streams.acquire(request), reason, now_ns, depth, candidates)

    def _pass_boundary(self, stream: int, now_ns: int) -> None:
        paused = self._streams.holder(stream)
        assert paused is not None
        if not self.queue.waiting:
            self._continue(paused, stream, now_ns, ())
            return
        skip = self._models_that_can_not_preempt(stream, paused, now_ns)
        if not self._is_preempted(paused, now_ns, skip):
            self._continue(paused, stream, now_ns, self._candidates(now_ns, skip))
            return
        self._preempt(paused, stream, now_ns, skip)

    def _preempt(
        self, preempted: ExecutionRequest, stream: int, now_ns: int, skip: frozenset[str]
    ) -> None:
        candidates, depth = self._candidates(now_ns, skip), self.queue.waiting
        request, reason = self.queue.pop(now_ns, skip)
        self._suspended[stream].append(preempted)
        self._preempted += 1
        self._streams.hand_over(stream, request)
        self._start(request, stream, reason, now_ns, depth, candidates)

    def _feed(self, stream: int, now_ns: int) -> bool:
        """Keep the stream supplied, with its holder or with who is to run in its place.

        Returns whether there is room behind what is launched, and nobody to take it yet.
        """
        while (running := self._streams.holder(stream)) is not None:
            if self._in_flight_on(stream) >= self._in_flight:
                return False
            if running.launched_segments == running.segment_count:
                if self._leaving[stream] is not None:
                    return False
                if not self._follow(running, stream, now_ns):
                    return True
                continue
            if not self._goes_on(running, now_ns):
                return False
            skip = self._models_that_can_not_preempt(stream, running, now_ns)
            if self._is_preempted(running, now_ns, skip):
                if self._leaving[stream] is not None:
                    return False
                self._leaving[stream] = running
                self._preempt(running, stream, now_ns, skip)
                continue
            running.launched_ns = now_ns
            running.launched_segments += 1
            self._decide(_CONTINUE, running, _NEXT_SEGMENT, now_ns)
        return False

    def _follow(self, leaving: ExecutionRequest, stream: int, now_ns: int) -> bool:
        """Let the stream go on with whoever is next, behind what is in flight of its holder's."""
        suspended = self._suspended[stream]
        if suspended:
            self._leaving[stream] = leaving
            self._streams.hand_over(stream, suspended.pop())
            self._pass_boundary(stream, now_ns)
            return True
        if not self.queue.waiting:
            return False
        skip = NO_MODELS
        if self._holds_back:
            skip = self._streams.models_barred_from(stream) | self._kept_back(now_ns)
        if self._policy.peek(now_ns, skip) is None:
            return False
        candidates, depth = self._candidates(now_ns, skip), self.queue.waiting
        request, reason = self.queue.pop(now_ns, skip)
        self._leaving[stream] = leaving
        self._streams.hand_over(stream, request)
        self._start(request, stream, reason, now_ns, depth, candidates)
        return True

    def _start(
        self,
        request: ExecutionRequest,
        stream: int,
        reason: Reason,
        now_ns: int,
        queue_depth: int,
        candidates: Candidates,
    ) -> None:
        rules = self._rules[request.model]
        if rules.line is not None:
            rules.line.discard(request)
            self._gather(request, rules, now_ns)
        if rules.limit is not None:
            self._count_started(rules, 1)
        request.stream = stream
        request.started_ns = now_ns
        self._started += 1
        if request.companions:
            for member in request.companions:
                member.stream = stream
                member.started_ns = now_ns
                self._started += 1
        blocked_by: tuple[int, ...] = ()
        if self._explains:
            blocked_by = self._blockers(request)
            self._takeovers.add(now_ns, stream, request.request_id)
        self._run(request, now_ns)
        # `_decide`, without the call: every request starts here.
        values = (
            next(self._sequence),
            now_ns,
            _START,
            request.request_id,
            request.model,
            0,
            stream,
            reason,
            queue_depth,
            candidates,
            blocked_by,
        )
        self._decisions.append(tuple.__new__(Decision, values))
        if request.companions:
            for member in request.companions:
                queue_depth -= 1
                blocked_by = self._blockers(member)
                self._decide(_START, member, Reason.BATCHED, now_ns, queue_depth, (), blocked_by)

    def _continue(
        self, request: ExecutionRequest, stream: int, now_ns: int, candidates: Candidates
    ) -> None:
        blocked_by: tuple[int, ...] = ()
        if self._explains and self._preemption:
            # Only one that was suspended had to wait for anybody since its last segment.
            blocked_by = self._takeovers.preemptors(request, stream)
            if blocked_by:
                self._takeovers.add(now_ns, stream, request.request_id)
        self._run(request, now_ns)
        self._decide(_CONTINUE, request, _NEXT_SEGMENT, now_ns, None, candidates, blocked_by)

    def _make_way(self, request: ExecutionRequest, stream: int, now_ns: int) -> None:
        """Have the stream supplied anew, now that one of its segments is done."""
        self._hungry.add(stream)
        if self._leaving[stream] is request:
            # Only now the stream works on what its holder has launched.
            holder = self._streams.holder(stream)
            if holder is not None:
                holder.busy_since_ns = now_ns

    # What the above need to know.

    def _goes_on(self, request: ExecutionRequest, now_ns: int) -> bool:
        """Return whether a started request's result is wanted, or that of one with it."""
        if request.error is not None:
            return False
        is_wanted = self._deadlines.is_wanted
        return any(is_wanted(member, now_ns) for member in (request, *request.companions))

    def _candidates(self, now_ns: int, skip: frozenset[str]) -> Candidates:
        if not self._explains or not self.queue.waiting:
            return ()
        return self._policy.candidates(now_ns, CANDIDATES_MAX, skip)

    def _kept_back(self, now_ns: int) -> frozenset[str]:
        """Return the models that may not start now whatever streams are free."""
        lines = self._rules.batching
        if not lines:
            return self._at_limit
        return self._at_limit.union([model for model, line in lines if line.is_held(now_ns)])

    def _is_preempted(self, started: ExecutionRequest, now_ns: int, skip: frozenset[str]) -> bool:
        if not self._preemption or not self.queue.waiting:
            return False
        waiting = self._policy.peek(now_ns, skip)
        return waiting is not None and self._policy.preempts(waiting, started, now_ns)

    def _models_that_can_not_preempt(
        self, stream: int, started: ExecutionRequest, now_ns: int
    ) -> frozenset[str]:
        if not self._preemption or not self.queue.waiting:
            return NO_MODELS
        skip = self._rules[started.model].never_preempts
        if self._suspended[stream]:
            busy = (self._rules[each.model].never_preempts for each in self._suspended[stream])
            skip = skip.union(*busy)
        if self._holds_back:
            skip = skip.union(self._streams.models_barred_from(stream), self._kept_back(now_ns))
        return skip
