"""The planner's problem as sections: who meets whom, once and for all.

A section is a set of buffers alive together to which no other could be added, a maximal clique of
the intervals' graph (Moffitt, "MiniMalloc", ASPLOS 2023). Between two of them only sets occur that
one of the two contains, so whatever fits in every section fits at every step. A buffer with gaps is
alive in several runs of sections.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from aegis_pipe.memory.packing import PackingProblem, address_of, neighbours_of, stretches_of

Run = tuple[int, int]
"""Half-open, in sections."""


class Sections:
    """Buffers by number as in their `PackingProblem`; sections by number, ascending in time."""

    def __init__(self, problem: PackingProblem) -> None:
        stretches = [stretches_of(each) for each in problem.lifetimes]
        moments = np.array(_fullest_moments(itertools.chain(*stretches)), dtype=np.int64)
        self.count = len(moments)
        self.problem = problem
        self.runs: list[list[Run]] = []
        """Of each buffer, ascending; empty ones, between two sections, left out."""
        for each in stretches:
            edges = np.searchsorted(moments, np.array(each)).tolist()
            self.runs.append([(first, end) for first, end in edges if first < end])
        self.neighbours = [sorted(each) for each in neighbours_of(problem)]
        self.members: list[list[int]] = [[] for _ in range(self.count)]
        """Of each section, the buffers that are alive in it, ascending."""
        for buffer, runs in enumerate(self.runs):
            for section in itertools.chain(*(range(*run) for run in runs)):
                self.members[section].append(buffer)
        self.fixed = [
            -1 if each.offset_bytes is None else each.offset_bytes for each in problem.lifetimes
        ]
        self.groups = self._groups()

    @property
    def starts(self) -> list[int]:
        """First section of each buffer."""
        return [runs[0][0] for runs in self.runs]

    @property
    def ends(self) -> list[int]:
        """End of each buffer's last run."""
        return [runs[-1][1] for runs in self.runs]

    def _groups(self) -> list[int]:
        """Return a number for those that could change places, one lying right on the other; or -1.

        They are alive in the same sections, and lie aligned whichever is below.
        """
        numbers: dict[object, int] = {}
        groups = []
        for lifetime, runs in zip(self.problem.lifetimes, self.runs, strict=True):
            alignment = lifetime.alignment_bytes
            if lifetime.offset_bytes is not None or lifetime.size_bytes % alignment:
                groups.append(-1)
            else:
                groups.append(numbers.setdefault((alignment, *runs), len(numbers)))
        return groups

    @cached_property
    def native(self) -> NativeSections:
        """The same for the compiled search."""
        return NativeSections(self)


class _Fields(ctypes.Structure):
    """`Problem` of native/c/canonical_search.c."""

    _fields_ = (
        ("buffer_count", ctypes.c_int32),
        ("section_count", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("size", "alignment", "fixed")),
        *((name, ctypes.c_void_p) for name in ("run_start", "run", "neighbour_start", "neighbour")),
        *((name, ctypes.c_void_p) for name in ("member_start", "member", "group")),
    )


class NativeSections:
    """Owns the arrays that the compiled search reads."""

    def __init__(self, sections: Sections) -> None:
        runs = [list(itertools.chain(*each)) for each in sections.runs]
        run_starts, run_edges = _listed(runs)
        fixed = np.array(sections.fixed, dtype=np.int64)
        self._arrays = (
            *(sections.problem.sizes, sections.problem.alignments, fixed),
            *(run_starts // np.int32(2), run_edges),
            *_listed(sections.neighbours),
            *_listed(sections.members),
            np.array(sections.groups, dtype=np.int32),
        )
        addresses = [address_of(each) for each in self._arrays]
        self.fields = _Fields(len(sections.problem), sections.count, *addresses)


def _listed(lists: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return where each list begins (one more at the end), and all lists behind one another."""
    starts = np.zeros(len(lists) + 1, dtype=np.int32)
    np.cumsum([len(each) for each in lists], out=starts[1:])
    return starts, np.fromiter(itertools.chain(*lists), dtype=np.int32, count=int(starts[-1]))


def _fullest_moments(stretches: Iterable[Run]) -> list[int]:
    """Return the last start before every end that follows one: no more buffers join until then."""
    edges = sorted(
        itertools.chain(*(((first, True), (end, False)) for first, end in stretches)),
    )
    return [
        moment
        for (moment, starts), (_, next_starts) in itertools.pairwise(edges)
        if starts and not next_starts
    ]
