"""An ordered queue of work with a thread of its own."""

from __future__ import annotations

import logging
import threading
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue

import numpy as np

from aegis_pipe.clock import Clock
from aegis_pipe.device.cpu.event import CpuEvent, Mark
from aegis_pipe.device.cpu.kernels import native
from aegis_pipe.device.cpu.region import host_bytes
from aegis_pipe.device.protocols import DeviceEvent, Region, StagingStatistics

_log = logging.getLogger(__name__)

Action = Callable[[], object]
Entry = tuple[bool, Action]
"""Work or not, which is skipped after an error, and what to do."""


class Progress:
    """Where the context keeps its listener, for the threads of its streams to find."""

    __slots__ = ("listener",)

    def __init__(self) -> None:
        self.listener: Callable[[], None] | None = None

    def notify(self) -> None:
        """Call the listener, if there is one."""
        listener = self.listener
        if listener is not None:
            listener()


class _Worker(threading.Thread):
    """Performs what its queue holds, lists of entries, in order, until it meets None.

    It does not know its stream, so that a stream nobody holds is collected and can warn; and it
    is a daemon, so that a crash of the main thread never hangs the interpreter.
    """

    def __init__(self, name: str, threads: int) -> None:
        super().__init__(name=name, daemon=True)
        self._threads = threads
        self.queue: SimpleQueue[Sequence[Entry] | None] = SimpleQueue()
        self.finished = 0
        """Lists performed; written by this thread alone."""
        self.errors: deque[tuple[int, Exception]] = deque()
        """Each request's first error since it was checked: added here, taken by the stream."""
        self._request = 0
        self._has_failed = False

    def run(self) -> None:
        """Work until told to stop, with a team of helpers for the compiled kernels."""
        library = native.LIBRARY
        if library is not None:
            self._team_memory = library.open_team(self._threads)
        # Infinities and NaNs are results like any other; NumPy keeps this setting per thread.
        with np.errstate(all="ignore"):
            while self._step():
                pass
        if library is not None:
            library.close_team()

    def _step(self) -> bool:
        # One frame per list, so that nothing of it stays referenced while the thread waits.
        entries = self.queue.get()
        if entries is None:
            return False
        self.perform(entries)
        self.finished += 1
        return True

    def perform(self, entries: Sequence[Entry]) -> None:
        """Perform entries on the calling thread: this one, or another while this one is idle."""
        for is_work, action in entries:
            if not (is_work and self._has_failed):
                try:
                    action()
                except Exception as error:
                    self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            self.errors.append((self._request, error))

    def begin_request(self) -> None:
        """Perform work again, for the next request."""
        self._request += 1
        self._has_failed = False

    def recover(self) -> None:
        """Perform work again. Enqueued by the check, so what came before it is still skipped."""
        self._has_failed = False


