"""Carries the scheduler's decisions out, on a thread of its own.

    any thread                      orchestration thread                       device
    submit --> place in the queue
               inbox ----------->   step: completions, inbox, decide
                                          |--> launcher.launch  ------------->  segment
               wake  <--------------------------------------------------------  finished
                                          `--> launcher.finish --> the caller's future

`step` does all the work and takes the time from the clock it was given: the thread calls it
between waits, tests and simulations call it by hand. Nobody shares state with the thread but
through the queue's gate, the inbox and the wake event, and no lock is held while launching.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, Protocol, Self

from aegis_pipe.clock import Clock, Wake
from aegis_pipe.errors import (
    DeadlineExceededError,
    FatalError,
    QueueFullError,
    RequestCancelledError,
    RuntimeStoppedError,
    TransientError,
)
from aegis_pipe.events import DecisionMade, EventHub, RequestFinished, RequestSubmitted
from aegis_pipe.scheduling.decision import Decision, Reason
from aegis_pipe.scheduling.request import ExecutionRequest, RequestState
from aegis_pipe.scheduling.scheduler import Scheduler
from aegis_pipe.threads import short_turns, wake_promptly

_log = logging.getLogger(__name__)

GIVE_UP_POLL_S = 0.02
"""Pause between two looks at whether the drain has been given up."""


class SegmentCompletion(NamedTuple):
    """A segment left its stream; a stream's segments leave it in the order of their launches."""

    request_id: int
    stream: int
    error: Exception | None = None


class Launcher(Protocol):
    """What the loop needs from whoever runs segments; called on the orchestration thread only."""

    @property
    def notifies(self) -> bool:
        """Whether `OrchestrationLoop.wake` is called on completions; otherwise they are polled."""
        ...

    @property
    def stages_ahead(self) -> bool:
        """Whether `stage` does anything."""
        ...

    def stage(self, request: ExecutionRequest) -> None:
        """Prepare for the launch of a request that is likely to start next.

        Called again and again for the same one.
        """
        ...

    def launch(self, request: ExecutionRequest, segment: int, stream: int) -> None:
        """Enqueue a segment on a stream, behind what is in flight there, without waiting for it.

        `request` leads its `companions`: the segment is for all of them.

        What it raises fails this request alone, except a FatalError, which stops the loop. A
        launch that raised must not be reported by `poll`.
        """
        ...

    def poll(self) -> Iterable[SegmentCompletion]:
        """Return the segments that finished since the last call, each once."""
        ...

    def finish(
        self, request: ExecutionRequest, state: RequestState, error: Exception | None
    ) -> None:
        """Tell the caller how it ended: called once for each request that `submit` accepted.

        `error` is None for a completed request. The stream may by then be running the next
        request. What this raises is logged.
        """
        ...


