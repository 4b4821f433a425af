"""One device allocation, made at start-up, with a planned place for every tensor."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Self

from aegis_pipe.clock import Clock
from aegis_pipe.device.protocols import DeviceContext, Region
from aegis_pipe.errors import PermanentError
from aegis_pipe.events import EventHub, MemoryAllocated, MemoryReleased
from aegis_pipe.memory.buffer import DeviceBuffer
from aegis_pipe.units import format_size


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A pool at one moment."""

    reserved_bytes: int
    """Device memory held; 0 before `reserve` and after `close`."""
    placed_bytes: int
    """Sum of the open buffers' sizes; above `reserved_bytes` where buffers share bytes."""
    peak_bytes: int
    """Largest end of any buffer placed so far."""
    placements: int
    """Open buffers."""
    allocations_since_seal: int
    """Allocations of the whole device since `seal`, which must stay 0; 0 before."""


class DeviceMemoryPool:
    """Reserves memory once, hands out planned places, and refuses to grow after `seal`.

    Use from one thread at a time. It does not plan and does not look for free space: offsets come
    from an `AllocationPlan` that was checked.
    """

    def __init__(
        self, context: DeviceContext, name: str, size_bytes: int, *, hub: EventHub, clock: Clock
    ) -> None:
        assert size_bytes >= 0, f"pool `{name}` of {size_bytes} bytes"
        self.name = name
        self.size_bytes = size_bytes
        self._context = context
        self._hub = hub
        self._clock = clock
        self._region: Region | None = None
        self._buffers: dict[int, DeviceBuffer] = {}
        self._peak_bytes = 0
        self._count_at_seal: int | None = None
        self._closed = False

    @property
    def sealed(self) -> bool:
        """Whether start-up is over."""
        return self._count_at_seal is not None

    def reserve(self) -> None:
        """Allocate the pool's memory, once.

        Raises a PermanentError if the device has not that much, and after `seal` or `close`.
        """
        self._refuse_growth("reserve memory")
        assert self._region is None, f"pool `{self.name}` is reserved twice"
        # An empty pool still has a place for tensors without bytes.
        self._region = self._context.allocate(max(self.size_bytes, 1))

    def place(self, tensor_id: str, offset_bytes: int, size_bytes: int, model: str) -> DeviceBuffer:
        """Hand out a tensor's planned place; raises PermanentError after `seal` or `close`."""
        self._refuse_growth(f"place `{tensor_id}`")
        assert self._region is not None, f"pool `{self.name}` is not reserved"
        end = offset_bytes + size_bytes
        assert offset_bytes >= 0, f"`{tensor_id}` starts before pool `{self.name}`"
        assert end <= self.size_bytes, f"`{tensor_id}` ends at {end}, pool at {self.size_bytes}"
        buffer = DeviceBuffer(
            self._region.view(offset_bytes, size_bytes),
            tensor_id=tensor_id,
            model=model,
            offset_bytes=offset_bytes,
            on_close=self._release,
        )
        self._buffers[id(buffer)] = buffer
        self._peak_bytes = max(self._peak_bytes, end)
        if self._hub.enabled:
            self._hub.emit(MemoryAllocated(self._clock.now_ns(), *self._record(buffer)))
        return buffer

    def seal(self) -> None:
        """End start-up: from now on nothing is reserved or placed; idempotent."""
        if not self.sealed:
            self._count_at_seal = self._context.allocation_count

    def statistics(self) -> PoolStatistics:
        """Return the pool's figures at this moment."""
        since = self._count_at_seal
        return PoolStatistics(
            reserved_bytes=self.size_bytes if self._region is not None else 0,
            placed_bytes=sum(buffer.size_bytes for buffer in self._buffers.values()),
            peak_bytes=self._peak_bytes,
            placements=len(self._buffers),
            allocations_since_seal=0 if since is None else self._context.allocation_count - since,
        )

    def close(self) -> None:
        """Close all buffers, the latest first, and free the memory; idempotent."""
        for buffer in reversed(list(self._buffers.values())):
            buffer.close()
        if self._region is not None:
            self._region.close()
            self._region = None
        self._closed = True

    def _refuse_growth(self, what: str) -> None:
        if self._closed:
            raise PermanentError(
                f"pool `{self.name}` is closed and can not {what}", hint="open the pipeline again"
            )
        if self.sealed:
            raise PermanentError(
                f"pool `{self.name}` is sealed and can not {what}: "
                "all memory is planned before start-up ends",
                hint="declare the model or tensor in the manifest, so that it is planned at load",
            )

    def _release(self, buffer: DeviceBuffer) -> None:
        del self._buffers[id(buffer)]
        if self._hub.enabled:
            self._hub.emit(MemoryReleased(self._clock.now_ns(), *self._record(buffer)))

    def _record(self, buffer: DeviceBuffer) -> tuple[str, str, str, int, int]:
        """Return what both memory events say: pool, model, tensor, offset, size."""
        return (
            self.name,
            buffer.model,
            buffer.tensor_id,
            buffer.offset_bytes,
            buffer.size_bytes,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Absent if __init__ itself failed.
        if getattr(self, "_region", None) is not None:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        now = self.statistics()
        state = "closed" if self._closed else "sealed" if self.sealed else "open"
        return (
            f"<DeviceMemoryPool `{self.name}`: {format_size(now.reserved_bytes)} reserved, "
            f"{now.placements} buffers of {format_size(now.placed_bytes)} up to "
            f"{format_size(now.peak_bytes)}, {state}>"
        )