class CpuStream:
    """A CPU stream; what is enqueued runs on its own thread, one entry after the other."""

    def __init__(self, index: int, clock: Clock, progress: Progress, threads: int = 1) -> None:
        self._index = index
        self._now_ns = clock.now_ns
        self._progress = progress
        self._is_open = True
        self._has_team = threads > 1
        self._held: list[Entry] | None = None
        """What is collected since `hold`."""
        self._enqueued = 0
        """Lists given to the thread."""
        self._request = 0
        """Number of the request that work is enqueued for."""
        self._worker = _Worker(f"aegis-cpu-stream-{index}", threads)
        self._worker.start()

    @property
    def index(self) -> int:
        """Position in the stream pool."""
        return self._index

    def copy_in(self, source: np.ndarray, target: Region) -> None:
        """Enqueue a copy to the device; `source` (C-contiguous) must stay unchanged until done."""
        self._put(True, partial(np.copyto, host_bytes(target), bytes_of(source, target)))

    def copy_out(self, source: Region, target: np.ndarray) -> None:
        """Enqueue a copy to the host; `target` (C-contiguous) is filled when done."""
        self._put(True, partial(np.copyto, bytes_of(target, source), host_bytes(source)))

    def enqueue(self, work: Action) -> None:
        """Enqueue work, which is skipped after an error."""
        self._put(True, work)

    def begin_request(self) -> None:
        """Enqueue: what follows is of another request, whatever becomes of the one before."""
        self._request += 1
        self._put(False, self._worker.begin_request)

    def hold(self) -> None:
        """Collect what is enqueued until `synchronise`."""
        if self._held is None:
            self._held = []

    def record(self, event: DeviceEvent) -> None:
        """Enqueue: mark the event when everything before has finished."""
        own = _own(event)
        own.request = self._request
        progress = self._progress if own.is_announced else None
        self._put(False, partial(self._reach, own.renew(), self._now_ns, progress))

    def wait(self, event: DeviceEvent) -> None:
        """Enqueue: go on only once the event's latest record has been reached."""
        mark = _own(event).pending
        if mark is not None:
            # After an error, too: whoever waits for this stream relies on what it waited for.
            self._put(False, mark.wait)

    def synchronise(self) -> None:
        """Block until everything enqueued has finished, then `check`.

        What was held runs on the calling thread if the stream's own has neither work nor helpers:
        that spares waking one thread and then the other.
        """
        held = self._held
        if held is not None and not self._has_team and self._worker.finished == self._enqueued:
            self._held = None
            assert self._is_open, f"{self!r} is used after it was closed"
            self._worker.perform(held)
            self.check()
            return
        self._release()
        mark = Mark()
        self._put(False, partial(mark.reach, 0))
        mark.wait()
        self.check()

    @property
    def staging(self) -> StagingStatistics:
        """Nothing: copies go straight."""
        return StagingStatistics()

    def check(self, event: DeviceEvent | None = None) -> None:
        """Raise the first error of the work since the last check, and forget it.

        What was enqueued before the check is skipped, whether or not it was its turn yet.
        """
        errors = self._worker.errors
        if not errors:
            return
        latest = self._request if event is None else _own(event).request
        first: Exception | None = None
        while errors and errors[0][0] <= latest:
            request, error = errors.popleft()
            first = first or error
            if request == self._request:
                # It has one error until it recovers: no other can get lost here.
                self._put(False, self._worker.recover)
        if first is not None:
            raise first

    def close(self) -> None:
        """Finish what is enqueued and stop the thread; idempotent."""
        if not self._is_open:
            return
        self._release()
        self._is_open = False
        self._worker.queue.put(None)
        self._worker.join()
        for _, error in self._worker.errors:
            _log.warning("%r was closed with an unchecked error: %s", self, error)

    def __repr__(self) -> str:
        state = "open" if self._is_open else "closed"
        return f"<CpuStream {self._index}, {state}, {self._worker.queue.qsize()} enqueued>"

    def _put(self, is_work: bool, action: Action) -> None:
        assert self._is_open, f"{self!r} is used after it was closed"
        if self._held is None:
            self._hand_over(((is_work, action),))
        else:
            self._held.append((is_work, action))

    def _release(self) -> None:
        held, self._held = self._held, None
        if held:
            self._hand_over(held)

    def _hand_over(self, entries: Sequence[Entry]) -> None:
        self._enqueued += 1
        self._worker.queue.put(entries)

    @staticmethod
    def _reach(mark: Mark, now_ns: Callable[[], int], progress: Progress | None) -> None:
        mark.reach(now_ns())
        if progress is not None:
            progress.notify()

    def __del__(self) -> None:
        if getattr(self, "_is_open", False):
            # No join: the collector may be running on this very thread.
            self._worker.queue.put(None)
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)


def bytes_of(array: np.ndarray, region: Region) -> np.ndarray:
    """Return a host array as uint8, after checking that it fits the region exactly."""
    assert array.flags.c_contiguous, "host arrays of copies are C-contiguous"
    assert array.nbytes == region.size_bytes, f"{array.nbytes} host bytes copied with {region!r}"
    return (array if array.ndim == 1 else array.reshape(-1)).view(np.uint8)


def _own(event: DeviceEvent) -> CpuEvent:
    assert isinstance(event, CpuEvent), f"{event!r} belongs to another device"
    return event
