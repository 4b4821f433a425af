"""Page-locked host memory of a stream: copies pass through it, so that they run beside kernels.

It empties whenever the stream is known to have got there. A stream of a deployment has it reserved
once, as large as was planned: one request's copies always fit. Others' grows as copies need.
"""

from __future__ import annotations

import ctypes
from collections import deque
from dataclasses import dataclass

import numpy as np

from aegis_pipe.device.cuda import driver

STAGING_ALIGNMENT_BYTES = 256
"""Copies begin at multiples of this."""


@dataclass(frozen=True, slots=True, eq=False)
class StagedCopy:
    """A part of the memory in use until its stream has passed position `order`."""

    order: int
    address: int
    bytes: np.ndarray
    target: np.ndarray | None
    """Where the bytes go once they have come from the device; None for those on the way there."""


class PinnedStaging:
    """The memory, used from its beginning whenever nothing is pending."""

    def __init__(self, size_bytes: int) -> None:
        self._address = 0
        self._memory = np.empty(0, np.uint8)
        self._next = 0
        self.peak_bytes = 0
        """The most that was in use at once."""
        self._pending: deque[StagedCopy] = deque()
        self._reserve(size_bytes)

    @property
    def capacity_bytes(self) -> int:
        """Its size."""
        return self._memory.size

    def has_room(self, size_bytes: int) -> bool:
        """Return whether a copy of this size fits right now."""
        return self._next + size_bytes <= self._memory.size

    def grow(self, size_bytes: int) -> None:
        """Make room for at least this much; nothing may be pending."""
        assert not self._pending, "staging memory grows while it is in use"
        if size_bytes > self._memory.size:
            driver.free_pinned(self._address)
            self._reserve(max(size_bytes, 2 * self._memory.size))

    def stage(self, size_bytes: int, order: int, target: np.ndarray | None) -> StagedCopy:
        """Take a part of it."""
        start, end = self._next, self._next + size_bytes
        copy = StagedCopy(order, self._address + start, self._memory[start:end], target)
        self._pending.append(copy)
        self._next = -(-end // STAGING_ALIGNMENT_BYTES) * STAGING_ALIGNMENT_BYTES
        self.peak_bytes = max(self.peak_bytes, self._next)
        return copy

    def retire(self, order: int) -> None:
        """Deliver and forget what the stream has passed."""
        while self._pending and self._pending[0].order <= order:
            copy = self._pending.popleft()
            if copy.target is not None:
                np.copyto(copy.target, copy.bytes)
        if not self._pending:
            self._next = 0

    def close(self) -> None:
        """Give the memory back; idempotent."""
        self._memory = np.empty(0, np.uint8)
        if self._address:
            driver.free_pinned(self._address)
            self._address = 0

    def _reserve(self, size_bytes: int) -> None:
        if not size_bytes:
            return
        rounded = -(-size_bytes // STAGING_ALIGNMENT_BYTES) * STAGING_ALIGNMENT_BYTES
        self._address = driver.allocate_pinned(rounded)
        self._memory = pinned_bytes(self._address, rounded)


def pinned_bytes(address: int, size_bytes: int) -> np.ndarray:
    """Return page-locked memory as uint8[size_bytes]; it does not keep the memory."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))
