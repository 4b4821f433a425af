"""The canonical search: every plan is built in one way only, from the bottom up.

A plan can be pushed down until every buffer rests on the bottom or on another one. Placed by
offset, and among equal offsets by rank, every buffer of such a plan lies as low as those before it
let it: so there is one way to build it, and whatever is placed later lies higher (canonical
solutions). A node of the search tries what waits in that order, and

-   stops at a candidate that begins above the top that another one would have now, because that one
    would fit under it (dominance), or where the bytes that wait in a section would not fit above
    it (monotonic floor), and after a candidate that nothing that waits meets (hatless pruning);
-   skips a candidate that would lie right on one that is alive in the same sections and has a
    later rank: changing places gives another plan just as good;
-   gives up a candidate if a section's bytes that wait do not fit above its floor: the top of what
    is placed there or the lowest offset of what waits there, whichever is higher (section
    inference);
-   searches parts that do not meet in time on their own (dynamic decomposition).

A node costs only what it changes, so this search visits several times as many a second as the exact
search, but sees less at each: the two find different plans. Gaps in lifetimes and fixed offsets are
part of it: who meets whom is all it asks, and what is fixed is placed when its turn has come.

The method is that of Moffitt, "MiniMalloc: A Lightweight Memory Allocator for Hardware-Accelerated
Machine Learning" (ASPLOS 2023), and so are the orders of `FixedOrders`.
`native/canonical_search.c` and `PythonCanonicalAttempt` are the same search, step for step.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np

from aegis_pipe.memory import native
from aegis_pipe.memory.exact_search import Attempt, Outcome, align, recursion_for
from aegis_pipe.memory.orders import contention
from aegis_pipe.memory.packing import Integers, address_of, out_of_memory
from aegis_pipe.memory.sections import Sections

_FAR = (1 << 63) // 4

FIRST_WORK_LIMIT = 1_000_000
"""Of an attempt, in looks at buffers."""


def make_canonical_attempt(sections: Sections, *, totals_lead: bool = False) -> Attempt:
    """Choose the compiled search, where there is one.

    With `totals_lead`, parts are ranked by what waits in each buffer's fullest section first.
    """
    kind = PythonCanonicalAttempt if native.LIBRARY is None else NativeCanonicalAttempt
    return kind(sections, totals_lead=totals_lead)


class FixedOrders:
    """Three orders in turns, each time with twice the work.

    Widest first, then by area; or by what waits in a buffer's fullest section, again in every part
    into which the problem falls, and then by area or by width.
    """

    def __init__(self, sections: Sections) -> None:
        problem = sections.problem
        widths = np.array([each.end - each.first for each in problem.lifetimes])
        areas = widths.astype(np.float64) * problem.sizes
        plain = make_canonical_attempt(sections)
        by_totals = make_canonical_attempt(sections, totals_lead=True)
        self._turns: list[tuple[Attempt, Integers]] = [
            (plain, _ranks_by(widths, areas, contention(problem))),
            (by_totals, _ranks_by(areas, widths)),
            (by_totals, _ranks_by(widths, areas)),
        ]
        self._attempts = plain, by_totals
        self._count = 0
        self._last = plain

    @property
    def work(self) -> int:
        """All work so far, in looks at buffers."""
        return sum(attempt.work for attempt in self._attempts)

    @property
    def offsets(self) -> list[int]:
        """The plan that was found last."""
        offsets: list[int] = self._last.offsets.tolist()
        return offsets

    def run(self, capacity_bytes: int, limit: int) -> Outcome:
        """Make the next attempt, with at most so many looks at buffers."""
        round_number, turn = divmod(self._count, len(self._turns))
        self._count += 1
        self._last, ranks = self._turns[turn]
        limit = min(FIRST_WORK_LIMIT << round_number, limit)
        outcome = self._last.run(ranks, capacity_bytes, limit)
        if outcome is Outcome.OUT_OF_MEMORY:
            raise out_of_memory()
        return outcome


def _ranks_by(*keys: np.ndarray) -> Integers:
    """Return each buffer's place if sorted by descending keys, the first one leading."""
    order = np.lexsort([-key for key in reversed(keys)])
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


