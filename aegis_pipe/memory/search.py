"""Strategies that look for a good plan, one after the other, until it is good enough.

A strategy takes a `Search`, offers it orders (or finished offsets), and returns when the search
is finished or it has nothing more to try. A new one is a function more in `STRATEGIES`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cached_property

from aegis_pipe.memory.canonical_search import (
    FIRST_WORK_LIMIT,
    FixedOrders,
    make_canonical_attempt,
)
from aegis_pipe.memory.exact_search import BUFFERS_MAX, Outcome, Restarts
from aegis_pipe.memory.orders import GREEDY_ORDERS, greedy_order
from aegis_pipe.memory.packing import PackingProblem, make_placer
from aegis_pipe.memory.sections import Sections


class Search:
    """The best plan found so far, what would be good enough, and how much work is left."""

    def __init__(
        self,
        problem: PackingProblem,
        *,
        target_bytes: int,
        work: int,
        is_late: Callable[[], bool] = lambda: False,
    ) -> None:
        self.problem = problem
        self.target_bytes = target_bytes
        """A plan of this size is good enough."""
        self.cut_off = False
        """Whether the clock ended it, and not the count of its work."""
        self.lower_bound_bytes = problem.lower_bound_bytes
        """A strategy that proves a better bound raises it."""
        self.offsets: list[int] = []
        self.order: Sequence[int] = ()
        self.peak_bytes: int | None = None
        self.algorithm = "nothing to place"
        self._placer = make_placer(problem)
        self._sizes: list[int] = problem.sizes.tolist()
        self._work_limit = work
        self._is_late = is_late

    @property
    def finished(self) -> bool:
        """Whether the plan is good enough, or there is one and the work is used up."""
        if self.peak_bytes is None:
            return not len(self.problem)
        if self.is_good_enough or self.work_left <= 0:
            return True
        self.cut_off = self._is_late()
        return self.cut_off

    @property
    def is_good_enough(self) -> bool:
        """Whether the plan reaches the target or the bound."""
        wanted_bytes = max(self.target_bytes, self.lower_bound_bytes)
        return self.peak_bytes is not None and self.peak_bytes <= wanted_bytes

    @property
    def work_left(self) -> int:
        """What may still be spent, in neighbours looked at."""
        return self._work_limit - self._placer.work

    def try_order(self, order: Sequence[int], algorithm: str, *, keep_ties: bool = False) -> bool:
        """Place in this order; keep the plan if it is better (with `keep_ties`: not worse)."""
        limit = self.peak_bytes if self.peak_bytes is None or keep_ties else self.peak_bytes - 1
        offsets = self._placer.place(order, limit)
        if offsets is None:
            return False
        self.offer(offsets, algorithm)
        self.order = order
        return True

    def offer(self, offsets: list[int], algorithm: str) -> None:
        """Take over a plan that is not worse, and the name of who improved the peak."""
        peak = max(map(int.__add__, offsets, self._sizes))
        assert self.peak_bytes is None or peak <= self.peak_bytes, "a worse plan is offered"
        if self.peak_bytes is None or peak < self.peak_bytes:
            self.algorithm = algorithm
        self.offsets, self.peak_bytes = offsets, peak

    def spend(self, work: int) -> None:
        """Count work done outside `try_order`, in neighbours looked at."""
        self._work_limit -= work

    def top_of(self, buffers: Sequence[int]) -> int:
        """Return the largest end of some buffers in the present plan."""
        return max(self.offsets[buffer] + self._sizes[buffer] for buffer in buffers)

    def part(self, buffers: Sequence[int], target_bytes: int, shares: int) -> Search:
        """Return a search for some buffers alone, from where they are, with a share of the work."""
        part = Search(
            PackingProblem(tuple(self.problem.lifetimes[buffer] for buffer in buffers)),
            target_bytes=target_bytes,
            work=self.work_left // shares,
            is_late=self._is_late,
        )
        part.offsets = [self.offsets[buffer] for buffer in buffers]
        part.peak_bytes, part.algorithm = self.top_of(buffers), self.algorithm
        return part

    def tops_above(self, bytes_: int) -> list[int]:
        """Return the buffers that end above an offset in the present plan."""
        spans = zip(self.offsets, self._sizes, strict=True)
        return [buffer for buffer, (offset, size) in enumerate(spans) if offset + size > bytes_]


_PATIENCE = 50_000
"""Hill climbing ends after so many places given to buffers without a smaller peak."""

Strategy = Callable[[Search], None]


def greedy(search: Search) -> None:
    """Try every greedy order once."""
    for name in GREEDY_ORDERS:
        if search.finished:
            return
        search.try_order(greedy_order(search.problem, name), f"greedy {name}")


def hill_climb(search: Search) -> None:
    """Blame a buffer above the bound: place it before an earlier one that is in its way.

    Moves to plans of the same peak are made too, because most moves change nothing at the top.
    Seeded, so that the same problem gives the same plan on every machine.
    """
    generator = random.Random(20_030_901)
    firsts: list[int] = search.problem.firsts.tolist()
    ends: list[int] = search.problem.ends.tolist()
    peak_bytes, patience = search.peak_bytes, _PATIENCE // len(search.problem)
    while not search.finished and patience:
        patience -= 1
        if search.peak_bytes != peak_bytes:
            peak_bytes, patience = search.peak_bytes, _PATIENCE // len(search.problem)
        # `random()` alone is stable across Python versions, `choice` and `randrange` are not.
        blamed = search.tops_above(search.lower_bound_bytes)
        buffer = blamed[int(generator.random() * len(blamed))]
        place = search.order.index(buffer)
        in_its_way = [
            position
            for position, other in enumerate(search.order[:place])
            if firsts[other] < ends[buffer] and firsts[buffer] < ends[other]
        ]
        search.spend(len(search.order))
        if not in_its_way:
            continue
        target = in_its_way[int(generator.random() * len(in_its_way))]
        order = list(search.order)
        order.insert(target, order.pop(place))
        search.try_order(order, "hill climbing", keep_ties=True)


def exact(search: Search) -> None:
    """Search exactly, section by section: sections do not meet in time, so each is on its own."""
    wanted_bytes = max(search.target_bytes, search.lower_bound_bytes)
    share = 1 if search.target_bytes > search.lower_bound_bytes else 2
    sections = [
        section
        for section in search.problem.sections()
        if len(section) <= BUFFERS_MAX and search.top_of(section) > wanted_bytes
    ]
    for number, section in enumerate(sections):
        part = search.part(section, wanted_bytes, len(sections) - number)
        before = part.work_left
        _exact_section(part, share)
        search.spend(before - part.work_left)
        search.lower_bound_bytes = max(search.lower_bound_bytes, part.lower_bound_bytes)
        offsets = list(search.offsets)
        for buffer, offset in zip(section, part.offsets, strict=True):
            offsets[buffer] = offset
        search.offer(offsets, part.algorithm)
        if search.finished:
            return


def _exact_section(search: Search, share: int) -> None:
    """Look for a plan of the wanted size; then for ever smaller and possible sizes.

    Without a capacity, half of the work goes into the lower bound, because that is where good plans
    nearly always end; then the sizes between the bound and the best plan are bisected from below:
    each gets half of what is left. A size that is proven impossible raises the bound.
    """
    engines = _Engines(search.problem)
    low = max(search.target_bytes, search.lower_bound_bytes)
    size = low
    while not search.finished:
        end = search.work_left - search.work_left // share
        outcome = Outcome.GAVE_UP
        while outcome is Outcome.GAVE_UP and not search.finished and search.work_left >= end:
            before = engines.work
            outcome = engines.run(size, search.work_left)
            search.spend((engines.work - before) // _MOMENTS_PER_NEIGHBOUR + 1)
        if outcome is Outcome.FOUND:
            search.offer(engines.offsets, "exact search")
        else:
            low = size + 1
            if outcome is Outcome.NONE:
                search.lower_bound_bytes = max(search.lower_bound_bytes, low)
        assert search.peak_bytes is not None
        if low >= search.peak_bytes:
            return
        size = (low + search.peak_bytes - 1) // 2
        share = 2


class _Engines:
    """Three searches in turns: each soon finds what the others do not.

    The exact search, the canonical search in orders that are given, and the same in orders that
    learn. The turn goes to the one that has used least of its share, in moments that the exact
    search looks at: work is a count, so that turns do not depend on the machine. The exact search
    does not know gaps and fixed offsets.
    """

    def __init__(self, problem: PackingProblem) -> None:
        self._problem = problem
        self._work_of = dict.fromkeys(_SHARES, 0)
        if not problem.is_plain:
            del self._work_of["_exact"]
        self.offsets: list[int] = []
        """The plan that was found last."""

    @property
    def work(self) -> int:
        """All work so far, in moments of buffers that the exact search looks at."""
        return sum(self._work_of.values())

    def run(self, size: int, neighbours_left: int) -> Outcome:
        """Make the next attempt, with the search whose turn it is."""
        # Of equals the first.
        name = min(self._work_of, key=lambda each: self._work_of[each] // _SHARES[each])
        search: Restarts | FixedOrders = getattr(self, name)
        limit = neighbours_left * _MOMENTS_PER_NEIGHBOUR
        if name == "_exact":
            outcome = search.run(size, limit)
            self._work_of[name] = search.work
        else:
            outcome = search.run(size, limit * _CHEAPER)
            self._work_of[name] = search.work // _CHEAPER
        if outcome is Outcome.FOUND:
            self.offsets = search.offsets
        return outcome

    # Made when their first turn comes: most problems are solved before.
    @cached_property
    def _exact(self) -> Restarts:
        return Restarts(self._problem)

    @cached_property
    def _fixed(self) -> FixedOrders:
        return FixedOrders(self._sections)

    @cached_property
    def _learning(self) -> Restarts:
        attempt = make_canonical_attempt(self._sections)
        return Restarts(
            self._problem, attempt=attempt, plain_areas_first=True, first_limit=FIRST_WORK_LIMIT
        )

    @cached_property
    def _sections(self) -> Sections:
        return Sections(self._problem)


_SHARES = {"_exact": 2, "_fixed": 1, "_learning": 1}

_CHEAPER = 3
"""Looks of the canonical search in the time of one of the exact search."""

_MOMENTS_PER_NEIGHBOUR = 10
"""Moments that the compiled search looks at in the time in which a placer looks at a neighbour."""

STRATEGIES: tuple[Strategy, ...] = (greedy, exact, hill_climb)
"""In the order in which they are tried; each goes on from what the ones before have found."""
