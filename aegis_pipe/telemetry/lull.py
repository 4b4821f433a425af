"""When telemetry's threads work: between requests, or when they have waited long enough.

A processor that exports beside a request takes from it, above all where two processors are threads
of one core: there a kernel takes up to twice as long meanwhile. Between two requests it is free.
When the next one comes nobody knows. Many come at a steady rate, so work begins right after one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from aegis_pipe.clock import Clock

MANNERS_S: Final = 0.0003
"""The first moment of a lull belongs to those who take their results."""
FRESH_NS: Final = 1_500_000
"""A lull as young as that is expected to last for a small piece of work."""
QUIET_NS: Final = 20_000_000
"""So is one that has lasted as long as that."""


class Lull:
    """Lets threads wait for a lull; while nobody is watched, there always is one.

    For any number of threads. Whoever runs requests is asked, and tells when the last one is over:
    looking again and again would cost the requests what waiting spares them.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._idle_since_ns: Callable[[], int | None] = _always
        self._is_ended = False
        # Set while nobody waits.
        self._told = threading.Event()
        self._told.set()

    def watch(self, idle_since_ns: Callable[[], int | None]) -> None:
        """Have this tell since when no request runs, on the clock's axis; None while one does."""
        self._idle_since_ns = idle_since_ns

    def tell(self) -> None:
        """Say that no request runs; cheap if nobody waits for that."""
        if not self._told.is_set():
            self._told.set()

    def end(self) -> None:
        """Have nobody wait any more."""
        self._is_ended = True
        self._told.set()

    def wait(self, until_s: float) -> bool:
        """Wait for a lull, until `time.monotonic` is there at most; return whether there is one."""
        while not self._is_ended:
            # Cleared before looking, so that what is told meanwhile ends the wait at once. Another
            # thread may clear it in between: then this one goes by the next lull, or the time.
            self._told.clear()
            needed_s = self._needed_s()
            if needed_s == 0:
                self._told.set()
                return True
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                self._told.set()
                return False
            if self._told.wait(min(left_s, needed_s)):
                time.sleep(MANNERS_S)
        return True

    def _needed_s(self) -> float:
        """Return how much longer it has to stay as it is to be a lull; 0 if it is one."""
        since_ns = self._idle_since_ns()
        if since_ns is None:
            return threading.TIMEOUT_MAX
        age_ns = self._clock.now_ns() - since_ns
        return 0 if age_ns <= FRESH_NS else max(0, QUIET_NS - age_ns) / 1e9


def _always() -> int:
    return 0
