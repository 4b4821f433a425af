"""Page-locked host memory of a stream: copies pass through it, so that they run beside kernels.

A ring that empties whenever the stream is known to have got there. It grows while models are loaded
and warmed up; afterwards one request's copies always fit.
"""

from __future__ import annotations

import ctypes
from collections import deque
from dataclasses import dataclass

import numpy as np

from aegis_pipe.device.cuda import driver

_SLOT_BYTES = 256
"""Slots start at multiples of this."""


@dataclass(frozen=True, slots=True, eq=False)
class StagedCopy:
    """A part of the ring in use until its stream has passed position `order`."""

    order: int
    address: int
    bytes: np.ndarray
    target: np.ndarray | None
    """Where the bytes go once they have come from the device; None for those on the way there."""


class PinnedStaging:
    """The ring."""

    def __init__(self, size_bytes: int) -> None:
        self._address = 0
        self._memory = np.empty(0, np.uint8)
        self._next = 0
        self._pending: deque[StagedCopy] = deque()
        self._reserve(size_bytes)

    @property
    def capacity_bytes(self) -> int:
        """Size of the ring."""
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
        """Take a part of the ring."""
        start, end = self._next, self._next + size_bytes
        copy = StagedCopy(order, self._address + start, self._memory[start:end], target)
        self._pending.append(copy)
        self._next = -(-end // _SLOT_BYTES) * _SLOT_BYTES
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
        rounded = -(-max(size_bytes, 1) // _SLOT_BYTES) * _SLOT_BYTES
        self._address = driver.allocate_pinned(rounded)
        self._memory = pinned_bytes(self._address, rounded)


def pinned_bytes(address: int, size_bytes: int) -> np.ndarray:
    """Return page-locked memory as uint8[size_bytes]; it does not keep the memory."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))
