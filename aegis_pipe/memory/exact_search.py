"""The exact search: offsets within a capacity, or the proof that there are none.

A plan can be pushed down until every buffer rests on the bottom or on another one, so only such
plans are looked for. They are built from the bottom up; the state is the skyline, the top of what
is placed at each moment. A node of the search

1.  bounds each waiting buffer from below: by the skyline; by what has to come under it, because the
    bytes that wait at one of its moments would not all fit on top of it, or because it sleeps (4);
    and gives up where the bytes that wait at a moment do not fit above the lowest bound there;
2.  chooses the moment that leaves the fewest ways on. Whatever lies lowest there ends up at most
    `capacity - waiting bytes` above the bottom, so it, or something that fits below that and
    carries it, has to be placed next: these are the candidates;
3.  places one candidate, and visits what is left part by part, where parts do not meet in time;
4.  lets a candidate that failed sleep while its siblings are tried, until something that meets it
    in time is placed: without that, its plans are those that were already refuted.

A node that fails blames the moment or the buffer that showed it. An attempt that takes too many
nodes is given up and begun again in another order, in which what was blamed often comes first, with
a limit that follows Luby's sequence.

Sections, dynamic decomposition and canonical solutions are those of Moffitt, "MiniMalloc" (ASPLOS
2023). Blame is the weighted degree of Boussemart et al. (ECAI 2004), sleeping comes from
Godefroid's sleep sets (1996), restarts from Luby et al. (1993).

`native/exact_search.c` and `PythonAttempt` are the same search, node for node.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import random
import sys
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aegis_pipe.memory import native
from aegis_pipe.memory.orders import contention
from aegis_pipe.memory.packing import Integers, PackingProblem, address_of, out_of_memory

BUFFERS_MAX = 1500
"""Memory of an attempt grows with the square; larger problems are left to the other strategies."""

_FIRST_NODE_LIMIT = 500
_ROUNDS = 3
_FAR = (1 << 63) // 4
_SEED = 4
_UNSHUFFLED = 3
"""So many attempts take their order as it is; later ones shuffle it."""


class Outcome(IntEnum):
    """How an attempt ended."""

    FOUND = 1
    NONE = 0
    """There is no plan within the capacity."""
    GAVE_UP = -1
    OUT_OF_MEMORY = -2


class Attempt(Protocol):
    """Tries to plan one problem; remembers blame from one try to the next."""

    starts: list[int]
    """First moment of each buffer, as the attempt numbers moments."""
    ends: list[int]
    moment_weights: Integers
    """How often each moment was to blame."""
    buffer_weights: Integers
    offsets: Integers
    """The plan, after a try that found one."""
    work: int
    """All work so far, in what the attempt looks at: moments of buffers, or buffers."""

    def run(self, ranks: Integers, capacity_bytes: int, limit: int) -> Outcome:
        """Search once; `ranks` says which of two buffers with the same offset comes first.

        It gives up at the limit, which counts nodes or, like `work`, what it looks at.
        """
        ...


class Restarts:
    """Attempts at one capacity after the other, until all work is used up."""

    def __init__(
        self,
        problem: PackingProblem,
        *,
        attempt: Attempt | None = None,
        plain_areas_first: bool = False,
        first_limit: int = _FIRST_NODE_LIMIT,
    ) -> None:
        """Of an attempt of one's own, the first limit is told in what the attempt counts."""
        assert len(problem) <= BUFFERS_MAX, f"{len(problem)} buffers are too many"
        self._attempt = attempt or make_attempt(problem)
        self._first_limit = first_limit
        durations = (problem.ends - problem.firsts).astype(np.float64)
        # Powers by multiplication: `log` and `pow` differ between machines in the last bit.
        fullness = contention(problem) / problem.live_bytes.max()
        steep = fullness
        for _ in range(3):
            steep = steep * steep
        areas = durations * problem.sizes
        self._keys: tuple[NDArray[np.float64], ...] = (
            steep * areas,
            fullness * areas,
            fullness * durations,
        )
        if plain_areas_first:
            self._keys = (areas, *self._keys, areas * durations)
        self._generator = random.Random(_SEED)
        self._count = 0

    @property
    def work(self) -> int:
        """All work so far."""
        return self._attempt.work

    @property
    def offsets(self) -> list[int]:
        """The plan that was found last."""
        offsets: list[int] = self._attempt.offsets.tolist()
        return offsets

    def run(self, capacity_bytes: int, limit: int = _FAR) -> Outcome:
        """Make the next attempt, with a limit of its own or the one given, if that is less."""
        ranks = self._ranks()
        self._count += 1
        limit = min(limit, self._first_limit * luby(self._count))
        outcome = self._attempt.run(ranks, capacity_bytes, limit)
        if outcome is Outcome.OUT_OF_MEMORY:
            raise out_of_memory()
        return outcome

    def _ranks(self) -> Integers:
        keys = self._keys[self._count % len(self._keys)]
        if self._count >= _UNSHUFFLED:
            keys = keys * np.array([1 + 0.65 * self._generator.random() for _ in keys])
        weights = self._attempt.moment_weights.tolist()
        spans = zip(self._attempt.starts, self._attempt.ends, strict=True)
        blame = np.array([max(weights[first:end]) for first, end in spans])
        order = np.argsort(-keys * (1 + blame + self._attempt.buffer_weights), kind="stable")
        ranks = np.empty(len(keys), dtype=np.int64)
        ranks[order] = np.arange(len(keys), dtype=np.int64)
        return ranks


