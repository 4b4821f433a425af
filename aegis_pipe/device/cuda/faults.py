"""What kernels refuse: each call that can fail has a word of host memory that it writes to.

The first kernel of a graph to find bad data (an index out of range) writes its reason; `check` of
the stream that ran the graph reads that graph's words and raises a KernelError naming the node. Two
requests on a stream never have one graph under way twice, so that words tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.staging import pinned_bytes
from aegis_pipe.errors import KernelError

_WORDS_PER_BLOCK = 1024

INDEX_OUT_OF_RANGE = 1
_REASONS = {INDEX_OUT_OF_RANGE: "an index is out of range"}


@dataclass(frozen=True, slots=True, eq=False)
class FaultWord:
    """Where one call writes what is wrong with its data."""

    address: int
    cell: np.ndarray
    """int32[1]"""
    node: str
    kernel: str


class FaultWords:
    """Hands out the words, and knows which ones the graphs launched on each stream have."""

    def __init__(self) -> None:
        self._blocks: list[int] = []
        self._free = 0
        self._cells = np.empty(0, np.int32)
        self._launched: dict[int, dict[int, tuple[int, tuple[FaultWord, ...]]]] = {}
        """Per stream its graphs, with the position of their latest launch there."""

    def word(self, node: str, kernel: str) -> FaultWord:
        """Make a word for a call."""
        if self._free == self._cells.size:
            self._blocks.append(driver.allocate_pinned(4 * _WORDS_PER_BLOCK))
            self._cells = pinned_bytes(self._blocks[-1], 4 * _WORDS_PER_BLOCK).view(np.int32)
            self._cells.fill(0)
            self._free = 0
        position = self._free
        self._free += 1
        cell = self._cells[position : position + 1]
        return FaultWord(self._blocks[-1] + 4 * position, cell, node, kernel)

    def launched(self, stream: int, graph: int, words: tuple[FaultWord, ...], order: int) -> None:
        """Note that a graph with these words runs at a position of a stream."""
        self._launched.setdefault(stream, {})[graph] = (order, words)

    def forget(self, graph: int) -> None:
        """Note that a graph is gone."""
        for graphs in self._launched.values():
            graphs.pop(graph, None)

    def take(self, stream: int, until: int | None = None) -> KernelError | None:
        """Return the first fault of a stream's graphs, up to a position, and clear those faults."""
        graphs = self._launched.get(stream)
        if not graphs:
            return None
        found: FaultWord | None = None
        reason = 0
        for graph, (order, words) in list(graphs.items()):
            if until is not None:
                if order > until:
                    continue
                # Looked at for the last time, until it is launched again: what a completion costs
                # does not grow with the number of models.
                del graphs[graph]
            for word in words:
                if word.cell[0]:
                    if found is None:
                        found, reason = word, int(word.cell[0])
                    word.cell[0] = 0
        if found is None:
            return None
        return KernelError(
            _REASONS.get(reason, f"reason {reason}"),
            context=f"node `{found.node}`, kernel `{found.kernel}`",
            hint="check the values of the node's inputs; if they are valid, report this as a bug",
        )

    def close(self) -> None:
        """Give the memory back; idempotent."""
        while self._blocks:
            driver.free_pinned(self._blocks.pop())
        self._cells = np.empty(0, np.int32)
        self._free = 0
