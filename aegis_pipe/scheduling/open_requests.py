"""The requests a scheduler has in hand, and what each goes through once that is decided.

The half of the scheduler that never chooses: who runs, stands at a segment boundary or is suspended
on which stream, how a request and those in its batch move from state to state, and the log of what
was decided. `Scheduler` derives from it, so that a decision and the move that follows are one
object's business.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Final

from aegis_pipe.scheduling.batching import hand_lead_over
from aegis_pipe.scheduling.deadlines import Deadlines
from aegis_pipe.scheduling.decision import Decision, DecisionKind, Reason
from aegis_pipe.scheduling.model_rules import ModelRules, RuleBook, StandIn
from aegis_pipe.scheduling.policy import NO_MODELS, Candidates, KeyedPolicy, SchedulingPolicy
from aegis_pipe.scheduling.queue import BoundedQueue
from aegis_pipe.scheduling.request import ExecutionRequest, RequestState
from aegis_pipe.scheduling.statistics import SchedulerStatistics
from aegis_pipe.scheduling.stream_pool import StreamPool
from aegis_pipe.scheduling.takeovers import Takeovers

# Members of an enum are slow to reach through their class, and these are needed all the time.
_QUEUED: Final = RequestState.QUEUED
_RUNNING: Final = RequestState.RUNNING
_PAUSED: Final = RequestState.PAUSED
_COMPLETED: Final = RequestState.COMPLETED
_START: Final = DecisionKind.START
_CONTINUE: Final = DecisionKind.CONTINUE


class OpenRequests:
    """Requests from their place in the queue to their end, with the streams they hold."""

    def __init__(
        self,
        policy: SchedulingPolicy,
        streams: StreamPool,
        queue: BoundedQueue,
        rules: RuleBook,
        *,
        in_flight: int,
        explains: bool,
    ) -> None:
        self.queue = queue
        self._policy = policy
        self._streams = streams
        self._rules = rules
        self._deadlines = Deadlines(rules)
        self._timers = self._deadlines.entries
        # Not so with most policies, and it is asked for every request.
        self._hears_service = _hears(policy, "served")
        self._hears_ends = _hears(policy, "ended")
        self._in_flight = in_flight
        self._explains = explains
        self._at_limit = NO_MODELS
        self._requests: dict[int, ExecutionRequest] = {}
        # Streams whose holder is paused, waiting for `decide`.
        self._boundaries: set[int] = set()
        # Streams that can take one more segment: of their holder's, or of who comes next.
        self._hungry: set[int] = set()
        # Per stream who has given it on while its last segments are still in flight there.
        self._leaving: list[ExecutionRequest | None] = [None] * streams.count
        # Per stream the requests that were preempted there; the last one goes on first.
        self._suspended: list[list[ExecutionRequest]] = [[] for _ in range(streams.count)]
        self._to_cancel: list[ExecutionRequest] = []
        self._finished: list[ExecutionRequest] = []
        self._decisions: list[Decision] = []
        self._takeovers = Takeovers(streams.count)
        # next() of an itertools.count is atomic: `admit` runs on other threads.
        self._sequence = itertools.count()
        self._running = self._paused = 0
        self._final_counts = {state: 0 for state in RequestState if state.is_final}
        self._started = self._batched = self._degraded = self._deadline_missed = 0
        self._submitted = self._preempted = self._queue_depth_max = 0

    @property
    def running(self) -> int:
        """Number of requests with a segment on a stream."""
        return self._running

    @property
    def is_idle(self) -> bool:
        """Return whether no request is open and none is about to be enqueued."""
        return not self._requests and not self.queue.places_taken

    @property
    def timers(self) -> Sequence[tuple[int, int, ExecutionRequest]]:
        """Timers, always this very list; after `decide` none is before the first."""
        return self._timers

    @property
    def batches(self) -> bool:
        """Return whether there are models that batch: `timers` is then not all there is to time."""
        return bool(self._rules.batching)

    @property
    def open_requests(self) -> Mapping[int, ExecutionRequest]:
        """Requests that have been enqueued and are not over, by number; always this mapping."""
        return self._requests

    def take_finished(self) -> tuple[ExecutionRequest, ...]:
        """Return the requests that reached a final state since the last call, in order."""
        if not self._finished:
            return ()
        finished = tuple(self._finished)
        self._finished.clear()
        return finished

    def statistics(self) -> SchedulerStatistics:
        """Return counts of what happened and of where requests stand.

        From another thread the counts may be of slightly different moments.
        """
        counts = self._final_counts
        suspended = sum(
            1 + len(each.companions)
            for stack in self._suspended
            for each in stack
            if each.state is _PAUSED
        )
        return SchedulerStatistics(
            waiting=self.queue.places_taken,
            running=self._running,
            paused=self._paused - suspended,
            suspended=suspended,
            submitted=self._submitted,
            started=self._started,
            preempted=self._preempted,
            batched=self._batched,
            degraded=self._degraded,
            completed=counts[RequestState.COMPLETED],
            failed=counts[RequestState.FAILED],
            expired=counts[RequestState.EXPIRED],
            cancelled=counts[RequestState.CANCELLED],
            rejected=self.queue.refusals,
            deadline_missed=self._deadline_missed,
            queue_depth_max=self._queue_depth_max,
        )

    # Moves of one request, with those that run along with it.

    def _degrade(
        self, request: ExecutionRequest, stand_in: StandIn, reason: Reason, now_ns: int
    ) -> bool:
        """Have a waiting request wait for its stand-in; False if that has no place in the queue."""
        asked = request.model
        depth = self.queue.waiting
        if not self.queue.move(request, stand_in.model, now_ns):
            return False
        asked_line, line = self._rules[asked].line, self._rules[stand_in.model].line
        if asked_line is not None:
            asked_line.discard(request)
        if line is not None:
            line.push(request, now_ns)
        request.degraded_from = asked
        request.segment_count = stand_in.segment_count
        self._degraded += 1
        self._decide(DecisionKind.DEGRADE, request, reason, now_ns, depth)
        return True

    def _gather(self, leader: ExecutionRequest, rules: ModelRules, now_ns: int) -> None:
        assert rules.line is not None
        companions = tuple(rules.line.companions(leader, now_ns))
        batching = rules.line.batching
        size = batching.size_for(1 + len(companions))
        for member in companions:
            self.queue.remove(member)
            member.leader = leader
        leader.companions = companions
        self._batched += len(companions)
        for member in (leader, *companions):
            member.batch_size = size
            member.segment_count = batching.segments[size]

    def _run(self, request: ExecutionRequest, now_ns: int) -> None:
        request.busy_since_ns = request.launched_ns = now_ns
        request.launched_segments += 1
        self._to_running(request)
        if request.companions:
            for member in request.companions:
                self._to_running(member)
        if self._in_flight > 1:
            assert request.stream is not None
            self._hungry.add(request.stream)

    def _to_running(self, member: ExecutionRequest) -> None:
        if member.timer_ns is not None:
            member.timer_ns = None
            timers = self._timers
            if timers and timers[0][2] is member:
                self._deadlines.clear(member)
        if member.state is _PAUSED:
            self._paused -= 1
        else:
            assert member.state is _QUEUED, f"request {member.request_id} is {member.state}"
        self._running += 1
        member.state = _RUNNING

    def _pause(self, request: ExecutionRequest) -> None:
        stream = request.stream
        assert stream is not None
        if self._leaving[stream] is request:
            # Suspended already, with its last segments in flight.
            self._leaving[stream] = None
        else:
            self._boundaries.add(stream)
        self._stop(request, request.next_segment)
        for member in request.companions:
            self._stop(member, request.next_segment)

    def _stop(self, member: ExecutionRequest, next_segment: int) -> None:
        member.next_segment = next_segment
        assert member.state is _RUNNING, f"request {member.request_id} is {member.state}"
        self._running -= 1
        self._paused += 1
        member.state = _PAUSED
        if member.deadline_ns is not None:
            self._deadlines.watch_paused(member)
        if member.cancel_reason is not None:
            self._to_cancel.append(member)

    def _complete(self, request: ExecutionRequest, now_ns: int) -> None:
        due_ns = request.deadline_ns
        if (
            not request.companions
            and request.cancel_reason is None
            and (due_ns is None or now_ns <= due_ns)
        ):
            # By far the most common end, of one that ran alone and is in time: `_finish` without
            # its questions.
            stream = request.stream
            assert stream is not None
            if self._rules.limited:
                rules = self._rules[request.model]
                if rules.limit is not None:
                    self._count_started(rules, -1)
            # Running, it holds its stream, unless it has given it on.
            if self._leaving[stream] is request:
                self._leaving[stream] = None
            else:
                self._give_stream_back(stream)
            if self._hears_ends:
                self._policy.ended(request)
            del self._requests[request.request_id]
            self._running -= 1
            self._final_counts[_COMPLETED] += 1
            request.state = _COMPLETED
            if request.degraded_from:
                request.reason = Reason.DEGRADED
            request.finished_ns = now_ns
            self._finished.append(request)
            return
        for member in self._dissolve(request):
            member.next_segment = request.next_segment
            if self._deadlines.is_wanted(member, now_ns):
                self._finish(member, _COMPLETED, _completion(member), now_ns)
                continue
            # Its result is not wanted any more: `decide` says so.
            stream = request.stream
            assert stream is not None
            if member is request and self._leaving[stream] is not request:
                self._boundaries.add(stream)
            self._stop(member, request.next_segment)

    def _fail(self, request: ExecutionRequest, now_ns: int) -> None:
        for member in self._dissolve(request):
            member.error = request.error
            self._finish(member, RequestState.FAILED, Reason.SEGMENT_FAILED, now_ns)

    @staticmethod
    def _dissolve(request: ExecutionRequest) -> tuple[ExecutionRequest, ...]:
        """Let everybody in a batch end by themselves; return them."""
        members = (request, *request.companions)
        request.companions = ()
        return members

    def _finish(
        self, request: ExecutionRequest, state: RequestState, reason: str, now_ns: int
    ) -> None:
        if request.state is _QUEUED:
            self.queue.remove(request)
            line = self._rules[request.model].line
            if line is not None:
                line.discard(request)
        else:
            self._leave_stream(request)
            self._policy.ended(request)
        if request.timer_ns is not None:
            self._deadlines.clear(request)
        del self._requests[request.request_id]
        self._close(request, state, reason, now_ns)

    def _close(
        self, request: ExecutionRequest, state: RequestState, reason: str, now_ns: int
    ) -> None:
        if request.state is _RUNNING:
            self._running -= 1
        elif request.state is _PAUSED:
            self._paused -= 1
        self._final_counts[state] += 1
        request.move(state)
        request.reason = reason
        request.finished_ns = now_ns
        if request.deadline_ns is not None and request.deadline_missed:
            self._deadline_missed += 1
        self._finished.append(request)

    def _leave_stream(self, request: ExecutionRequest) -> None:
        leader = request.leader
        if leader is not None:
            leader.companions = tuple(each for each in leader.companions if each is not request)
            return
        stream = request.stream
        assert stream is not None
        if request.companions:
            self._hand_lead_over(request, stream)
            return
        if self._rules.limited:
            rules = self._rules[request.model]
            if rules.limit is not None:
                self._count_started(rules, -1)
        if self._streams.holder(stream) is request:
            self._boundaries.discard(stream)
            self._give_stream_back(stream)
            return
        if self._leaving[stream] is request:
            self._leaving[stream] = None
        if request in self._suspended[stream]:
            self._suspended[stream].remove(request)

    def _give_stream_back(self, stream: int) -> None:
        """Free a stream whose holder is gone, or let the one go on that was preempted last."""
        suspended = self._suspended[stream]
        if suspended:
            latest = suspended.pop()
            self._streams.hand_over(stream, latest)
            if self._leaving[stream] is latest:
                # It has not left yet: who was to run in its place could not be launched.
                self._leaving[stream] = None
                self._hungry.add(stream)
            else:
                self._boundaries.add(stream)
        else:
            self._streams.release(stream)

    def _in_flight_on(self, stream: int) -> int:
        """Return how many segments are on a stream that is held."""
        holder, leaving = self._streams.holder(stream), self._leaving[stream]
        assert holder is not None
        count = holder.launched_segments - holder.next_segment
        if leaving is not None:
            count += leaving.launched_segments - leaving.next_segment
        return count

    def _hand_lead_over(self, request: ExecutionRequest, stream: int) -> None:
        leader = hand_lead_over(request)
        if self._streams.holder(stream) is request:
            self._streams.hand_over(stream, leader)
        else:
            suspended = self._suspended[stream]
            suspended[suspended.index(request)] = leader

    def _count_started(self, rules: ModelRules, change: int) -> None:
        rules.started += change
        self._at_limit = self._rules.at_limit()

    def _blockers(self, request: ExecutionRequest) -> tuple[int, ...]:
        if not self._explains:
            return ()
        return self._takeovers.blockers(request, self._rules[request.model].streams)

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
        segment = -1
        if (kind is _START or kind is _CONTINUE) and request.leader is None:
            segment = request.launched_segments - 1
        stream = request.stream
        # What `Decision(...)` does, without its detour: most of what a decision costs.
        decision = tuple.__new__(
            Decision,
            (
                next(self._sequence),
                now_ns,
                kind,
                request.request_id,
                request.model,
                segment,
                -1 if stream is None else stream,
                reason,
                self.queue.waiting if queue_depth is None else queue_depth,
                candidates,
                blocked_by,
            ),
        )
        self._decisions.append(decision)

    def _take_decisions(self) -> tuple[Decision, ...]:
        decisions = tuple(self._decisions)
        self._decisions.clear()
        return decisions


def _hears(policy: SchedulingPolicy, name: str) -> bool:
    """Return whether a policy does anything when it is told by that method."""
    return getattr(type(policy), name, None) is not getattr(KeyedPolicy, name)


def _completion(request: ExecutionRequest) -> str:
    """Return the reason with which a request completes."""
    return Reason.DEGRADED if request.degraded_from else ""