def luby(index: int) -> int:
    """Return the sequence 1, 1, 2, 1, 1, 2, 4, 1, ... from index 1 on."""
    while True:
        power = index.bit_length()
        if (1 << power) - 1 == index:
            return 1 << (power - 1)
        index -= (1 << (power - 1)) - 1


def make_attempt(problem: PackingProblem) -> Attempt:
    """Choose the compiled search, where there is one."""
    return PythonAttempt(problem) if native.LIBRARY is None else NativeAttempt(problem)


class NativeAttempt:
    """The compiled search."""

    def __init__(self, problem: PackingProblem) -> None:
        self.starts: list[int] = problem.firsts.tolist()
        self.ends: list[int] = problem.ends.tolist()
        self._problem = (
            problem.sizes,
            problem.alignments,
            problem.firsts.astype(np.int32),
            problem.ends.astype(np.int32),
        )
        self.moment_weights = np.zeros(len(problem.live_bytes), dtype=np.int64)
        self.buffer_weights = np.zeros(len(problem), dtype=np.int64)
        self.offsets = np.zeros(len(problem), dtype=np.int64)
        self.work = 0

    def run(self, ranks: Integers, capacity_bytes: int, limit: int) -> Outcome:
        """See `Attempt.run`; the limit is in nodes."""
        assert native.LIBRARY is not None, "there is no compiled search"
        work = ctypes.c_int64()
        # Named, so that it outlives the call that has its address.
        narrow_ranks = ranks.astype(np.int32)
        outcome = native.LIBRARY.aegis_exact_search(
            ctypes.c_int32(len(self.offsets)),
            ctypes.c_int32(len(self.moment_weights)),
            *[address_of(each) for each in (*self._problem, narrow_ranks)],
            ctypes.c_int64(capacity_bytes),
            ctypes.c_int64(limit),
            *[
                address_of(each)
                for each in (self.moment_weights, self.buffer_weights, self.offsets)
            ],
            ctypes.byref(work),
        )
        self.work += work.value
        return Outcome(outcome)


