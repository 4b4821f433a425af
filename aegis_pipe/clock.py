"""Time, as something that is handed in.

Every part that needs the time takes a `Clock`, so tests and simulation can drive it.
All times are integers in nanoseconds on one monotonic axis; `to_unix_ns` is for export only.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Signal(Protocol):
    """What a thread can wait for: `threading.Event`, or the quicker `Wake`."""

    def is_set(self) -> bool:
        """Return whether it was set and not cleared since."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, or for so many seconds; return whether it was."""
        ...


class Wake:
    """As `threading.Event`, for one thread that waits and clears: woken in two thirds of the time.

    It is a bare lock. Anybody may set it. A wait may also end early after it was set, cleared and
    set again in haste; it is never lost that it was set.
    """

    __slots__ = ("_gate", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        # Held while there is nothing to wake up for.
        self._gate = threading.Lock()
        self._gate.acquire()

    def is_set(self) -> bool:
        """Return whether it was set and not cleared since."""
        return self._is_set

    def set(self) -> None:
        """Let the thread go on that waits, or will."""
        self._is_set = True
        # Not `suppress`, which takes twice as long: every request comes by here.
        try:  # noqa: SIM105
            self._gate.release()
        except RuntimeError:
            pass  # Another thread was quicker, which is as good.

    def clear(self) -> None:
        """Have the next wait last until it is set again."""
        self._is_set = False
        self._gate.acquire(blocking=False)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, or for so many seconds; return whether it was."""
        return self._is_set or self._gate.acquire(timeout=-1 if timeout is None else timeout)


class Clock(Protocol):
    """A monotonic clock that can also wait."""

    def now_ns(self) -> int:
        """Return the present instant in nanoseconds; never goes back."""
        ...

    def to_unix_ns(self, instant_ns: int) -> int:
        """Convert an instant of this clock to nanoseconds since the Unix epoch."""
        ...

    def wait_until(self, instant_ns: int | None, wake: Signal) -> bool:
        """Wait for `wake` or for the instant (None: for ever); return whether `wake` was set."""
        ...


class SystemClock:
    """The machine's monotonic clock, anchored once to the wall clock."""

    def __init__(self) -> None:
        self._unix_offset_ns = time.time_ns() - time.monotonic_ns()

    # Called several times per request: the bound builtin saves a Python frame.
    now_ns = staticmethod(time.monotonic_ns)

    def to_unix_ns(self, instant_ns: int) -> int:
        """Convert by the offset taken when this clock was made."""
        return instant_ns + self._unix_offset_ns

    def wait_until(self, instant_ns: int | None, wake: Signal) -> bool:
        """Block on `wake` with a timeout."""
        if instant_ns is None:
            return wake.wait()
        wait_s = (instant_ns - time.monotonic_ns()) / 1e9
        # Over the maximum (292 years) `wait` would raise, and end whatever thread this is.
        return wake.wait(min(max(0.0, wait_s), threading.TIMEOUT_MAX))
