"""The one thing that telemetry does on the threads that serve requests: append to a ring."""

from __future__ import annotations

from collections import deque
from itertools import count

from aegis_pipe.events import Event


class EventRing:
    """A bounded, lock-free queue of events: many threads append, one drains.

    When it is full the oldest event gives way: telemetry is lost and counted, never a request
    held up. Relies on `deque.append`, `deque.popleft` and `next(count)` being atomic.
    """

    def __init__(self, capacity: int) -> None:
        self._events: deque[Event] = deque(maxlen=capacity)
        self._tickets = count()
        self._looks = 0
        self._drained = 0

    def __len__(self) -> int:
        return len(self._events)

    def append(self, event: Event) -> None:
        """Take an event; never blocks, never raises."""
        next(self._tickets)
        self._events.append(event)

    def drain(self) -> list[Event]:
        """Return the events so far, oldest first; for the one draining thread."""
        # No more than are there now, or a busy run could keep the drainer for ever.
        events = [self._events.popleft() for _ in range(len(self._events))]
        self._drained += len(events)
        return events

    def dropped_count(self) -> int:
        """Return how many events were lost; exact once nobody appends. For the drainer only."""
        # A counter of this kind can be read only by taking a ticket: take away our own.
        appended = next(self._tickets) - self._looks
        self._looks += 1
        return appended - self._drained - len(self._events)
