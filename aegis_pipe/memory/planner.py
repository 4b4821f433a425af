"""From lifetimes to offsets: static memory planning.

Deterministic: the same lifetimes give the same plan, in every process and on every machine, unless
the clock had to cut the search off; then the plan says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from types import MappingProxyType

from aegis_pipe.clock import Clock, SystemClock
from aegis_pipe.errors import InvalidLifetimeError
from aegis_pipe.memory.check import check_lifetimes
from aegis_pipe.memory.lifetimes import TensorLifetime
from aegis_pipe.memory.packing import PackingProblem
from aegis_pipe.memory.plan import AllocationPlan
from aegis_pipe.memory.search import STRATEGIES, Search

_WORK_PER_SECOND = 6_000_000
"""Neighbours looked at per second on a slow core; turns a time limit into a count."""

_LARGEST_TOTAL_BYTES = 1 << 62
"""Sums of sizes are computed in 64 bits; padding for alignment at most doubles them."""


class MemoryPlanner:
    """Finds small plans for tensors whose sizes and lifetimes are known.

    It stops at the first plan that fits `capacity_bytes`, without a capacity at the first that
    reaches the lower bound, and otherwise when its work is used up: `time_limit_s` is turned into a
    count of elementary steps at a speed that ordinary machines exceed. Only where the count takes
    longer than the limit (a slow machine, or no compiled search) does the clock cut it off, and
    `AllocationPlan.cut_off` says so. At least one plan is always made, even if it takes longer.
    """

    def __init__(
        self,
        capacity_bytes: int | None = None,
        time_limit_s: float = 2.0,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._capacity_bytes = capacity_bytes
        self._work = int(time_limit_s * _WORK_PER_SECOND)
        self._limit_ns = int(time_limit_s * 1e9)
        self._clock = clock or SystemClock()

    def plan(self, lifetimes: Sequence[TensorLifetime]) -> AllocationPlan:
        """Return the best plan found; one that does not fit the capacity is returned too.

        Raises InvalidLifetimeError (a ValueError) naming the first lifetime that is impossible.
        """
        _validate(lifetimes)
        problem = PackingProblem.build(lifetimes)
        end_ns = self._clock.now_ns() + self._limit_ns
        search = Search(
            problem,
            target_bytes=self._capacity_bytes or 0,
            work=self._work,
            is_late=lambda: self._clock.now_ns() > end_ns,
        )
        for strategy in STRATEGIES:
            if not search.finished:
                strategy(search)
        return _plan_of(search, lifetimes)


def _plan_of(search: Search, lifetimes: Sequence[TensorLifetime]) -> AllocationPlan:
    # Tensors without bytes are not packed; only a fixed place of theirs counts.
    offsets: dict[Hashable, int] = {each.tensor_id: each.offset_bytes or 0 for each in lifetimes}
    empty_end = max(offsets.values(), default=0)
    for lifetime, offset in zip(search.problem.lifetimes, search.offsets, strict=True):
        offsets[lifetime.tensor_id] = offset
    return AllocationPlan(
        offsets=MappingProxyType(offsets),
        peak_bytes=max(search.peak_bytes or 0, empty_end),
        lower_bound_bytes=max(search.lower_bound_bytes, empty_end),
        algorithm=search.algorithm,
        cut_off=search.cut_off,
    )


def _validate(lifetimes: Sequence[TensorLifetime]) -> None:
    seen: set[Hashable] = set()
    for lifetime in lifetimes:
        problem = _problem_with(lifetime)
        if problem:
            raise InvalidLifetimeError(problem, context=f"lifetime of `{lifetime.tensor_id}`")
        if lifetime.tensor_id in seen:
            raise InvalidLifetimeError(
                f"`{lifetime.tensor_id}` has two lifetimes",
                hint="give each tensor an id of its own",
            )
        seen.add(lifetime.tensor_id)
    _refuse_fixed_overlaps([each for each in lifetimes if each.offset_bytes is not None])
    if sum(each.size_bytes + each.alignment_bytes for each in lifetimes) > _LARGEST_TOTAL_BYTES:
        raise InvalidLifetimeError("the sizes and alignments add up to more than 4 EiB")


def _problem_with(lifetime: TensorLifetime) -> str:
    if lifetime.size_bytes < 0:
        return f"size_bytes is {lifetime.size_bytes}, but must not be negative"
    if lifetime.first >= lifetime.end:
        return (
            f"the interval [{lifetime.first}, {lifetime.end}) is empty, but first must be below end"
        )
    if lifetime.gaps:
        edges = [lifetime.first, *itertools.chain(*lifetime.gaps), lifetime.end]
        if any(late <= early for early, late in itertools.pairwise(edges)):
            return f"the gaps {lifetime.gaps} do not ascend strictly inside the interval"
    if lifetime.alignment_bytes < 1:
        return f"alignment_bytes is {lifetime.alignment_bytes}, but must be at least 1"
    offset_bytes = lifetime.offset_bytes
    if offset_bytes and (offset_bytes < 0 or offset_bytes % lifetime.alignment_bytes):
        return (
            f"offset_bytes is {offset_bytes}, but must be a multiple of {lifetime.alignment_bytes}"
        )
    return ""


def _refuse_fixed_overlaps(fixed: Sequence[TensorLifetime]) -> None:
    offsets = {each.tensor_id: each.offset_bytes or 0 for each in fixed}
    peak_bytes = max((offsets[each.tensor_id] + each.size_bytes for each in fixed), default=0)
    clashes = check_lifetimes(fixed, AllocationPlan(offsets, peak_bytes, peak_bytes, "fixed"))
    if clashes:
        raise InvalidLifetimeError(
            f"two fixed offsets clash: {clashes[0].message}",
            hint="give them places that do not overlap while both are alive",
        )
