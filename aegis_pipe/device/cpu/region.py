"""Host memory as the CPU device hands it out; only this folder sees the bytes."""

from __future__ import annotations

import warnings

import numpy as np

from aegis_pipe.device.protocols import Region

ALIGNMENT_BYTES = 64
"""A cache line, and the widest vector register."""
_PAGE_BYTES = 4096
"""No page of any machine is smaller."""


class CpuRegion:
    """Aligned host memory, or a view into it. Make owners with `reserve`, views with `view`."""

    __slots__ = ("__weakref__", "_memory", "_owner", "_size_bytes")

    def __init__(self, memory: np.ndarray, owner: CpuRegion | None) -> None:
        self._memory: np.ndarray | None = memory
        self._owner = owner
        self._size_bytes = memory.size

    @classmethod
    def reserve(cls, size_bytes: int) -> CpuRegion:
        """Make an owner of zeroed memory; MemoryError if the machine has not that much."""
        block = np.zeros(size_bytes + ALIGNMENT_BYTES, np.uint8)
        start = -block.ctypes.data % ALIGNMENT_BYTES
        memory = block[start : start + size_bytes]
        # Touched, not lazily mapped: missing pages show now, and no request waits for one.
        memory[::_PAGE_BYTES] = 0
        memory[-1:] = 0
        return cls(memory, None)

    @property
    def size_bytes(self) -> int:
        """Length in bytes."""
        return self._size_bytes

    def view(self, offset_bytes: int, size_bytes: int) -> CpuRegion:
        """Return a part of this region; out of bounds asserts."""
        end = offset_bytes + size_bytes
        assert offset_bytes >= 0, f"view starts before {self!r}: {offset_bytes}"
        assert size_bytes >= 0, f"view of negative size: {size_bytes}"
        assert end <= self._size_bytes, f"view ends at {end}, beyond {self!r}"
        return CpuRegion(host_bytes(self)[offset_bytes:end], self._owner or self)

    def close(self) -> None:
        """Give the memory back, if this region owns it; idempotent."""
        self._memory = None

    def __repr__(self) -> str:
        kind = "view" if self._owner else "owner"
        state = "closed" if self._is_closed else "open"
        return f"<CpuRegion {kind}, {self._size_bytes} bytes, {state}>"

    @property
    def _is_closed(self) -> bool:
        return self._memory is None or (self._owner is not None and self._owner._is_closed)

    def __del__(self) -> None:
        if self._owner is None and self._memory is not None:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)


def host_bytes(region: Region) -> np.ndarray:
    """Return the bytes of an open CPU region as uint8[size_bytes]."""
    assert isinstance(region, CpuRegion), f"{region!r} belongs to another device"
    assert not region._is_closed, f"{region!r} is used after it was closed"
    assert region._memory is not None
    return region._memory
