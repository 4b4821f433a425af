"""How two operands walk through the result they broadcast to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RANK = 4
"""Dimensions that the compiled kernels loop over; neighbours walked through alike are merged."""


@dataclass(frozen=True, slots=True)
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


def broadcast(result: Sequence[int], a: Sequence[int], b: Sequence[int]) -> Broadcast | None:
    """Merge dimensions that both operands walk through alike; None if more than `RANK` stay."""
    merged: list[tuple[int, int, int]] = []
    for size, a_stride, b_stride in zip(
        result, _strides(a, result), _strides(b, result), strict=True
    ):
        if size == 1:
            continue
        if merged and merged[-1][1:] == (a_stride * size, b_stride * size):
            size *= merged.pop()[0]
        merged.append((size, a_stride, b_stride))
    if len(merged) > RANK:
        return None
    merged = [(1, 0, 0)] * (RANK - len(merged)) + merged
    if max(merged[-1][1:]) > 1:
        return None
    shape, a_strides, b_strides = zip(*merged, strict=True)
    return Broadcast(shape, a_strides, b_strides)
