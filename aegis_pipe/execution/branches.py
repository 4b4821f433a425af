"""Which steps of a model may run side by side: forks, found from who reads what of whom.

A *fork* is a stretch of steps that falls into parts between which nothing passes: its *branches*.
All of them begin when everything before the stretch has ended, and what follows begins when all of
them have. Within a branch steps keep their order, and outside of forks everything does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from aegis_pipe.device.protocols import Fork
from aegis_pipe.tensor import TensorId

BRANCHES_MAX = 8
"""More do not run at once: small ones share a branch."""
STEPS_MAX = 64
"""A fork has no more, so that looking for forks takes time in proportion to a model."""


class Work(NamedTuple):
    """What a step does, as far as it matters to who may run beside it."""

    reads: tuple[TensorId, ...]
    writes: tuple[TensorId, ...]
    launch_ns: float
    """What it lasts however little there is to do; other steps' work fits in beside it."""
    busy_ns: float
    """What it lasts because it keeps the device busy."""
    apart: bool = False
    """It is in no fork: what it needs to come before it is more than who writes what it reads."""

    @property
    def duration_ns(self) -> float:
        """How long it takes alone; 0 where no kernel runs."""
        return self.launch_ns + self.busy_ns


def find_forks(steps: Sequence[Work], fork_ns: float) -> tuple[Fork, ...]:
    """Return the forks that together save most time, as positions of steps in which a kernel runs.

    They are in order and share no step; each branch ascends, and branches are by their first steps.

    `fork_ns` is what a fork costs. A fork lasts as long as the longest of its branches, or as all
    of its steps keep the device busy, whichever is longer. Which stretches to take is found by
    dynamic programming over where they end, in O(steps * STEPS_MAX * log); of equal choices
    the one with fewer forked steps is taken.
    """
    writer = {tensor: at for at, step in enumerate(steps) for tensor in step.writes}
    saves = [0.0] * (len(steps) + 1)
    taken: list[int | None] = [None] * (len(steps) + 1)
    """Of every step where the fork ends that begins there, if one does."""
    # From behind: what stretches that begin at a step save, and the best of what follows.
    for first in range(len(steps) - 1, -1, -1):
        best = saves[first + 1]
        until: int | None = None
        for end, saved_ns in _savings(steps, writer, first, fork_ns):
            if saved_ns > 0 and saved_ns + saves[end] > best:
                best, until = saved_ns + saves[end], end
        saves[first], taken[first] = best, until
    forks, at = [], 0
    while at < len(steps):
        until = taken[at]
        if until is None:
            at += 1
        else:
            forks.append(_branches(steps, writer, at, until))
            at = until
    return tuple(forks)


def _savings(
    steps: Sequence[Work], writer: dict[TensorId, int], first: int, fork_ns: float
) -> list[tuple[int, float]]:
    """Return of the stretches from a step on where they end and what forking each would save."""
    parts = _Parts(first)
    savings = []
    for at in range(first, min(first + STEPS_MAX, len(steps))):
        step = steps[at]
        if step.apart:
            break
        parts.add(step, writer)
        if len(parts.lasts) > 1:
            savings.append((at + 1, parts.saved_ns() - fork_ns))
    return savings


def _branches(steps: Sequence[Work], writer: dict[TensorId, int], first: int, end: int) -> Fork:
    parts = _Parts(first)
    for at in range(first, end):
        parts.add(steps[at], writer)
    members: dict[int, list[int]] = {}
    for at in range(first, end):
        if steps[at].duration_ns:
            members.setdefault(parts.root(at), []).append(at)
    # The longest first, each to who has least so far.
    branches: list[list[int]] = [[] for _ in range(min(BRANCHES_MAX, len(members)))]
    loads = [0.0] * len(branches)
    for root in sorted(members, key=lambda each: (-parts.lasts[each], each)):
        least = loads.index(min(loads))
        loads[least] += parts.lasts[root]
        branches[least] += members[root]
    return tuple(sorted(tuple(sorted(branch)) for branch in branches))


class _Parts:
    """Steps of a stretch, joined to those whose results they read."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._parent: list[int] = []
        self.lasts: dict[int, float] = {}
        """How long each part lasts, but for those in which no kernel runs."""
        self._busy_ns = 0.0
        self._total_ns = 0.0
        self._launch_ns = math.inf

    def add(self, step: Work, writer: dict[TensorId, int]) -> None:
        """Add the step behind the last."""
        at = self._first + len(self._parent)
        self._parent.append(at)
        if step.duration_ns:
            self.lasts[at] = step.duration_ns
            self._launch_ns = min(self._launch_ns, step.launch_ns)
        self._busy_ns += step.busy_ns
        self._total_ns += step.duration_ns
        for tensor in step.reads:
            source = writer.get(tensor, -1)
            if self._first <= source < at:
                self._join(self.root(source), self.root(at))

    def saved_ns(self) -> float:
        """Return what is saved if each part runs beside the others."""
        return self._total_ns - max(*self.lasts.values(), self._busy_ns + self._launch_ns)

    def root(self, at: int) -> int:
        """Return the step that stands for the part that a step is in."""
        while (parent := self._parent[at - self._first]) != at:
            self._parent[at - self._first] = at = self._parent[parent - self._first]
        return at

    def _join(self, one: int, other: int) -> None:
        if one == other:
            return
        one, other = sorted((one, other))
        self._parent[other - self._first] = one
        lasts = self.lasts.pop(one, 0.0) + self.lasts.pop(other, 0.0)
        if lasts:
            self.lasts[one] = lasts