class OrchestrationLoop:
    """Runs requests through a scheduler and a launcher; a context manager that starts and stops.

    Device threads, or whoever sees completions, call `wake`. If the launcher does not notify,
    it is polled every `poll_interval_ns` while something runs. `when_idle`, which is quick and does
    not raise, is called after each step that leaves no request open.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        launcher: Launcher,
        clock: Clock,
        hub: EventHub,
        *,
        when_idle: Callable[[], None] | None = None,
        poll_interval_ns: int = 20_000,
        thread_name: str = "aegis-orchestration",
    ) -> None:
        self._scheduler = scheduler
        self._launcher = launcher
        self._clock = clock
        self._hub = hub
        self._when_idle = when_idle
        self._poll_interval_ns = poll_interval_ns
        self._wake = Wake()
        # Bounded by the queue's places: whoever appends has reserved one.
        self._inbox: deque[ExecutionRequest] = deque()
        # An ordered set, bounded by the open requests; its methods are atomic.
        self._cancellations: OrderedDict[int, None] = OrderedDict()
        self._open: dict[int, ExecutionRequest] = {}
        self._finished_ns = 0
        self._thread = threading.Thread(target=self.run, name=thread_name, daemon=True)
        self._stopping: Literal["no", "drain", "cancel"] = "no"
        self._stop_at_ns: int | None = None
        self._gave_up = False
        self._fatal_error: FatalError | None = None

    @property
    def fatal_error(self) -> FatalError | None:
        """The error that ended the loop, if one did."""
        return self._fatal_error

    @property
    def open_requests(self) -> int:
        """Return how many accepted requests are not finished."""
        return len(self._open)

    def pending(self, model: str) -> int:
        """Return how many accepted requests that asked for a model wait or run; on any thread.

        One that was handed in counts at once, one whose end is told does not any more.
        """
        return sum(
            request.asked_model == model and not request.state.is_final
            for request in list(self._open.values())
        )

    def idle_since_ns(self) -> int | None:
        """Return when the last request finished (0: none did), or None while one is open."""
        return None if self._open else self._finished_ns

    @property
    def is_idle(self) -> bool:
        """Return whether every accepted request has been finished."""
        return not self._open and self._scheduler.is_idle

    @property
    def is_current_thread(self) -> bool:
        """Return whether the caller runs on the loop's thread: in a completion callback."""
        return threading.get_ident() == self._thread.ident

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop(drain=False)

    # From any thread.

    def submit(self, request: ExecutionRequest, *, is_patient: bool = False) -> None:
        """Hand in a request; returns at once, and its end is told to `Launcher.finish`.

        Raises QueueFullError or RuntimeStoppedError at once; the request is then rejected, and
        `finish` is not called for it. `is_patient` says that the caller waits for room and will
        offer the same again: a full queue has then rejected nothing, and nobody hears of it.
        """
        now_ns = self._clock.now_ns()
        reason = self._scheduler.reserve(request, now_ns)
        if reason is not None:
            if is_patient and reason is Reason.QUEUE_FULL:
                raise _queue_full_error(request, self._scheduler.queue.places_taken)
            if reason is Reason.RUNTIME_STOPPING:
                # It may have held a place while the queue was closed, and the loop waits for that.
                self.wake()
            refusal = self._scheduler.reject(request, now_ns, reason)
            error = self._refusal_error(request, refusal)
            if self._hub.detailed:
                self._emit_decision(refusal, now_ns, now_ns)
            if self._hub.enabled:
                self._emit_finished(request, error)
            raise error
        self._open[request.request_id] = request
        self._inbox.append(request)
        self.wake()

    def cancel(self, request_id: int) -> bool:
        """Ask for a request to end; return whether it was open.

        A running segment is finished first, and its result is thrown away.
        """
        if request_id not in self._open:
            return False
        self._cancellations[request_id] = None
        self.wake()
        return True

    def wake(self) -> None:
        """Have the loop look for completions; cheap, and harmless if there are none."""
        # One that is set is cleared before the next step looks at anything.
        if not self._wake.is_set():
            self._wake.set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(
        self,
        *,
        drain: bool = True,
        timeout_ns: int | None = None,
        give_up: threading.Event | None = None,
    ) -> bool:
        """Refuse new requests, bring the open ones to an end, and stop the thread.

        With `drain` the open ones are run to their end; without, they are cancelled, a running
        segment being finished first. What is still open after `timeout_ns`, or once `give_up` is
        set, is cancelled on the spot; its segments may then still be on the device, so synchronise
        before freeing memory.
        Without a started thread the work is done here. Called by a completion callback, it does
        not wait.

        Returns whether every request came to its own end. Calling it again is harmless.
        """
        self._scheduler.queue.close()
        if timeout_ns is not None:
            self._stop_at_ns = self._clock.now_ns() + timeout_ns
        if not drain or self._stopping == "no":
            self._stopping = "drain" if drain else "cancel"
        self._wake.set()
        if not self._thread.ident:
            self.run()
        elif not self.is_current_thread:
            self._await_end(give_up)
        return self._stopping == "drain" and not self._gave_up

    def _await_end(self, give_up: threading.Event | None) -> None:
        if give_up is None:
            self._thread.join()
            return
        while self._thread.is_alive():
            self._thread.join(GIVE_UP_POLL_S)
            if give_up.is_set():
                self._stop_at_ns = self._clock.now_ns()
                self._wake.set()

    # The orchestration thread.

    def run(self) -> None:
        """Step until stopped; the body of the thread."""
        wake_promptly()
        with short_turns():
            while True:
                self.step()
                if self.is_idle and (self._stopping != "no" or self._fatal_error is not None):
                    return
                self._clock.wait_until(self._next_wake_ns(), self._wake)

    def step(self) -> None:
        """Do everything that can be done now, without waiting."""
        # First, so that whatever arrives during the step causes another one.
        self._wake.clear()
        if not self._gave_up:
            try:
                completions = tuple(self._launcher.poll())
                # Only now, so that nothing is told to have ended before it did.
                now_ns = self._clock.now_ns()
                self._take_completions(completions, now_ns)
                now_ns = self._take_inbox(now_ns)
                self._obey_stop(now_ns)
                self._carry_out(now_ns)
            except FatalError as error:
                self._fail(error)
            except Exception as error:
                # Not tied to any one request, so nothing here can be trusted any more. Callers
                # must not wait for ever for a thread that has died.
                fatal = FatalError(
                    f"the orchestration loop failed: {error!r}",
                    context="scheduling.loop",
                    hint="this is a defect of the runtime, the launcher or the policy; report it",
                )
                fatal.__cause__ = error
                self._fail(fatal)
        if self._gave_up:
            self._give_up()
        self._report_finished()
        # Last, so that nobody waits for it: the streams are busy by now.
        if self._launcher.stages_ahead and not self._gave_up:
            upcoming = self._scheduler.upcoming()
            if upcoming is not None:
                self._launcher.stage(upcoming)
        if self._when_idle is not None and not self._open:
            self._when_idle()

    def _take_completions(self, completions: Iterable[SegmentCompletion], now_ns: int) -> None:
        for completion in completions:
            if isinstance(completion.error, FatalError):
                raise completion.error
            self._scheduler.segment_finished(completion.request_id, now_ns, completion.error)

    def _take_inbox(self, now_ns: int) -> int:
        """Return the instant that the step goes on with: nothing starts or ends before it came."""
        while self._inbox:
            request = self._inbox[0]
            # Handed in since the step began, perhaps.
            now_ns = max(now_ns, request.arrival_ns)
            self._scheduler.enqueue(request, now_ns)
            # Only now: until it is enqueued, giving up has to find it here.
            self._inbox.popleft()
            if self._hub.enabled:
                self._emit_submitted(request)
        for _ in range(len(self._cancellations)):
            request_id, _ = self._cancellations.popitem(last=False)
            # Another thread can be quicker than the submission it cancels; that one will wake us.
            if not self._scheduler.cancel(request_id) and request_id in self._open:
                self._cancellations[request_id] = None
        return now_ns

    def _obey_stop(self, now_ns: int) -> None:
        if self._stopping == "cancel":
            self._scheduler.cancel_all(Reason.RUNTIME_STOPPING)
        if self._stop_at_ns is not None and now_ns >= self._stop_at_ns and not self.is_idle:
            self._gave_up = True

    def _carry_out(self, now_ns: int) -> None:
        # A launch that fails frees its stream, so there is more to decide.
        while not self._gave_up:
            start_ns = self._clock.now_ns() if self._hub.detailed else 0
            decisions = self._scheduler.decide(now_ns)
            end_ns = self._clock.now_ns() if self._hub.detailed else 0
            try:
                all_launched = self._launch(decisions)
            finally:
                # After launching, so that the device does not wait for listeners.
                if self._hub.detailed:
                    for decision in decisions:
                        self._emit_decision(decision, start_ns, end_ns)
            if all_launched:
                return

    def _launch(self, decisions: tuple[Decision, ...]) -> bool:
        all_launched = True
        for decision in decisions:
            if decision.segment < 0:
                continue
            request = self._open[decision.request_id]
            if request.error is not None:
                # The segment before it in this very step could not be launched.
                self._scheduler.segment_finished(request.request_id, self._clock.now_ns())
                all_launched = False
                continue
            try:
                self._launcher.launch(request, decision.segment, decision.stream)
            except FatalError:
                raise
            except Exception as error:
                # Whatever it is, it belongs to this request, whose caller is told.
                now_ns = self._clock.now_ns()
                self._scheduler.segment_finished(request.request_id, now_ns, error)
                all_launched = False
        return all_launched

    def _fail(self, error: FatalError) -> None:
        self._scheduler.queue.close()
        self._fatal_error = error
        self._gave_up = True

    def _give_up(self) -> None:
        """Bring everything that is open to an end on the spot."""
        admitted: list[ExecutionRequest] = []
        while self._inbox:
            admitted.append(self._inbox.popleft())
        self._cancellations.clear()
        # After whatever arrived meanwhile.
        now_ns = self._clock.now_ns()
        decisions = self._scheduler.abandon(now_ns, self._fatal_error, admitted=admitted)
        if self._hub.detailed:
            for decision in decisions:
                self._emit_decision(decision, now_ns, now_ns)

    def _report_finished(self) -> None:
        for request in self._scheduler.take_finished():
            error = _outcome_error(request)
            if self._hub.enabled:
                self._emit_finished(request, error)
            try:
                self._launcher.finish(request, request.state, error)
            except Exception:
                # A caller's mistake must not stop everybody else's requests.
                _log.exception("finishing request %d raised; going on", request.request_id)
            del self._open[request.request_id]
            self._finished_ns = request.finished_ns

    def _next_wake_ns(self) -> int | None:
        if self._gave_up:
            return None
        instants = [self._scheduler.next_deadline_ns(), self._stop_at_ns]
        if self._scheduler.running and not self._launcher.notifies:
            instants.append(self._clock.now_ns() + self._poll_interval_ns)
        return min((instant for instant in instants if instant is not None), default=None)

    # Events and errors.

    def _emit_submitted(self, request: ExecutionRequest) -> None:
        self._hub.emit(
            RequestSubmitted(
                request.arrival_ns,
                request.request_id,
                request.asked_model,
                request.priority,
                request.deadline_ns or 0,
                len(self._scheduler.queue),
                request.traceparent,
            )
        )

    def _emit_decision(self, decision: Decision, start_ns: int, end_ns: int) -> None:
        self._hub.emit(
            DecisionMade(
                start_ns,
                end_ns,
                decision.sequence,
                decision.kind,
                decision.request_id,
                decision.model,
                self._scheduler.policy_name,
                decision.reason,
                decision.stream,
                decision.queue_depth,
                decision.candidates,
                decision.blocked_by,
            )
        )

    def _emit_finished(self, request: ExecutionRequest, error: Exception | None) -> None:
        self._hub.emit(
            RequestFinished(
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
        )

    def _refusal_error(self, request: ExecutionRequest, refusal: Decision) -> TransientError:
        context = f"model `{request.model}`"
        if refusal.reason is Reason.WOULD_BE_LATE:
            assert request.deadline_ns is not None
            needed_ms = self._scheduler.needed_ns(request.model) / 1e6
            left_ms = (request.deadline_ns - refusal.at_ns) / 1e6
            return DeadlineExceededError(
                f"the result would be late: the model needs {needed_ms:.3f} ms, and the deadline "
                f"leaves {left_ms:.3f} ms",
                context=context,
                hint="allow more time, or have late requests run or degrade (`late`)",
            )
        if refusal.reason is Reason.QUEUE_FULL:
            return _queue_full_error(request, refusal.queue_depth)
        if self._fatal_error is not None:
            return RuntimeStoppedError(
                f"the runtime has failed: {self._fatal_error.message}",
                context=context,
                hint="end the process and start it again",
            )
        return _stopped_error(context)


def _outcome_error(request: ExecutionRequest) -> Exception | None:
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


def _queue_full_error(request: ExecutionRequest, waiting: int) -> QueueFullError:
    return QueueFullError(
        f"the queue is full: {waiting} requests wait",
        context=f"model `{request.model}`",
        hint="submit again later or more slowly, or raise `scheduler.queue_capacity`",
    )


def _stopped_error(context: str) -> RuntimeStoppedError:
    return RuntimeStoppedError(
        "the runtime is stopping", context=context, hint="open it again to go on"
    )
