"""Where requests come in: to the revision that runs, or into a bounded wait during a reload.

What waits here has been promised a result: it goes to the next revision in the order in which it
came, with the instant at which it arrived. Who waits is bounded by the capacity of the queue.
"""

from __future__ import annotations

import threading

from aegis_pipe.clock import Clock
from aegis_pipe.errors import AegisError, QueueFullError, RuntimeStoppedError
from aegis_pipe.events import EventHub, RequestFinished
from aegis_pipe.revision import Revision, Submission
from aegis_pipe.scheduling.decision import Reason
from aegis_pipe.scheduling.request import RequestState


class RequestGate:
    """Hands submissions to a revision; `hold` has them wait until `open`. For any thread."""

    def __init__(self, revision: Revision, clock: Clock, hub: EventHub) -> None:
        self.revision = revision
        """The one that takes requests, or took them last."""
        self._clock = clock
        self._hub = hub
        # Reentrant: a listener that hears of a refusal may submit again.
        self._lock = threading.RLock()
        self._held: list[Submission] | None = None
        self._withdrawn: set[int] = set()
        self._is_forked = False

    def completes_here(self) -> bool:
        """Return whether the caller is a completion callback, for which nothing else completes."""
        return self.revision.loop.is_current_thread

    def forked(self) -> None:
        """Refuse what comes: this is a child process, and the threads stayed in its parent."""
        self._is_forked = True

    def submit(self, submission: Submission) -> None:
        """Hand in a request, or have it wait; its end is told to its future.

        Raises InvalidInputError, QueueFullError or RuntimeStoppedError at once.
        """
        if self._is_forked:
            # Before the lock, which another thread may have held at the fork.
            raise RuntimeStoppedError(
                "this process was forked from the one that runs it",
                context=f"model `{submission.model}`",
                hint="open the pipeline in the process that uses it: after the fork, or by `spawn`",
            )
        revision = self.revision
        request = revision.make_request(submission)
        # Before the lock: what is large takes its time.
        revision.stage(request)
        is_handed_in = False
        try:
            # Held while handing in, so that no request comes to a revision that has been stopped.
            with self._lock:
                if self._held is not None:
                    self._hold(submission)
                elif revision is not self.revision:
                    other = self.revision.make_request(submission)
                    self.revision.loop.submit(other, is_patient=submission.is_patient)
                else:
                    revision.loop.submit(request, is_patient=submission.is_patient)
                    is_handed_in = True
        finally:
            if not is_handed_in:
                revision.unstage(request)

    def cancel(self, request_id: int) -> bool:
        """Ask for a request to end; return whether it was open."""
        with self._lock:
            if any(each.request_id == request_id for each in self._held or ()):
                self._withdrawn.add(request_id)
                return True
            revision = self.revision
        return revision.loop.cancel(request_id)

    def hold(self) -> None:
        """Have submissions wait from now on."""
        with self._lock:
            self._held = []

    def drain(self, until_ns: int) -> int:
        """Wait until every request that was let through is over; return how many are not."""
        loop = self.revision.loop
        pause = threading.Event()
        while not loop.is_idle:
            now_ns = self._clock.now_ns()
            if now_ns >= until_ns:
                return loop.open_requests
            self._clock.wait_until(min(until_ns, now_ns + 1_000_000), pause)
        return 0

    def open(self, revision: Revision) -> int:
        """Let through what has waited, and all that comes, to this revision; return how many."""
        failed: list[tuple[Submission, AegisError]] = []
        with self._lock:
            self.revision = revision
            held, self._held = self._held or [], None
            withdrawn, self._withdrawn = self._withdrawn, set()
            for submission in held:
                try:
                    revision.loop.submit(revision.make_request(submission))
                except AegisError as error:
                    failed.append((submission, error))
                    continue
                if submission.request_id in withdrawn:
                    revision.loop.cancel(submission.request_id)
        for submission, refusal in failed:
            submission.future.set_exception(refusal)
        return len(held)

    def _hold(self, submission: Submission) -> None:
        assert self._held is not None
        if len(self._held) < self.revision.manifest.scheduler.queue_capacity:
            self._held.append(submission)
            return
        error = QueueFullError(
            f"the manifest is being reloaded, and {len(self._held)} requests wait for its end",
            context=f"model `{submission.model}`",
            hint="submit again later or more slowly, or raise `scheduler.queue_capacity`",
        )
        if self._hub.enabled and not submission.is_patient:
            self._hub.emit(
                RequestFinished(
                    self._clock.now_ns(),
                    submission.request_id,
                    submission.model,
                    RequestState.REJECTED,
                    Reason.QUEUE_FULL,
                    str(error),
                    submission.arrival_ns,
                    0,
                    submission.deadline_ns or 0,
                    False,
                )
            )
        raise error
