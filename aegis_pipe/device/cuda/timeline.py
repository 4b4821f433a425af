"""Device time on the host's clock.

Events tell times relative to each other, stamps tell the GPU's `%globaltimer`. Both are brought to
the host's clock by anchors: something recorded on an idle stream of its own, between two readings
of the host's clock. The offset is whatever agrees with the anchors; a new anchor moves it only as
far as it has to.
"""

from __future__ import annotations

from aegis_pipe.clock import Clock
from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.captured import captured
from aegis_pipe.device.cuda.stamps import Stamps

_ANCHORS_MIN, _ANCHORS_MAX = 16, 400
_UNCERTAINTY_NS, _STAMP_UNCERTAINTY_NS = 10_000, 6_000
"""Anchors are taken until both offsets are known this well: other processes come between some."""
_REFRESH_NS = 1_000_000_000
"""Elapsed times are single-precision milliseconds: after a second they resolve 60 ns."""


class Timeline:
    """Keeps the anchor event and both offsets."""

    def __init__(self, clock: Clock, stamps: Stamps) -> None:
        self._now_ns = clock.now_ns
        self._stream = driver.create_stream(driver.stream_priority_range()[1])
        self._anchor, self._spare, self._probe = (driver.create_event() for _ in range(3))
        driver.record_event(self._anchor, self._stream)
        driver.synchronise_event(self._anchor)
        self._anchor_ns = clock.now_ns()
        low, high = -(1 << 62), 1 << 62
        stamp_low, stamp_high = low, high
        stamp = captured(self._stream, lambda: stamps.enqueue_single(self._stream))
        for taken in range(1, _ANCHORS_MAX + 1):
            begin, device_ns, end = self._sample()
            low, high = max(low, begin - device_ns), min(high, end - device_ns)
            first, ticks, last = self._stamped(stamp, stamps)
            stamp_low, stamp_high = max(stamp_low, first - ticks), min(stamp_high, last - ticks)
            known = (
                high - low <= 2 * _UNCERTAINTY_NS
                and stamp_high - stamp_low <= 2 * _STAMP_UNCERTAINTY_NS
            )
            if known and taken >= _ANCHORS_MIN:
                break
        driver.destroy_graph(stamp)
        self._anchor_ns += (low + high) // 2
        self._stamp_offset_ns = (low + high) // 2 + (stamp_low + stamp_high) // 2
        self.uncertainty_ns = max(0, high - low) // 2
        self.stamp_uncertainty_ns = max(0, stamp_high - stamp_low) // 2

    def event_ns(self, event: int) -> int:
        """Return when an event was reached."""
        if self._now_ns() - self._anchor_ns > _REFRESH_NS:
            self._refresh()
        return self._anchor_ns + driver.elapsed_ns(self._anchor, event)

    @property
    def stamp_offset_ns(self) -> int:
        """What to add to a `%globaltimer` reading."""
        return self._stamp_offset_ns

    def close(self) -> None:
        """Release the events and the stream."""
        for event in (self._anchor, self._spare, self._probe):
            driver.destroy_event(event)
        driver.destroy_stream(self._stream)

    def _sample(self) -> tuple[int, int, int]:
        """Return host times around a record, and its device time by the present anchor."""
        begin = self._now_ns()
        device_ns = self._recorded(self._probe)
        return begin, device_ns, self._now_ns()

    def _stamped(self, stamp: int, stamps: Stamps) -> tuple[int, int, int]:
        """Return a stamp between the device times of events right around it."""
        driver.record_event(self._spare, self._stream)
        driver.launch_graph(stamp, self._stream)
        driver.record_event(self._probe, self._stream)
        driver.synchronise_event(self._probe)
        return self._device_ns(self._spare), stamps.single(), self._device_ns(self._probe)

    def _recorded(self, event: int) -> int:
        driver.record_event(event, self._stream)
        driver.synchronise_event(event)
        return self._device_ns(event)

    def _device_ns(self, event: int) -> int:
        return self._anchor_ns + driver.elapsed_ns(self._anchor, event)

    def _refresh(self) -> None:
        """Take a new anchor, and let the host's readings around it correct the drift."""
        begin = self._now_ns()
        anchored_ns = self._recorded(self._spare)
        end = self._now_ns()
        corrected = min(max(anchored_ns, begin), end)
        self._anchor, self._spare = self._spare, self._anchor
        self._anchor_ns = corrected
        self._stamp_offset_ns += corrected - anchored_ns