class _CanonicalAttempt:
    """What both kinds of attempt keep."""

    def __init__(self, sections: Sections, *, totals_lead: bool = False) -> None:
        self._sections = sections
        self._totals_lead = totals_lead
        self.starts, self.ends = sections.starts, sections.ends
        self.moment_weights = np.zeros(sections.count, dtype=np.int64)
        self.buffer_weights = np.zeros(len(sections.problem), dtype=np.int64)
        self.offsets = np.zeros(len(sections.problem), dtype=np.int64)
        self.work = 0


class NativeCanonicalAttempt(_CanonicalAttempt):
    """The compiled search."""

    def run(self, ranks: Integers, capacity_bytes: int, limit: int) -> Outcome:
        """See `Attempt.run`; the limit is in looks at buffers."""
        assert native.LIBRARY is not None, "there is no compiled search"
        work = ctypes.c_int64()
        # Named, so that it outlives the call that has its address.
        narrow_ranks = ranks.astype(np.int32)
        outcome = native.LIBRARY.aegis_canonical_search(
            ctypes.byref(self._sections.native.fields),
            address_of(narrow_ranks),
            ctypes.c_int32(self._totals_lead),
            ctypes.c_int64(capacity_bytes),
            ctypes.c_int64(limit),
            *map(address_of, (self.moment_weights, self.buffer_weights, self.offsets)),
            ctypes.byref(work),
        )
        self.work += work.value
        return Outcome(outcome)


class _Candidate(NamedTuple):
    """A buffer, where it would come to lie; the order is that in which candidates are tried."""

    offset: int
    rank: int
    buffer: int


