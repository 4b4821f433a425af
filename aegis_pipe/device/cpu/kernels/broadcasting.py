"""How operands walk through the result they broadcast to."""

from __future__ import annotations

from collections.abc import Sequence

from aegis_pipe.record import record

RANK = 4
"""Dimensions that the compiled kernels loop over; neighbours walked through alike are merged."""


@record(eq=True)
class Broadcast:
    """The result's shape and both operands' strides in elements, each of rank `RANK`."""

    shape: tuple[int, ...]
    a_strides: tuple[int, ...]
    b_strides: tuple[int, ...]


def _strides(shape: Sequence[int], result: Sequence[int]) -> list[int]:
    padded = (1,) * (len(result) - len(shape)) + tuple(shape)
    strides, step = [], 1
    for size, count in zip(reversed(padded), reversed(result), strict=True):
        strides.append(step if size == count and count > 1 else 0)
        step *= size
    return strides[::-1]


def walk(
    result: Sequence[int], shapes: Sequence[Sequence[int]], rank: int = RANK
) -> tuple[tuple[int, ...], ...] | None:
    """Return the result's shape and each operand's strides in elements, all of the same `rank`.

    Dimensions that all operands walk through alike are merged; None if more than `rank` stay, or
    an operand takes longer steps than 1 along the last one.
    """
    merged: list[tuple[int, ...]] = []
    for size, *strides in zip(result, *(_strides(shape, result) for shape in shapes), strict=True):
        if size == 1:
            continue
        if merged and merged[-1][1:] == tuple([stride * size for stride in strides]):
            size *= merged.pop()[0]
        merged.append((size, *strides))
    if len(merged) > rank:
        return None
    merged = [(1, *(0 for _ in shapes))] * (rank - len(merged)) + merged
    return None if max(merged[-1][1:]) > 1 else tuple(zip(*merged, strict=True))


def broadcast(result: Sequence[int], a: Sequence[int], b: Sequence[int]) -> Broadcast | None:
    """Return how two operands walk; None as in `walk`."""
    found = walk(result, (a, b))
    return None if found is None else Broadcast(*found)