class PythonAttempt:
    """The same search without a compiler, about a hundred times slower."""

    def __init__(self, problem: PackingProblem) -> None:
        self._sizes: list[int] = problem.sizes.tolist()
        self._alignments: list[int] = problem.alignments.tolist()
        self.starts: list[int] = problem.firsts.tolist()
        self.ends: list[int] = problem.ends.tolist()
        self.moment_weights = np.zeros(len(problem.live_bytes), dtype=np.int64)
        self.buffer_weights = np.zeros(len(problem), dtype=np.int64)
        self.offsets = np.zeros(len(problem), dtype=np.int64)
        self.work = 0

    def run(self, ranks: Integers, capacity_bytes: int, limit: int) -> Outcome:
        """See `Attempt.run`; the limit is in nodes."""
        self._ranks: list[int] = ranks.tolist()
        self._capacity = capacity_bytes
        self._nodes_left = limit
        self._skyline = [0] * len(self.moment_weights)
        self._rest = [0] * len(self.moment_weights)
        self._asleep = [False] * len(self._sizes)
        everything = list(range(len(self._sizes)))
        self._add_rest(everything)
        with recursion_for(len(everything)):
            return self._visit_parts(everything)

    def _add_rest(self, members: Sequence[int]) -> None:
        rest, sizes = self._rest, self._sizes
        for buffer in members:
            for moment in range(self.starts[buffer], self.ends[buffer]):
                rest[moment] += sizes[buffer]

    def _visit_parts(self, left: Sequence[int]) -> Outcome:
        """Visit what is left of a component, part by part: parts do not meet in time."""
        part: list[int] = []
        end = 0
        for buffer in left:
            if part and self.starts[buffer] >= end:
                outcome = self._visit(part)
                if outcome is not Outcome.FOUND:
                    return outcome
                part, end = [], 0
            part.append(buffer)
            end = max(end, self.ends[buffer])
        return self._visit(part) if part else Outcome.FOUND

    def _visit(self, members: list[int]) -> Outcome:
        self._nodes_left -= 1
        if self._nodes_left < 0:
            return Outcome.GAVE_UP
        start, end = self.starts[members[0]], max(self.ends[each] for each in members)
        earliest = self._drop(members)
        lowest = list(earliest)
        if not self._is_feasible(members, lowest, start, end):
            return Outcome.NONE
        movable = [
            lowest[i] == earliest[i] and not self._asleep[each] for i, each in enumerate(members)
        ]
        moment = self._choose_moment(members, earliest, movable, start, end)
        chosen = self._choose_candidates(members, lowest, moment)
        candidates = sorted(
            (earliest[i], self._ranks[each], each)
            for i, each in enumerate(members)
            if movable[i] and each in chosen
        )
        skyline = self._skyline[start:end]
        asleep = {each for each in members if self._asleep[each]}
        for offset, _, buffer in candidates:
            self._place(buffer, offset, members, asleep)
            outcome = self._visit_parts([each for each in members if each != buffer])
            if outcome is not Outcome.NONE:
                return outcome
            asleep.add(buffer)
            self._skyline[start:end] = skyline
            self._rest[start:end] = [0] * (end - start)
            self._add_rest(members)
            for each in members:
                self._asleep[each] = each in asleep
        return Outcome.NONE

    def _drop(self, members: list[int]) -> list[int]:
        """Return the offsets at which each buffer would come to lie now."""
        offsets = []
        for buffer in members:
            first, end = self.starts[buffer], self.ends[buffer]
            offsets.append(align(max(self._skyline[first:end]), self._alignments[buffer]))
            self.work += end - first
        return offsets

    def _is_feasible(self, members: list[int], lowest: list[int], start: int, end: int) -> bool:
        """Raise the lower bounds; return whether they still leave room for everything."""
        for number in range(1, _ROUNDS + 1):
            tops = self._survey(members, lowest, start, end)
            if tops is None:
                return False
            if number == _ROUNDS:
                break
            changed = self._raise_bounds(members, lowest, tops)
            if changed is None:
                return False
            if not changed:
                break
        return True

    def _survey(
        self, members: list[int], lowest: list[int], start: int, end: int
    ) -> dict[int, tuple[int, int, int]] | None:
        """Return per moment the two lowest tops its buffers can have, and whose the first is."""
        floors = dict.fromkeys(range(start, end), _FAR)
        tops = dict.fromkeys(range(start, end), (_FAR, _FAR, -1))
        for i, buffer in enumerate(members):
            offset = lowest[i]
            top = offset + self._sizes[buffer]
            if top > self._capacity:
                self.buffer_weights[buffer] += 1
                return None
            for moment in range(self.starts[buffer], self.ends[buffer]):
                floors[moment] = min(floors[moment], offset)
                first, second, who = tops[moment]
                if top < first:
                    tops[moment] = top, first, i
                elif top < second:
                    tops[moment] = first, top, who
        for moment in range(start, end):
            rest = self._rest[moment]
            if rest and floors[moment] + rest > self._capacity:
                self.moment_weights[moment] += 1
                return None
        return tops

    def _raise_bounds(
        self, members: list[int], lowest: list[int], tops: dict[int, tuple[int, int, int]]
    ) -> bool | None:
        """Raise the bound of what needs another buffer below it; None if one leaves no room."""
        changed = False
        for i, buffer in enumerate(members):
            bound, below = lowest[i], _FAR
            for moment in range(self.starts[buffer], self.ends[buffer]):
                first, second, who = tops[moment]
                top = second if who == i else first
                if lowest[i] + self._rest[moment] > self._capacity:
                    bound = max(bound, top)
                below = min(below, top)
            if self._asleep[buffer]:
                bound = max(bound, below)
            if bound > lowest[i]:
                lowest[i] = align(bound, self._alignments[buffer])
                changed = True
                if lowest[i] + self._sizes[buffer] > self._capacity:
                    self.buffer_weights[buffer] += 1
                    return None
        return changed

    def _choose_moment(
        self, members: list[int], earliest: list[int], movable: list[bool], start: int, end: int
    ) -> int:
        """Return the moment with the fewest ways on, the more so the more often it was blamed."""
        covering = dict.fromkeys(range(start, end), 0)
        tops = []
        for i, buffer in enumerate(members):
            if movable[i]:
                tops.append(earliest[i] + self._sizes[buffer])
                for moment in range(self.starts[buffer], self.ends[buffer]):
                    covering[moment] += earliest[i] + self._rest[moment] <= self._capacity
        tops.sort()

        def value(moment: int) -> int:
            latest = self._capacity - self._rest[moment]
            ways = covering[moment] + bisect.bisect_right(tops, latest)
            return (ways << 10) // (1 + int(self.moment_weights[moment])).bit_length()

        return min((moment for moment in range(start, end) if self._rest[moment]), key=value)

    def _choose_candidates(self, members: list[int], lowest: list[int], moment: int) -> set[int]:
        """Return what covers the moment, and what can end up below that."""
        latest = self._capacity - self._rest[moment]
        chosen = {
            buffer
            for i, buffer in enumerate(members)
            if self.starts[buffer] <= moment < self.ends[buffer] and lowest[i] <= latest
        }
        # At least the buffer with the lowest bound covers it, or the node had not been feasible.
        start = min(self.starts[each] for each in chosen)
        end = max(self.ends[each] for each in chosen)
        changed = True
        while changed:
            changed = False
            for i, buffer in enumerate(members):
                if buffer in chosen or lowest[i] + self._sizes[buffer] > latest:
                    continue
                if self.starts[buffer] < end and start < self.ends[buffer]:
                    chosen.add(buffer)
                    changed = True
                    start = min(start, self.starts[buffer])
                    end = max(end, self.ends[buffer])
        return chosen

    def _place(self, buffer: int, offset: int, members: list[int], asleep: set[int]) -> None:
        first, end, size = self.starts[buffer], self.ends[buffer], self._sizes[buffer]
        self.offsets[buffer] = offset
        for moment in range(first, end):
            self._skyline[moment] = offset + size
            self._rest[moment] -= size
        for each in members:
            apart = self.ends[each] <= first or self.starts[each] >= end
            self._asleep[each] = each in asleep and apart


def align(offset: int, alignment: int) -> int:
    """Return the next multiple of the alignment."""
    return -(-offset // alignment) * alignment


@contextlib.contextmanager
def recursion_for(depth: int) -> Iterator[None]:
    """Allow for two frames a placed buffer."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + 2 * depth)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
