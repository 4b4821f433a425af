"""Device memory as the CUDA device hands it out; only this folder sees the addresses."""

from __future__ import annotations

import warnings

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.captured import run
from aegis_pipe.device.protocols import Region

ALIGNMENT_BYTES = 256
"""What the driver's allocations have, and what every vector access and library wants."""


class CudaRegion:
    """Device memory, or a view into it. Make owners with `reserve`, views with `view`."""

    __slots__ = ("__weakref__", "_address", "_is_open", "_owner", "_size_bytes")

    def __init__(self, address: int, size_bytes: int, owner: CudaRegion | None) -> None:
        self._address = address
        self._size_bytes = size_bytes
        self._owner = owner
        self._is_open = True

    @classmethod
    def reserve(cls, size_bytes: int, stream: int) -> CudaRegion:
        """Make an owner of memory, zeroed on a stream; PermanentError if there is not that much."""
        if not size_bytes:
            return cls(0, 0, None)
        address = driver.allocate(size_bytes)
        try:
            run(stream, lambda: driver.enqueue_fill(address, 0, size_bytes, stream))
        except BaseException:
            driver.free(address)
            raise
        return cls(address, size_bytes, None)

    @property
    def size_bytes(self) -> int:
        """Length in bytes."""
        return self._size_bytes

    def view(self, offset_bytes: int, size_bytes: int) -> CudaRegion:
        """Return a part of this region; out of bounds asserts."""
        end = offset_bytes + size_bytes
        assert offset_bytes >= 0, f"view starts before {self!r}: {offset_bytes}"
        assert size_bytes >= 0, f"view of negative size: {size_bytes}"
        assert end <= self._size_bytes, f"view ends at {end}, beyond {self!r}"
        return CudaRegion(self._address + offset_bytes, size_bytes, self._owner or self)

    def close(self) -> None:
        """Give the memory back, if this region owns it; idempotent."""
        if self._is_open and self._owner is None and self._size_bytes:
            driver.free(self._address)
        self._is_open = False

    def __repr__(self) -> str:
        kind = "view" if self._owner else "owner"
        state = "open" if self._is_usable else "closed"
        return f"<CudaRegion {kind}, {self._size_bytes} bytes, {state}>"

    @property
    def _is_usable(self) -> bool:
        return self._is_open and (self._owner is None or self._owner._is_open)

    def __del__(self) -> None:
        if self._owner is None and getattr(self, "_is_open", False):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)


def address_of(region: Region) -> int:
    """Return the device address of an open CUDA region."""
    assert isinstance(region, CudaRegion), f"{region!r} belongs to another device"
    assert region._is_usable, f"{region!r} is used after it was closed"
    return region._address
