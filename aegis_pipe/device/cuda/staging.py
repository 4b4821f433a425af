"""Page-locked host memory of a stream: copies pass through it, so that they run beside kernels.

It empties whenever the stream is known to have got there. A stream of a deployment has it reserved
once, as large as was planned: one request's copies always fit. Others' grows as copies need.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence
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
        self._next = _aligned(end)
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
        rounded = _aligned(size_bytes)
        self._address = driver.allocate_pinned(rounded)
        self._memory = pinned_bytes(self._address, rounded)


class CudaStagingAhead:
    """Memory that holds the next request's inputs while streams are still busy with others.

    The stream that the request goes to finds them here by their arrays, and the memory is in use
    until it has passed their copies.
    """

    def __init__(self) -> None:
        self._address = 0
        self._memory = np.empty(0, np.uint8)
        self._places: dict[int, tuple[np.ndarray, int]] = {}
        self._reader: object = None
        self._order = 0

    def reserve(self, size_bytes: int) -> None:
        """Be as large as this, from now on; nothing is on its way."""
        assert self._reader is None, "staging memory is exchanged while it is in use"
        self.close()
        if size_bytes:
            self._address = driver.allocate_pinned(size_bytes)
            self._memory = pinned_bytes(self._address, size_bytes)

    def stage(self, sources: Sequence[np.ndarray]) -> bool:
        """Copy what `DeviceStream.copy_in` will be given; False if there is no room now."""
        self._places.clear()
        sizes = [_aligned(source.nbytes) for source in sources]
        if self._reader is not None or sum(sizes) > self._memory.size:
            return False
        start = 0
        for source, size_bytes in zip(sources, sizes, strict=True):
            end = start + source.nbytes
            np.copyto(self._memory[start:end], source.reshape(-1).view(np.uint8))
            self._places[id(source)] = (source, self._address + start)
            start += size_bytes
        return True

    def forget(self) -> None:
        """Take no array for one that was staged: they may have other contents by now."""
        self._places.clear()

    def find(self, source: np.ndarray, reader: object, order: int) -> int:
        """Return where an array's bytes are staged, for `reader` to pass at `order`; 0: nowhere."""
        staged, address = self._places.get(id(source), (None, 0))
        if staged is not source:
            return 0
        self._reader, self._order = reader, order
        return address

    def retire(self, reader: object, order: int) -> None:
        """Have the memory back once its reader has passed the copies."""
        if self._reader is reader and order >= self._order:
            self._reader = None

    def close(self) -> None:
        """Give the memory back; idempotent."""
        self._places.clear()
        self._memory = np.empty(0, np.uint8)
        if self._address:
            driver.free_pinned(self._address)
            self._address = 0


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // STAGING_ALIGNMENT_BYTES) * STAGING_ALIGNMENT_BYTES


def pinned_bytes(address: int, size_bytes: int) -> np.ndarray:
    """Return page-locked memory as uint8[size_bytes]; it does not keep the memory."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))
