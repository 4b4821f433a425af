"""Sliding windows: strides, dilations and pads of convolutions and pools, resolved.

Canonical form of every windowed operator (all tuples run over the spatial dimensions):
`kernel_shape`, `strides`, `dilations` (one int each) and `pads` (all begins, then all ends);
`auto_pad` and `ceil_mode` are resolved into pads and the output's shape.
"""

from __future__ import annotations

from collections.abc import Sequence

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import OperatorContext
from aegis_pipe.kernel import Attribute
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorSpec


@record(eq=True)
class Windows:
    """Where the windows of an operator lie; one entry a spatial dimension."""

    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads_begin: tuple[int, ...]
    pads_end: tuple[int, ...]

    @property
    def extents(self) -> tuple[int, ...]:
        """Elements from a window's first tap to its last."""
        return tuple(
            [(k - 1) * d + 1 for k, d in zip(self.kernel_shape, self.dilations, strict=True)]
        )

    def attributes(self) -> dict[str, Attribute]:
        """Return the canonical attributes."""
        return {
            "kernel_shape": self.kernel_shape,
            "strides": self.strides,
            "dilations": self.dilations,
            "pads": self.pads_begin + self.pads_end,
        }

    def output_shape(self, spatial: Sequence[int], *, ceil_mode: bool = False) -> tuple[int, ...]:
        """Return the number of whole windows along each dimension.

        With `ceil_mode` a last, partial window counts if it starts within the input or the
        padding before it.
        """
        return tuple(
            [
                _window_count(size + begin, extent, stride, end, ceil_mode)
                for size, extent, stride, begin, end in zip(
                    spatial, self.extents, self.strides, self.pads_begin, self.pads_end, strict=True
                )
            ]
        )

    def missing(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Return how many elements the first window reaches beyond input and pads, or 0."""
        return tuple(
            [
                max(0, extent - size - begin - end)
                for size, extent, begin, end in zip(
                    spatial, self.extents, self.pads_begin, self.pads_end, strict=True
                )
            ]
        )


def _window_count(start_room: int, extent: int, stride: int, end: int, ceil_mode: bool) -> int:
    """Count windows; `start_room` is where windows may start: padding before, and the input."""
    room = start_room + end - extent
    count = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (count - 1) * stride >= start_room:
        count -= 1
    return max(count, 0)


def require_windows(context: OperatorContext, data: TensorSpec, counts: Sequence[int]) -> None:
    """Raise InvalidModelError if not one window fits into an operand that is not empty."""
    if 0 in counts and data.element_count:
        error = reading.invalid(context, f"its windows are larger than its input {data}")
        error.hint = "give the model larger inputs (`shapes`)"
        raise error


def read_windows(
    context: OperatorContext, spatial: Sequence[int], kernel_shape: Sequence[int]
) -> Windows:
    """Read a windowed operator's attributes for an input with these spatial dimensions."""
    rank = len(spatial)
    strides = reading.integers(context, "strides", (1,) * rank)
    dilations = reading.integers(context, "dilations", (1,) * rank)
    pads = reading.integers(context, "pads", (0,) * (2 * rank))
    fits = len(kernel_shape) == len(strides) == len(dilations) == rank and len(pads) == 2 * rank
    if not fits:
        raise reading.invalid(context, f"strides, dilations or pads do not fit {rank} dimensions")
    if min((*strides, *dilations, *kernel_shape), default=1) <= 0:
        raise reading.invalid(context, "kernel_shape, strides and dilations have to be positive")
    windows = Windows(tuple(kernel_shape), strides, dilations, pads[:rank], pads[rank:])
    return _resolve_auto_pad(context, spatial, windows)


def _resolve_auto_pad(
    context: OperatorContext, spatial: Sequence[int], windows: Windows
) -> Windows:
    auto_pad = reading.text(context, "auto_pad", "NOTSET")
    if auto_pad == "NOTSET":
        return windows
    totals = [0] * len(spatial)
    if auto_pad != "VALID":
        totals = [
            max(0, (-(-size // stride) - 1) * stride + extent - size)
            for size, stride, extent in zip(spatial, windows.strides, windows.extents, strict=True)
        ]
    return with_total_pads(windows, totals, more_at_end=auto_pad != "SAME_LOWER")


def with_total_pads(windows: Windows, totals: Sequence[int], *, more_at_end: bool) -> Windows:
    """Return the windows with these total pads, split in halves."""
    small = tuple([total // 2 for total in totals])
    large = tuple([total - half for total, half in zip(totals, small, strict=True)])
    begin, end = (small, large) if more_at_end else (large, small)
    return Windows(windows.kernel_shape, windows.strides, windows.dilations, begin, end)
