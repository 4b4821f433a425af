"""Cuts elementwise work into tiles that stay in cache, so that scratch stays small."""

from __future__ import annotations

import itertools
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
    views = _merge_axes([np.broadcast_to(array, shape) for array in arrays])
    merged = views[0].shape
    axis, inner = len(merged), 1
    while axis > 0 and inner * merged[axis - 1] <= limit:
        axis -= 1
        inner *= merged[axis]
    if axis == 0:
        yield tuple(_like(view, array) for view, array in zip(views, arrays, strict=True))
        return
    step = max(limit // inner, 1)
    starts = range(0, merged[axis - 1], step)
    for *outer, start in itertools.product(*(range(n) for n in merged[: axis - 1]), starts):
        index = (*outer, slice(start, start + step))
        yield tuple(_like(v[index], a) for v, a in zip(views, arrays, strict=True))


def _like(view: np.ndarray, array: np.ndarray) -> np.ndarray:
    # `broadcast_to` made the view read-only; it may be written to exactly where its array may.
    if array.flags.writeable:
        view = as_strided(view, writeable=True)
        view.flags.writeable = True
    return view


def _merge_axes(views: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Join neighbouring axes that every view walks through evenly; drop those of size 1."""
    shape: list[int] = []
    strides: list[tuple[int, ...]] = []
    for axis, size in enumerate(views[0].shape):
        steps = tuple(view.strides[axis] for view in views)
        if size == 1:
            continue
        if shape and all(b == a * size for b, a in zip(strides[-1], steps, strict=True)):
            shape[-1] *= size
            strides[-1] = steps
        else:
            shape.append(size)
            strides.append(steps)
    return [
        as_strided(view, shape, [steps[i] for steps in strides]) for i, view in enumerate(views)
    ]
