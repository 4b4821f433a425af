"""How a convolution on tensor cores may be shared out among blocks, and what is worth trying."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Protocol

from aegis_pipe.device.cuda.kernels.source import blocks_for

DEPTH = 64
"""Elements of a line of a tile: 128 bytes."""
WARPS = {
    (32, 64): (1, 4),
    (64, 32): (2, 2),
    (64, 64): (2, 2),
    (64, 128): (2, 2),
    (128, 64): (4, 1),
}
"""Tiles of the result, and how many warps share its rows and its columns."""
SPLITS = (1, 2, 4, 8)
"""Blocks to a cluster; eight is what every GPU has."""
SHARED_BYTES_MAX = 200 << 10
_AHEAD_MAX = 10
"""So many tiles are on their way at most."""
_TILES_MAX = 4
"""Results of more tiles of 64 x 64 a multiprocessor are left to the libraries."""
_MULTIPLIED_MAX = 4 << 20
"""Nor are those with more multiplications a multiprocessor: of ResNet-50's with eight images each
took 1.2 to 2.4 times as long as the libraries."""
TRIED_MAX = 4


class TiledProduct(Protocol):
    """What is shared out: a product whose depth is a number of steps."""

    @property
    def rows(self) -> int:
        """Of the result."""

    @property
    def filters(self) -> int:
        """Columns of the result."""

    @property
    def steps(self) -> int:
        """Lines of 128 bytes that the depth is."""


@dataclass(frozen=True, slots=True)
class TensorConvolution:
    """A convolution of channels-last images."""

    dtype: str
    batch: int
    space: tuple[int, ...]
    channels: int
    filters: int
    result: tuple[int, ...]
    window: tuple[int, ...] = (1, 1)
    strides: tuple[int, ...] = (1, 1)
    dilations: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    bias: bool = False
    residual: bool = False
    activation: str = "a"
    """C expression of the sum `a`."""

    @property
    def rows(self) -> int:
        """Of the result."""
        return self.batch * math.prod(self.result)

    @property
    def multiplied(self) -> int:
        """Multiplications of elements."""
        return self.rows * self.filters * self.taps * self.channels

    @property
    def taps(self) -> int:
        """Pixels of a window."""
        return math.prod(self.window)

    @property
    def steps(self) -> int:
        """Lines of the depth."""
        return self.taps * -(-self.channels // DEPTH)

    @property
    def is_dense(self) -> bool:
        """Whether rows of the left matrix are the pixels as they lie."""
        return self.taps == 1 and set(self.strides) == {1} and not any(self.pads)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is shared out."""

    rows: int
    columns: int
    splits: int

    @property
    def warps(self) -> tuple[int, int]:
        """Down and across a tile."""
        return WARPS[self.rows, self.columns]

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * math.prod(self.warps)

    @property
    def line_bytes(self) -> int:
        """A step's tiles of both matrices."""
        return (self.rows + self.columns) * DEPTH * 2

    def grid(self, p: TiledProduct) -> tuple[int, int, int]:
        """Blocks; those of a cluster are side by side."""
        return (
            self.splits,
            blocks_for(p.filters, self.columns),
            blocks_for(p.rows, self.rows),
        )

    def steps(self, p: TiledProduct) -> int:
        """Return how many steps a block has at most."""
        return -(-p.steps // self.splits)

    def ahead(self, p: TiledProduct) -> int:
        """Return how many steps are loaded before the first is multiplied."""
        fit = SHARED_BYTES_MAX // self.line_bytes
        steps = self.steps(p)
        return steps if steps <= min(fit, _AHEAD_MAX) else min(fit - 1, _AHEAD_MAX, 6)

    def shared_bytes(self, p: TiledProduct) -> int:
        """Return the size of the ring of tiles, and of the partial sums that follow it."""
        lines = min(self.steps(p), self.ahead(p) + 1)
        return max(lines * self.line_bytes, self.rows * (self.columns + 4) * 4)

    def cost(self, p: TiledProduct, multiprocessors: int) -> float:
        """Return a rough time in ns, to leave out what can not be fastest.

        Of ResNet-50's convolutions of one image, of which six tilings each were measured on an
        H100, it has the fastest among the first four for all but one.
        """
        waves = -(-math.prod(self.grid(p)) // multiprocessors)
        at_once = max(1, min(SHARED_BYTES_MAX // self.shared_bytes(p), 1024 // self.threads))
        moved = self.steps(p) * self.line_bytes / 30
        multiplied = self.steps(p) * self.rows * self.columns * DEPTH / 1000
        meeting = (800 + 120 * self.splits) * (self.splits > 1)
        return waves * max(moved, multiplied) + 200 * -(-waves // at_once) + meeting


@lru_cache(maxsize=1_024)
def tilings(p: TensorConvolution, multiprocessors: int) -> tuple[Tiling, ...]:
    """Return what is worth trying, best first; nothing for large results.

    Whoever offers, prepares, binds or leaves a layer asks for it.
    """
    if blocks_for(p.rows, 64) * blocks_for(p.filters, 64) > _TILES_MAX * multiprocessors:
        return ()
    if p.multiplied > _MULTIPLIED_MAX * multiprocessors:
        return ()
    return ranked(p, multiprocessors, SPLITS)


def ranked(p: TiledProduct, multiprocessors: int, splits: Sequence[int]) -> tuple[Tiling, ...]:
    """Return those that may be fastest, by what they cost, with so many blocks to a cluster."""
    found = [
        Tiling(*tile, blocks)
        for tile, blocks in product(WARPS, splits)
        if blocks <= p.steps and (tile[0] <= 64 or p.rows > 64)
    ]
    found = [each for each in found if each.shared_bytes(p) <= SHARED_BYTES_MAX]
    return tuple(sorted(found, key=lambda each: each.cost(p, multiprocessors))[:TRIED_MAX])
