"""Cuts elementwise work into tiles that stay in cache, so that scratch stays small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.lib.stride_tricks import as_strided

TILE = 16 << 10
"""Elements a tile: a handful of float32 tiles fit into a core's second-level cache."""


def tile_size(shape: Sequence[int], limit: int = TILE) -> int:
    """Return the elements of the largest tile `tile_views` makes of results of this shape."""
    return min(int(np.prod(shape, dtype=np.int64)), limit)


def tile_views(
    shape: Sequence[int], arrays: Sequence[np.ndarray], limit: int = TILE
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield matching views of all arrays, broadcast to `shape`, of at most `limit` elements.

    Together they cover the shape once, in row-major order; views of C-contiguous arrays of that
    very shape are C-contiguous. Yields nothing for an empty shape.
    """
    if 0 in shape:
        return
    views = _merge_axes(shape, arrays)
    merged = views[0].shape
    axis, inner = len(merged), 1
    while axis > 0 and inner * merged[axis - 1] <= limit:
        axis -= 1
        inner *= merged[axis]
    if axis == 0:
        yield tuple(views)
        return
    step = max(limit // inner, 1)
    starts = range(0, merged[axis - 1], step)
    for outer in np.ndindex(merged[: axis - 1]):
        rows = [view[outer] for view in views]
        yield from (tuple(row[start : start + step] for row in rows) for start in starts)


def _merge_axes(shape: Sequence[int], arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Broadcast, join neighbouring axes that every array walks through evenly, drop those of 1."""
    merged: list[int] = []
    strides: list[tuple[int, ...]] = []
    steps_of_axis = zip(*(np.broadcast_to(array, shape).strides for array in arrays), strict=True)
    for size, steps in zip(shape, steps_of_axis, strict=True):
        if size == 1:
            continue
        if merged and all(far == near * size for far, near in zip(strides[-1], steps, strict=True)):
            merged[-1] *= size
            strides[-1] = steps
        else:
            merged.append(size)
            strides.append(steps)
    return [
        _strided(array, merged, [steps[i] for steps in strides]) for i, array in enumerate(arrays)
    ]


def _strided(array: np.ndarray, shape: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    # `as_strided` goes through a description of the dtype that one-byte floats have not.
    if array.dtype.itemsize > 1:
        return as_strided(array, shape, strides)
    return as_strided(array.view(np.uint8), shape, strides).view(array.dtype)
