"""Points in a CPU stream.

An event holds the mark of its latest record. A mark is reached once and never again, so that a
stream which waits for one is not misled when the event is recorded anew meanwhile.
"""

from __future__ import annotations

import threading


class Mark:
    """A latch: reached once, by the stream's thread."""

    __slots__ = ("_gate", "completed_ns", "is_reached")

    def __init__(self) -> None:
        self.is_reached = False
        self.completed_ns = 0
        # A bare lock, because it wakes a waiter several times faster than a condition does.
        self._gate = threading.Lock()
        self._gate.acquire()

    def reach(self, now_ns: int) -> None:
        """Let everyone through who waits, or will."""
        self.completed_ns = now_ns
        self.is_reached = True
        self._gate.release()

    def wait(self) -> None:
        """Block until reached."""
        if not self.is_reached:
            with self._gate:
                pass


class CpuEvent:
    """A point in a CPU stream, reusable."""

    __slots__ = ("__weakref__", "_is_open", "_mark", "is_announced", "request")

    def __init__(self, *, is_announced: bool = True) -> None:
        self.is_announced = is_announced
        self._is_open = True
        self.request = 0
        """Which of its stream's requests the latest record belongs to; set by the stream."""
        self._mark: Mark | None = None

    def renew(self) -> Mark:
        """Forget the record before; return the mark to reach."""
        assert self._is_open, "the event is recorded after it was closed"
        self._mark = Mark()
        return self._mark

    @property
    def pending(self) -> Mark | None:
        """The mark of the latest record, unless it was reached."""
        return None if self.is_done() else self._mark

    def is_done(self) -> bool:
        """Return whether everything before the last record has finished; True if never recorded."""
        return self._mark is None or self._mark.is_reached

    def synchronise(self) -> None:
        """Block until done."""
        if self._mark is not None:
            self._mark.wait()

    def completed_ns(self) -> int:
        """Return when it was reached, on the host's clock; only once `is_done`."""
        assert self._mark is not None, "the event was never recorded"
        assert self._mark.is_reached, "the event is not done"
        return self._mark.completed_ns

    def close(self) -> None:
        """Release; idempotent. Its latest mark is still reached."""
        self._is_open = False
