"""A planned tensor's place in a pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from aegis_pipe.device.protocols import Region
from aegis_pipe.units import format_size


class DeviceBuffer:
    """Owns one place in a `DeviceMemoryPool`; made by `DeviceMemoryPool.place`.

    The memory itself belongs to the pool: closing a buffer gives its place back on the record,
    it does not free memory, and another buffer may share the same bytes at other times.
    """

    def __init__(
        self,
        region: Region,
        *,
        tensor_id: str,
        model: str,
        offset_bytes: int,
        on_close: Callable[[DeviceBuffer], None],
    ) -> None:
        self._region = region
        self._on_close = on_close
        self._closed = False
        self.tensor_id = tensor_id
        self.model = model
        self.offset_bytes = offset_bytes

    @property
    def region(self) -> Region:
        """The bytes, opaque outside the device; not to be used once closed."""
        assert not self._closed, f"buffer `{self.tensor_id}` is used after it was closed"
        return self._region

    @property
    def size_bytes(self) -> int:
        """Length in bytes."""
        return self._region.size_bytes

    def close(self) -> None:
        """Give the place back; idempotent."""
        if not self._closed:
            self._closed = True
            self._on_close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return (
            f"<DeviceBuffer `{self.tensor_id}` of `{self.model}`: "
            f"{format_size(self.size_bytes)} at {self.offset_bytes}{state}>"
        )
