"""A clock that moves only when it is told to, and waits by jumping."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from aegis_pipe.clock import Signal


class VirtualClock:
    """A `Clock` for tests and simulation: no time passes but by `advance` and `wait_until`.

    Things that are to happen later are registered with `call_at`; they happen when the clock gets
    there, in order of time and then of registration. For one thread.
    """

    def __init__(self, now_ns: int = 0) -> None:
        self._now_ns = now_ns
        self._order = itertools.count()
        self._calls: list[tuple[int, int, Callable[[], None]]] = []

    def now_ns(self) -> int:
        """Return the present instant."""
        return self._now_ns

    def to_unix_ns(self, instant_ns: int) -> int:
        """Return the instant itself: virtual time starts at the epoch."""
        return instant_ns

    def call_at(self, instant_ns: int, call: Callable[[], None]) -> None:
        """Have something happen at an instant that is not in the past."""
        assert instant_ns >= self._now_ns, f"{instant_ns} is past, it is {self._now_ns}"
        heapq.heappush(self._calls, (instant_ns, next(self._order), call))

    def next_call_ns(self) -> int | None:
        """Return when the next registered thing happens; None if nothing is registered."""
        return self._calls[0][0] if self._calls else None

    def advance(self, duration_ns: int) -> None:
        """Let time pass; what is registered up to then, inclusive, happens on its instant."""
        self.advance_to(self._now_ns + duration_ns)

    def advance_to(self, instant_ns: int) -> None:
        """Let time pass until an instant that is not in the past."""
        assert instant_ns >= self._now_ns, f"{instant_ns} is past, it is {self._now_ns}"
        while self._calls and self._calls[0][0] <= instant_ns:
            self._now_ns, _, call = heapq.heappop(self._calls)
            call()
        self._now_ns = instant_ns

    def wait_until(self, instant_ns: int | None, wake: Signal) -> bool:
        """Jump to the next registered instant until `wake` is set, or to the instant given.

        Asserts if neither can ever happen: a real thread would hang there.
        """
        while not wake.is_set():
            next_ns = self.next_call_ns()
            if next_ns is None or (instant_ns is not None and instant_ns < next_ns):
                assert instant_ns is not None, "waiting for ever: nothing is going to happen"
                self._now_ns = max(self._now_ns, instant_ns)
                return False
            self.advance_to(next_ns)
        return True
