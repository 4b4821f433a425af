"""How an operand of attention holds its heads, for the kernels of every device."""

from __future__ import annotations

from collections.abc import Sequence

from aegis_pipe.device.requests import integers
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.record import record


@record(eq=True)
class Heads:
    """[batch, heads, length, size] in a dense tensor of any shape; the elements of a row adjoin."""

    batch: int
    heads: int
    length: int
    size: int
    strides: tuple[int, int, int]
    """Of batch, head and position, in elements."""
    offset: int = 0
    """Of the first element."""

    @classmethod
    def of(cls, shape: Sequence[int], heads: int) -> Heads:
        """Read a shape: [batch, heads, length, size], or [batch, length, heads * size]."""
        if len(shape) == 4:
            batch, heads, length, size = shape
            return cls(batch, heads, length, size, (heads * length * size, length * size, size))
        batch, length, width = shape
        size = width // heads
        return cls(batch, heads, length, size, (length * width, size, width))

    @classmethod
    def of_view(cls, request: KernelRequest, name: str) -> Heads:
        """Read an attribute of `aegis.StridedAttention`: extents, strides, offset."""
        batch, heads, length, size, *strides, offset = integers(request, name)
        of_batch, of_head, of_position = strides
        return cls(batch, heads, length, size, (of_batch, of_head, of_position), offset)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The four extents."""
        return self.batch, self.heads, self.length, self.size