class PythonCanonicalAttempt(_CanonicalAttempt):
    """The search without a compiler, about a hundred times slower."""

    def __init__(self, sections: Sections, *, totals_lead: bool = False) -> None:
        super().__init__(sections, totals_lead=totals_lead)
        self._sizes: list[int] = sections.problem.sizes.tolist()
        self._alignments: list[int] = sections.problem.alignments.tolist()
        self._alive = [
            [section for run in runs for section in range(*run)] for runs in sections.runs
        ]

    def run(self, ranks: Integers, capacity_bytes: int, limit: int) -> Outcome:
        """See `Attempt.run`; the limit is in looks at buffers."""
        self._ranks: list[int] = ranks.tolist()
        self._capacity = capacity_bytes
        self._work_limit = self.work + limit
        self._waits = [True] * len(self._sizes)
        self._earliest = [max(fixed, 0) for fixed in self._sections.fixed]
        self._floors = [0] * self._sections.count
        self._totals = [
            sum(self._sizes[each] for each in members) for members in self._sections.members
        ]
        self._topmost = [-1] * len(self._sizes)
        everything = sorted(map(_Candidate, self._earliest, self._ranks, range(len(self._sizes))))
        with recursion_for(3 * len(everything)):
            return self._visit_parts(everything, _Candidate(0, -1, -1), is_new=True)

    def _visit_parts(
        self, order: list[_Candidate], level: _Candidate, *, is_new: bool = False
    ) -> Outcome:
        """Visit what waits, part by part: parts do not meet in time."""
        parts: list[list[_Candidate]] = []
        end = -1
        for each in sorted(order, key=lambda one: self.starts[one.buffer]):
            if self.starts[each.buffer] >= end:
                parts.append([])
            parts[-1].append(each)
            end = max(end, self.ends[each.buffer])
        if len(parts) == 1 and not is_new:
            return self._visit(order, level)
        for part in parts:
            own = sorted(part)
            if self._totals_lead:
                own = self._ranked_by_totals(own)
                level = level._replace(rank=-1)
            outcome = self._visit(own, level)
            if outcome is not Outcome.FOUND:
                return outcome
        return Outcome.FOUND

    def _ranked_by_totals(self, part: list[_Candidate]) -> list[_Candidate]:
        """Rank by what waits in a buffer's fullest section, then as before."""

        def key(each: _Candidate) -> tuple[int, int]:
            fullest = max(self._totals[section] for section in self._alive[each.buffer])
            return -fullest, self._ranks[each.buffer]

        ranked = sorted(part, key=key)
        return sorted(each._replace(rank=rank) for rank, each in enumerate(ranked))

    def _visit(self, order: list[_Candidate], level: _Candidate) -> Outcome:
        if self.work >= self._work_limit:
            return Outcome.GAVE_UP
        start = min(self.starts[each.buffer] for each in order)
        end = max(self.ends[each.buffer] for each in order)
        most = max(self._totals[start:end])
        below = min(map(self._limit_of, order))
        self.work += len(order)
        for each in order:
            if each.offset >= below or each.offset + most > self._capacity:
                break
            if each[:2] < level[:2] or self._is_swapped(each):
                continue
            outcome, has_hat = self._try(each, order)
            if outcome is not Outcome.NONE or not has_hat:
                return outcome
        return Outcome.NONE

    def _limit_of(self, waiting: _Candidate) -> int:
        """Return what other candidates have to begin below."""
        fixed = self._sections.fixed[waiting.buffer]
        return waiting.offset + self._sizes[waiting.buffer] if fixed < 0 else fixed + 1

    def _is_swapped(self, each: _Candidate) -> bool:
        """Return whether it would lie right on one it could change places with, but out of turn."""
        group = self._sections.groups[each.buffer]
        below = -1 if group < 0 else self._topmost[group]
        return (
            below >= 0
            and self.offsets[below] + self._sizes[below] == each.offset
            and self._ranks[below] > self._ranks[each.buffer]
        )

    def _try(self, each: _Candidate, order: list[_Candidate]) -> tuple[Outcome, bool]:
        """Place, go on, take back; return also whether anything that waits meets the buffer."""
        before = list(self._earliest), list(self._floors)
        group = self._sections.groups[each.buffer]
        topmost = self._topmost[group]
        outcome = Outcome.NONE
        fits, has_hat = self._place(each)
        if fits:
            if group >= 0:
                self._topmost[group] = each.buffer
            left = sorted(
                one._replace(offset=self._earliest[one.buffer])
                for one in order
                if self._waits[one.buffer]
            )
            outcome = self._visit_parts(left, each) if left else Outcome.FOUND
            self._topmost[group] = topmost
        self._earliest, self._floors = before
        for section in self._alive[each.buffer]:
            self._totals[section] += self._sizes[each.buffer]
        self._waits[each.buffer] = True
        return outcome, has_hat

    def _place(self, each: _Candidate) -> tuple[bool, bool]:
        """Return whether what waits could still fit, and whether any of it meets the buffer."""
        size = self._sizes[each.buffer]
        self.offsets[each.buffer] = each.offset
        self._waits[each.buffer] = False
        for section in self._alive[each.buffer]:
            self._totals[section] -= size
            self._floors[section] = each.offset + size
        changed = dict.fromkeys(self._alive[each.buffer])
        fits, has_hat = self._raise_neighbours(each.buffer, each.offset + size, changed)
        if not fits:
            return False, has_hat
        for section in changed:
            if not self._totals[section]:
                continue
            members = self._sections.members[section]
            self.work += len(members)
            lowest = min(self._earliest[one] for one in members if self._waits[one])
            self._floors[section] = max(self._floors[section], lowest)
            if max(self._floors[section], each.offset) + self._totals[section] > self._capacity:
                self.moment_weights[section] += 1
                return False, has_hat
        return True, has_hat

    def _raise_neighbours(
        self, buffer: int, top: int, changed: dict[int, None]
    ) -> tuple[bool, bool]:
        """Let what waits and meets a buffer lie above it; note sections whose floor may rise."""
        has_hat = False
        self.work += len(self._sections.neighbours[buffer])
        for other in self._sections.neighbours[buffer]:
            if not self._waits[other]:
                continue
            has_hat = True
            before, raised = self._earliest[other], align(top, self._alignments[other])
            if before >= raised:
                continue
            self._earliest[other] = raised
            fixed = self._sections.fixed[other]
            if raised + self._sizes[other] > self._capacity or 0 <= fixed < raised:
                self.buffer_weights[other] += 1
                return False, has_hat
            for section in self._alive[other]:
                if before <= self._floors[section]:
                    changed[section] = None
        return True, has_hat
