"""The one thing that telemetry does on the threads that serve requests: append to a ring."""

from __future__ import annotations

import threading
from collections import deque

from aegis_pipe.events import Event, instant_ns


class _ThreadRing:
    """The events of one thread; only that thread appends, only the drainer takes."""

    def __init__(self, capacity: int, owner: threading.Thread) -> None:
        self.events: deque[Event] = deque(maxlen=capacity)
        self.owner = owner
        self.appended = 0
        self.drained = 0

    @property
    def dropped(self) -> int:
        """Return how many gave way; exact while nobody appends."""
        return self.appended - self.drained - len(self.events)


class EventRing:
    """Bounded, lock-free queues of events, one for each thread that emits; one thread drains all.

    When a thread's ring is full its oldest event gives way: telemetry is lost and counted, never
    a request held up, and never another thread's events. Relies on `deque.append` and
    `deque.popleft` being atomic.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._local = threading.local()
        self._lock = threading.Lock()
        """Held while a thread's first event makes its ring, and by the drainer for its list."""
        self._rings: list[_ThreadRing] = []
        self._dropped_of_ended = 0

    def __len__(self) -> int:
        return sum(len(ring.events) for ring in self._rings)

    def append(self, event: Event) -> None:
        """Take an event; never blocks on telemetry, never raises."""
        try:
            ring = self._local.ring
        except AttributeError:
            ring = self._make_ring()
        # In this order: counted late, an event that is drained at once would count as negative.
        ring.appended += 1
        ring.events.append(event)

    def _make_ring(self) -> _ThreadRing:
        ring = _ThreadRing(self._capacity, threading.current_thread())
        with self._lock:
            self._rings.append(ring)
        self._local.ring = ring
        return ring

    def drain(self) -> list[Event]:
        """Return the events so far, in the order of their instants; for the one draining thread."""
        events: list[Event] = []
        sources = 0
        with self._lock:
            rings = list(self._rings)
        for ring in rings:
            is_over = not ring.owner.is_alive()
            # No more than are there now, or a busy thread could keep the drainer for ever.
            taken = [ring.events.popleft() for _ in range(len(ring.events))]
            ring.drained += len(taken)
            events += taken
            sources += bool(taken)
            if is_over:
                self._forget(ring)
        if sources > 1:
            events.sort(key=instant_ns)
        return events

    def _forget(self, ring: _ThreadRing) -> None:
        """Let go of an ended thread's ring, but not of its count."""
        with self._lock:
            self._rings.remove(ring)
            self._dropped_of_ended += ring.dropped

    def dropped_count(self) -> int:
        """Return how many events were lost; exact once nobody appends."""
        with self._lock:
            return self._dropped_of_ended + sum(ring.dropped for ring in self._rings)
