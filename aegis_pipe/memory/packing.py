"""The planner's problem as numbers, and two ways to place buffers in a given order.

Static memory planning is two-dimensional packing with one dimension fixed (dynamic storage
allocation, Garey & Johnson SR2; NP-hard): each buffer is a rectangle, its interval of steps is
given, its offset is sought. Placing the buffers one by one, each at the lowest offset that is
free over its whole interval (first fit), turns an order into a plan; what is left is to find a
good order (`orders.py`, `search.py`).
"""

from __future__ import annotations

import bisect
import ctypes
import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from aegis_pipe.errors import PermanentError
from aegis_pipe.memory import native
from aegis_pipe.memory.lifetimes import TensorLifetime

Integers = npt.NDArray[np.int64]

_NATIVE_BUFFERS_MAX = 6000
"""Its time grows with the square; above that NumPy is faster."""

_DENSE_NEIGHBOURS = 96
"""From this many neighbours per buffer on, NumPy's fixed cost per buffer is the smaller one."""


@dataclass(frozen=True, eq=False)
class PackingProblem:
    """Buffers of positive size by number, in an order that does not depend on how they came.

    Sorted by interval, size and alignment: buffers that tie are interchangeable, so any
    permutation of the lifetimes gives the same peak.
    """

    lifetimes: tuple[TensorLifetime, ...]

    @classmethod
    def build(cls, lifetimes: Sequence[TensorLifetime]) -> Self:
        """Sort the lifetimes that need memory."""

        def canonical(lifetime: TensorLifetime) -> tuple[object, ...]:
            fixed = -1 if lifetime.offset_bytes is None else lifetime.offset_bytes
            start = lifetime.first, lifetime.end, -lifetime.size_bytes, lifetime.alignment_bytes
            return *start, fixed, lifetime.gaps

        return cls(tuple(sorted((each for each in lifetimes if each.size_bytes), key=canonical)))

    def __len__(self) -> int:
        """Return the number of buffers."""
        return len(self.lifetimes)

    @cached_property
    def is_plain(self) -> bool:
        """Whether every buffer may lie anywhere and lives without gaps."""
        return self.is_gapless and all(each.offset_bytes is None for each in self.lifetimes)

    @cached_property
    def is_gapless(self) -> bool:
        """Whether every buffer lives without gaps."""
        return not any(each.gaps for each in self.lifetimes)

    @cached_property
    def alignments(self) -> Integers:
        """Bytes of which each offset is a multiple."""
        return np.array([each.alignment_bytes for each in self.lifetimes], dtype=np.int64)

    @cached_property
    def sizes(self) -> Integers:
        """Bytes per buffer."""
        return np.array([each.size_bytes for each in self.lifetimes], dtype=np.int64)

    @cached_property
    def firsts(self) -> Integers:
        """First moment per buffer, as a position in the sorted distinct first steps."""
        return np.searchsorted(self._moments, [each.first for each in self.lifetimes])

    @cached_property
    def ends(self) -> Integers:
        """End per buffer, as a position like `firsts`: nothing changes between two first steps."""
        return np.searchsorted(self._moments, [each.end for each in self.lifetimes])

    @cached_property
    def live_bytes(self) -> Integers:
        """Sum of the live sizes at each moment."""
        return np.cumsum(self._changes(self.sizes))[:-1]

    @cached_property
    def neighbour_count(self) -> int:
        """Number of pairs that are alive together."""
        live = np.cumsum(self._changes(np.ones_like(self.sizes)))[:-1]
        arriving = np.bincount(self.firsts, minlength=len(live))
        return int((arriving * (live - arriving) + arriving * (arriving - 1) // 2).sum())

    def sections(self) -> list[list[int]]:
        """Return the buffers in groups that do not meet in time, by time."""
        sections: list[list[int]] = []
        end = 0
        spans = zip(self.firsts.tolist(), self.ends.tolist(), strict=True)
        for buffer, (first, last) in enumerate(spans):
            if not sections or first >= end:
                sections.append([])
            sections[-1].append(buffer)
            end = max(end, last)
        return sections

    @cached_property
    def lower_bound_bytes(self) -> int:
        """Return the largest sum of live sizes, each padded as the alignments force it to be.

        All offsets are multiples of the alignments' common divisor, so every live buffer but the
        topmost takes up a multiple of it.
        """
        return max(self._live_bound_bytes, *self._fixed_tops, 0)

    @property
    def _fixed_tops(self) -> list[int]:
        fixed = [each for each in self.lifetimes if each.offset_bytes is not None]
        return [(each.offset_bytes or 0) + each.size_bytes for each in fixed]

    @property
    def _live_bound_bytes(self) -> int:
        if not self.lifetimes:
            return 0
        grain = int(np.gcd.reduce(self.alignments))
        slack = -self.sizes % grain
        if not slack.any():
            return int(self.live_bytes.max())
        padded = np.cumsum(self._changes(self.sizes + slack))[:-1]
        return int((padded - self._largest_live(slack)).max())

    @cached_property
    def _moments(self) -> Integers:
        starts = [each.first for each in self.lifetimes]
        starts += [end for each in self.lifetimes for _, end in each.gaps]
        # Not `np.unique`, whose first call imports NumPy's masked arrays.
        return np.array(sorted(set(starts)), dtype=np.int64)

    def _changes(self, weights: Integers) -> Integers:
        changes = np.zeros(len(self._moments) + 1, dtype=np.int64)
        np.add.at(changes, self.firsts, weights)
        np.subtract.at(changes, self.ends, weights)
        if self.is_gapless:
            return changes
        for buffer, lifetime in enumerate(self.lifetimes):
            for gap in lifetime.gaps:
                start, end = np.searchsorted(self._moments, gap)
                changes[start] -= weights[buffer]
                changes[end] += weights[buffer]
        return changes

    def _largest_live(self, values: Integers) -> Integers:
        """Return the largest value of a live buffer at each moment, gaps not counted."""
        largest = np.zeros(len(self._moments), dtype=np.int64)
        heap: list[tuple[int, int]] = []
        columns = zip(self.firsts.tolist(), self.ends.tolist(), values.tolist(), strict=True)
        arriving = {
            moment: list(group)
            for moment, group in itertools.groupby(columns, key=lambda column: column[0])
        }
        for moment in range(len(largest)):
            for _, end, value in arriving.get(moment, ()):
                heapq.heappush(heap, (-value, end))
            while heap and heap[0][1] <= moment:
                heapq.heappop(heap)
            largest[moment] = -heap[0][0] if heap else 0
        return largest


class Placer(Protocol):
    """Places the buffers of one problem, first fit, in whatever order it is given."""

    @property
    def work(self) -> int:
        """All work so far, in neighbours looked at (estimated from the buffers placed)."""
        ...

    def place(self, order: Sequence[int], limit_bytes: int | None) -> list[int] | None:
        """Return the offset of each buffer, or None as soon as one ends above the limit."""
        ...


def make_placer(problem: PackingProblem) -> Placer:
    """Choose the placer that is faster for this problem; all place alike and count alike."""
    if native.LIBRARY is not None and problem.is_gapless and len(problem) <= _NATIVE_BUFFERS_MAX:
        return NativePlacer(problem, native.LIBRARY)
    return SweepPlacer(problem) if _is_dense(problem) else NeighbourPlacer(problem)


def _is_dense(problem: PackingProblem) -> bool:
    return problem.is_plain and problem.neighbour_count > _DENSE_NEIGHBOURS * len(problem)


def _work_each(problem: PackingProblem) -> int:
    """Return the work of placing one buffer, which is counted and not measured."""
    if _is_dense(problem):
        return 100 + len(problem) // 200
    return 8 + 2 * problem.neighbour_count // max(1, len(problem))


class NativePlacer:
    """The compiled one: scans all that is placed, in order of offset."""

    def __init__(self, problem: PackingProblem, library: ctypes.CDLL) -> None:
        self._function = library.aegis_first_fit
        self._function.restype = ctypes.c_int32
        self._problem = (
            problem.sizes,
            problem.alignments,
            problem.firsts.astype(np.int32),
            problem.ends.astype(np.int32),
        )
        self._fixed = np.array(
            [-1 if each.offset_bytes is None else each.offset_bytes for each in problem.lifetimes],
            dtype=np.int64,
        )
        self._work_each = _work_each(problem)
        self.work = 0

    def place(self, order: Sequence[int], limit_bytes: int | None) -> list[int] | None:
        """See `Placer.place`."""
        offsets = self._fixed.copy()
        narrow_order = np.array(order, dtype=np.int32)
        done = self._function(
            ctypes.c_int32(len(offsets)),
            *[address_of(each) for each in (*self._problem, narrow_order)],
            ctypes.c_int64(-1 if limit_bytes is None else limit_bytes),
            address_of(offsets),
        )
        if done < 0:
            raise out_of_memory()
        self.work += done * self._work_each
        placed: list[int] = offsets.tolist()
        return placed if done == len(placed) else None


def address_of(array: npt.NDArray[np.signedinteger[Any]]) -> ctypes.c_void_p:
    """Return where a contiguous array begins, for the compiled library."""
    assert array.flags.c_contiguous, "the compiled library takes contiguous arrays"
    return ctypes.c_void_p(array.ctypes.data)


def out_of_memory() -> PermanentError:
    """Say that planning itself ran out of memory."""
    return PermanentError(
        "there is no memory left to plan with", hint="free memory, or load fewer models"
    )


class NeighbourPlacer:
    """For sparse problems: knows each buffer's neighbours in time; memory grows with the pairs."""

    def __init__(self, problem: PackingProblem) -> None:
        self._sizes: list[int] = problem.sizes.tolist()
        self._alignments: list[int] = problem.alignments.tolist()
        self._neighbours = neighbours_of(problem)
        self._fixed = [
            None if each.offset_bytes is None else (each.offset_bytes, each.offset_bytes + size)
            for each, size in zip(problem.lifetimes, self._sizes, strict=True)
        ]
        self._work_each = _work_each(problem)
        self.work = 0

    def place(self, order: Sequence[int], limit_bytes: int | None) -> list[int] | None:
        """See `Placer.place`. The planner's hottest loop, hence written out."""
        sizes, alignments, neighbours = self._sizes, self._alignments, self._neighbours
        spans = list(self._fixed)
        for done, buffer in enumerate(order):
            if spans[buffer] is not None:
                continue
            size = sizes[buffer]
            lowest = 0
            for start, top in sorted(
                [span for other in neighbours[buffer] if (span := spans[other]) is not None]
            ):
                if start - lowest >= size:
                    break
                if top > lowest:
                    alignment = alignments[buffer]
                    lowest = -(-top // alignment) * alignment
            if limit_bytes is not None and lowest + size > limit_bytes:
                self.work += done * self._work_each
                return None
            spans[buffer] = (lowest, lowest + size)
        self.work += len(order) * self._work_each
        return [span[0] for span in spans if span is not None]


class SweepPlacer:
    """For dense problems: keeps what is placed in arrays sorted by offset and scans them whole."""

    def __init__(self, problem: PackingProblem) -> None:
        self._columns = list(
            zip(
                problem.firsts.tolist(),
                problem.ends.tolist(),
                problem.sizes.tolist(),
                problem.alignments.tolist(),
                strict=True,
            )
        )
        self._work_each = _work_each(problem)
        self.work = 0

    def place(self, order: Sequence[int], limit_bytes: int | None) -> list[int] | None:
        """See `Placer.place`."""
        count = len(self._columns)
        # Rows: first, end, start, top; one column per placed buffer, ascending by start.
        placed = np.empty((4, count), dtype=np.int64)
        offsets = [0] * count
        for done, buffer in enumerate(order):
            first, end, size, alignment = self._columns[buffer]
            firsts, ends, starts, tops = placed[:, :done]
            alive = np.flatnonzero((firsts < end) & (ends > first))
            lowest = _lowest_gap(starts[alive], tops[alive], size, alignment)
            if limit_bytes is not None and lowest + size > limit_bytes:
                self.work += done * self._work_each
                return None
            position = int(starts.searchsorted(lowest))
            placed[:, position + 1 : done + 1] = placed[:, position:done]
            placed[:, position] = (first, end, lowest, lowest + size)
            offsets[buffer] = lowest
        self.work += count * self._work_each
        return offsets


def _lowest_gap(starts: Integers, tops: Integers, size: int, alignment: int) -> int:
    """Return the lowest aligned offset with `size` free bytes among spans sorted by start."""
    if not len(starts) or starts[0] >= size:
        return 0
    lowest = np.maximum.accumulate(tops)
    if alignment > 1:
        lowest = -(-lowest // alignment) * alignment
    fits = starts[1:] - lowest[:-1] >= size
    gap = int(fits.argmax()) if len(fits) else 0
    return int(lowest[gap]) if len(fits) and fits[gap] else int(lowest[-1])


def _meet(one: TensorLifetime, other: TensorLifetime) -> bool:
    """Return whether two whose intervals overlap are alive at a common step, gaps aside."""
    if not (one.gaps or other.gaps):
        return True
    return any(
        first < other_end and other_first < end
        for first, end in stretches_of(one)
        for other_first, other_end in stretches_of(other)
    )


def stretches_of(lifetime: TensorLifetime) -> list[tuple[int, int]]:
    """Return the half-open intervals of steps in which its bytes have to stay, ascending."""
    edges = [lifetime.first, *itertools.chain(*lifetime.gaps), lifetime.end]
    return list(zip(edges[::2], edges[1::2], strict=True))


def neighbours_of(problem: PackingProblem) -> list[list[int]]:
    """List for each buffer all that are alive together with it; buffers come sorted by first."""
    neighbours: list[list[int]] = [[] for _ in range(len(problem))]
    live: list[tuple[int, int]] = []
    for buffer, (first, end) in enumerate(
        zip(problem.firsts.tolist(), problem.ends.tolist(), strict=True)
    ):
        del live[: bisect.bisect_right(live, first, key=lambda each: each[0])]
        for _, other in live:
            if not _meet(problem.lifetimes[other], problem.lifetimes[buffer]):
                continue
            neighbours[other].append(buffer)
            neighbours[buffer].append(other)
        bisect.insort(live, (end, buffer))
    return neighbours
