"""From lifetimes to offsets: static memory planning.

Deterministic: the same lifetimes give the same plan, in every process and on every machine.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from types import MappingProxyType

from aegis_pipe.errors import InvalidLifetimeError
from aegis_pipe.memory.lifetimes import TensorLifetime
from aegis_pipe.memory.packing import PackingProblem
from aegis_pipe.memory.plan import AllocationPlan
from aegis_pipe.memory.search import STRATEGIES, Search

_WORK_PER_SECOND = 8_000_000
"""Neighbours looked at per second on a middling core; turns a time limit into a count."""

_LARGEST_TOTAL_BYTES = 1 << 62
"""Sums of sizes are computed in 64 bits; padding for alignment at most doubles them."""


class MemoryPlanner:
    """Finds small plans for tensors whose sizes and lifetimes are known.

    It stops at the first plan that fits `capacity_bytes`, without a capacity at the first that
    reaches the lower bound, and otherwise when its work is used up. `time_limit_s` is turned into
    a count of elementary steps at a nominal speed and no clock is read, so a slow machine finds
    the same plan, only later. At least one plan is always made, even if it takes longer.
    """

    def __init__(self, capacity_bytes: int | None = None, time_limit_s: float = 2.0) -> None:
        self._capacity_bytes = capacity_bytes
        self._work = int(time_limit_s * _WORK_PER_SECOND)

    def plan(self, lifetimes: Sequence[TensorLifetime]) -> AllocationPlan:
        """Return the best plan found; one that does not fit the capacity is returned too.

        Raises InvalidLifetimeError (a ValueError) naming the first lifetime that is impossible.
        """
        _validate(lifetimes)
        problem = PackingProblem.build(lifetimes)
        search = Search(problem, target_bytes=self._capacity_bytes or 0, work=self._work)
        for strategy in STRATEGIES:
            if not search.finished:
                strategy(search)
        return _plan_of(search, lifetimes)


def _plan_of(search: Search, lifetimes: Sequence[TensorLifetime]) -> AllocationPlan:
    offsets: dict[Hashable, int] = {each.tensor_id: 0 for each in lifetimes}
    for lifetime, offset in zip(search.problem.lifetimes, search.offsets, strict=True):
        offsets[lifetime.tensor_id] = offset
    return AllocationPlan(
        offsets=MappingProxyType(offsets),
        peak_bytes=search.peak_bytes or 0,
        lower_bound_bytes=search.lower_bound_bytes,
        algorithm=search.algorithm,
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
    if sum(each.size_bytes + each.alignment_bytes for each in lifetimes) > _LARGEST_TOTAL_BYTES:
        raise InvalidLifetimeError("the sizes and alignments add up to more than 4 EiB")


def _problem_with(lifetime: TensorLifetime) -> str:
    if lifetime.size_bytes < 0:
        return f"size_bytes is {lifetime.size_bytes}, but must not be negative"
    if lifetime.first >= lifetime.end:
        return (
            f"the interval [{lifetime.first}, {lifetime.end}) is empty, but first must be below end"
        )
    if lifetime.alignment_bytes < 1:
        return f"alignment_bytes is {lifetime.alignment_bytes}, but must be at least 1"
    return ""
