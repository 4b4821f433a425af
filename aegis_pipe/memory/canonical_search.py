"""The canonical search: the same question as the exact search, asked in the cheapest way.

A plan that can not be pushed down is built from the bottom up, lowest offset first, and among equal
offsets by rank. So there is one way to build it, and everything that waits lies above what was
placed last. A candidate has to begin below every top that another waiting buffer could have, or
that one fitted under it. Every node asks only whether what waits at each moment still fits; parts
that do not meet in time are searched on their own.

It visits several times as many nodes a second as the exact search, but sees less at each: the two
find different plans quickly, and therefore take turns. What failed is blamed, and comes first in
later attempts, as there.

The method is that of Moffitt, "MiniMalloc" (ASPLOS 2023), with blame and restarts in place of its
fixed set of orders. `native/canonical_search.c` and `PythonCanonicalAttempt` are the same search,
node for node.
"""

from __future__ import annotations

from collections.abc import Sequence

from aegis_pipe.memory.exact_search import (
    Attempt,
    NativeAttempt,
    Outcome,
    PythonProblem,
    align,
    recursion_for,
)
from aegis_pipe.memory.native import LIBRARY
from aegis_pipe.memory.packing import Integers, PackingProblem

_FAR = (1 << 63) // 4

_Level = tuple[int, int]
"""Offset and rank of what was placed last: all that follows in its component comes after it."""


def make_canonical_attempt(problem: PackingProblem) -> Attempt:
    """Choose the compiled search, where there is one."""
    if LIBRARY is None:
        return PythonCanonicalAttempt(problem)
    return NativeAttempt(problem, LIBRARY.aegis_canonical_search)


class PythonCanonicalAttempt(PythonProblem):
    """The search without a compiler, about a hundred times slower."""

    def run(self, ranks: Integers, capacity_bytes: int, node_limit: int) -> Outcome:
        """See `Attempt.run`."""
        self._ranks: list[int] = ranks.tolist()
        self._capacity = capacity_bytes
        self._nodes_left = node_limit
        self._earliest = [0] * len(self._sizes)
        self._rest = [0] * len(self.moment_weights)
        everything = list(range(len(self._sizes)))
        for buffer in everything:
            for moment in range(self._firsts[buffer], self._ends[buffer]):
                self._rest[moment] += self._sizes[buffer]
        with recursion_for(len(everything)):
            return self._visit_parts(everything, (0, -1))

    def _visit_parts(self, left: Sequence[int], level: _Level) -> Outcome:
        """Visit what is left of a component, part by part: parts do not meet in time."""
        part: list[int] = []
        end = 0
        for buffer in left:
            if part and self._firsts[buffer] >= end:
                outcome = self._visit(part, level)
                if outcome is not Outcome.FOUND:
                    return outcome
                part, end = [], 0
            part.append(buffer)
            end = max(end, self._ends[buffer])
        return self._visit(part, level) if part else Outcome.FOUND

    def _visit(self, members: list[int], level: _Level) -> Outcome:
        self._nodes_left -= 1
        if self._nodes_left < 0:
            return Outcome.GAVE_UP
        start, end = self._firsts[members[0]], max(self._ends[each] for each in members)
        earliest = [self._earliest[each] for each in members]
        rest = self._rest[start:end]
        for offset, rank, buffer in self._candidates(members, level):
            if not self._leaves_room(buffer, offset, start, end):
                continue
            left = [each for each in members if each != buffer]
            self._place(buffer, offset, left)
            if not left or self._is_feasible(left, (offset, rank)):
                outcome = self._visit_parts(left, (offset, rank))
                if outcome is not Outcome.NONE:
                    return outcome
            # Parts that were finished before one failed have left their marks as well.
            self._rest[start:end] = rest
            for each, before in zip(members, earliest, strict=True):
                self._earliest[each] = before
        return Outcome.NONE

    def _candidates(self, members: list[int], level: _Level) -> list[tuple[int, int, int]]:
        """Return what can come next, lowest first, each with its offset and rank."""
        lowest_top = min(self._bound(each, level) + self._sizes[each] for each in members)
        found = ((self._earliest[each], self._ranks[each], each) for each in members)
        return sorted(each for each in found if each[:2] >= level and each[0] < lowest_top)

    def _bound(self, buffer: int, level: _Level) -> int:
        return align(max(self._earliest[buffer], level[0]), self._alignments[buffer])

    def _leaves_room(self, buffer: int, offset: int, start: int, end: int) -> bool:
        """Return whether everything that waits, this buffer with it, fits above its offset."""
        self.work += 1
        if offset + self._sizes[buffer] > self._capacity:
            return False
        return all(offset + self._rest[moment] <= self._capacity for moment in range(start, end))

    def _is_feasible(self, members: list[int], level: _Level) -> bool:
        """Return whether what waits at each moment fits above the lowest bound there."""
        floors = [_FAR] * len(self._rest)
        for buffer in members:
            first, end = self._firsts[buffer], self._ends[buffer]
            bound = self._bound(buffer, level)
            self.work += end - first
            if bound + self._sizes[buffer] > self._capacity:
                return False
            for moment in range(first, end):
                floors[moment] = min(floors[moment], bound)
        for moment in range(self._firsts[members[0]], max(self._ends[each] for each in members)):
            if self._rest[moment] and floors[moment] + self._rest[moment] > self._capacity:
                self.moment_weights[moment] += 1
                return False
        return True

    def _place(self, buffer: int, offset: int, left: list[int]) -> None:
        first, end, top = self._firsts[buffer], self._ends[buffer], offset + self._sizes[buffer]
        self.offsets[buffer] = offset
        for moment in range(first, end):
            self._rest[moment] -= self._sizes[buffer]
        for each in left:
            if self._firsts[each] < end and first < self._ends[each]:
                bound = align(top, self._alignments[each])
                self._earliest[each] = max(self._earliest[each], bound)
