"""A point in a CUDA stream."""

from __future__ import annotations

import warnings
from typing import Protocol

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.timeline import Timeline

EVENT_STEP_NS = 2_000
"""Events are recorded with a time that goes on in steps of about a microsecond; twice that."""


class RecordingStream(Protocol):
    """What an event knows of the stream that recorded it."""

    def reached(self, order: int) -> None:
        """Deliver what was copied out up to this position."""
        ...


class CudaEvent:
    """An event; remembers the stream of its last record, whose copies it completes."""

    __slots__ = ("__weakref__", "_handle", "_order", "_stream", "_timeline")

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._handle = driver.create_event()
        self._stream: RecordingStream | None = None
        self._order = 0

    def is_done(self) -> bool:
        """Return whether everything before the last record has finished; True if never recorded."""
        if self._stream is None or not self._handle:
            return True
        if not driver.event_is_done(self._handle):
            return False
        self._stream.reached(self._order)
        return True

    def synchronise(self) -> None:
        """Block until done."""
        if self._stream is not None and self._handle:
            driver.synchronise_event(self._handle)
            self._stream.reached(self._order)

    def completed_ns(self) -> int:
        """Return when it was reached, on the host's clock; only once `is_done`."""
        assert self._stream is not None, "an event that was never recorded has no time"
        return self._timeline.event_ns(self._handle)

    def recorded(self, stream: RecordingStream, order: int) -> int:
        """Note the stream and its position; return the handle. For the stream only."""
        self._stream, self._order = stream, order
        return event_handle_of(self)

    @property
    def order(self) -> int:
        """The position of its last record on its stream."""
        return self._order

    @property
    def is_recorded(self) -> bool:
        """Whether there is anything to wait for."""
        return self._stream is not None

    def close(self) -> None:
        """Release; idempotent."""
        if self._handle:
            driver.destroy_event(self._handle)
            self._handle = 0

    def __del__(self) -> None:
        if getattr(self, "_handle", 0):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)


def event_handle_of(event: CudaEvent) -> int:
    """Return the driver's handle of an open event."""
    assert event._handle, "the event is used after it was closed"
    return event._handle
