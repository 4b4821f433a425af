"""Page-locked host memory of a stream: copies pass through it, so that they run beside kernels.

It empties whenever the stream is known to have got there. A stream of a deployment has it reserved
once, as large as was planned: one request's copies always fit. Others' grows as copies need.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import numpy as np

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.protocols import StagedInputs

STAGING_ALIGNMENT_BYTES = 256
"""Copies begin at multiples of this."""
AHEAD_MIN_BYTES = 1 << 16
"""Copying less takes a few microseconds, and leaves the processor's caches as they are."""
_COPY_MAX_S = 10.0
"""What a copy into the memory may take before something is wrong."""


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


class CudaStagedInputs:
    """One request's inputs in a place of the memory below."""

    __slots__ = ("addresses", "order", "place", "reader", "sources")

    def __init__(self, place: int, sources: Sequence[np.ndarray], addresses: list[int]) -> None:
        self.place = place
        """Which; -1 once it was given back."""
        self.sources = sources
        self.addresses = addresses
        self.reader: object = None
        """The stream that copies from there, which is through when it has passed `order`."""
        self.order = 0


class CudaStagingAhead:
    """Memory for the inputs of requests that wait: whoever hands one in copies, no launch does.

    As many places as were planned, each for one request. The stream that a request goes to finds
    its inputs here by their arrays, and the place is in use until it has passed their copies.
    """

    def __init__(self) -> None:
        self._address = 0
        self._memory = np.empty(0, np.uint8)
        self._place_bytes = 0
        self._places = 0
        # Whoever holds a place may copy into the memory, and nobody else.
        self._free: SimpleQueue[int] = SimpleQueue()
        self._served: Sequence[CudaStagedInputs] = ()
        self._under_way: list[CudaStagedInputs] = []

    def reserve(self, place_bytes: int, places: int) -> None:
        """Have so many places, from now on; no copy from the memory is under way."""
        assert not self._under_way, "staging memory is exchanged while it is in use"
        self.close()
        if not place_bytes:
            return
        assert place_bytes == _aligned(place_bytes), f"places of {place_bytes} bytes"
        self._address = driver.allocate_pinned(places * place_bytes)
        self._memory = pinned_bytes(self._address, places * place_bytes)
        self._place_bytes, self._places = place_bytes, places
        for place in range(places):
            self._free.put(place)

    def stage(self, sources: Sequence[np.ndarray]) -> CudaStagedInputs | None:
        """Copy what `DeviceStream.copy_in` will be given; None if there is no room, or need."""
        if self._free.empty():
            return None
        sizes = [_aligned(source.nbytes) for source in sources]
        size_bytes = sum(sizes)
        if not AHEAD_MIN_BYTES <= size_bytes <= self._place_bytes:
            return None
        try:
            place = self._free.get_nowait()
        except Empty:
            return None
        staged, is_filled = CudaStagedInputs(place, sources, []), False
        try:
            # Places may have become smaller meanwhile; now that one is held, they can not.
            if size_bytes <= self._place_bytes:
                self._fill(staged, sizes)
                is_filled = True
        finally:
            if not is_filled:
                self.give_back(staged)
        return staged if is_filled else None

    def _fill(self, staged: CudaStagedInputs, sizes: Sequence[int]) -> None:
        start = staged.place * self._place_bytes
        for source, size_bytes in zip(staged.sources, sizes, strict=True):
            end = start + source.nbytes
            np.copyto(self._memory[start:end], source.reshape(-1).view(np.uint8))
            staged.addresses.append(self._address + start)
            start += size_bytes

    def serve(self, staged: Sequence[StagedInputs]) -> None:
        """Find these arrays, and no others, until the next call."""
        self._served = [_own(each) for each in staged]

    def find(self, source: np.ndarray, reader: object, order: int) -> int:
        """Return where an array's bytes are staged, for `reader` to pass at `order`; 0: nowhere."""
        for staged in self._served:
            for array, address in zip(staged.sources, staged.addresses, strict=True):
                if array is source:
                    assert staged.place >= 0, "inputs were given back and are copied"
                    if staged.reader is None:
                        self._under_way.append(staged)
                    staged.reader, staged.order = reader, order
                    return address
        return 0

    def retire(self, reader: object, order: int) -> None:
        """Have places back whose reader has passed their copies."""
        if not self._under_way:
            return
        for staged in self._under_way[:]:
            if staged.reader is reader and order >= staged.order:
                self._under_way.remove(staged)
                self._free_place(staged)

    def give_back(self, staged: StagedInputs) -> None:
        """Have a place back that nothing is copied from; of others, `retire` does."""
        if _own(staged).reader is None:
            self._free_place(_own(staged))

    def _free_place(self, staged: CudaStagedInputs) -> None:
        if staged.place >= 0:
            place, staged.place = staged.place, -1
            self._free.put(place)

    def close(self) -> None:
        """Give the memory back, once nobody copies into it any more; idempotent."""
        self._served = ()
        # What a broken context never got to is not waited for.
        while self._places > len(self._under_way):
            try:
                self._free.get(timeout=_COPY_MAX_S)
            except Empty:
                raise AssertionError(f"{self._places} places are not given back") from None
            self._places -= 1
        self._under_way.clear()
        self._places = self._place_bytes = 0
        self._memory = np.empty(0, np.uint8)
        if self._address:
            driver.free_pinned(self._address)
            self._address = 0


def _own(staged: StagedInputs) -> CudaStagedInputs:
    assert isinstance(staged, CudaStagedInputs), f"{staged!r} belongs to another device"
    return staged


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // STAGING_ALIGNMENT_BYTES) * STAGING_ALIGNMENT_BYTES


def pinned_bytes(address: int, size_bytes: int) -> np.ndarray:
    """Return page-locked memory as uint8[size_bytes]; it does not keep the memory."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))
