"""Turns dependencies that cross streams into the fewest records and waits.

Work on one stream runs in order, so only edges between streams need events, and of those only
the ones that no earlier wait already implies. Which are implied is found with vector clocks
(Mattern 1989): for each piece of work, the last position on every stream that is known to have
finished before it starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Dependency(NamedTuple):
    """`consumer` reads what `producer` wrote; both are positions in the program."""

    producer: int
    consumer: int
    tensor: str


@dataclass(frozen=True, slots=True)
class Synchronisation:
    """Record an event after one piece of work, wait for it before another."""

    record_after: int
    wait_before: int
    record_lane: int
    wait_lane: int
    tensor: str
    """The first tensor that makes it necessary."""


class DependencyTracker:
    """The waits that a program spread over several lanes (streams) needs.

    `lanes[i]` is the lane of the i-th piece of work; each lane runs its work in program order,
    and every dependency points forwards.
    """

    def __init__(self, lanes: Sequence[int], dependencies: Sequence[Dependency]) -> None:
        for dependency in dependencies:
            assert dependency.producer < dependency.consumer, f"{dependency} points backwards"
        self._lanes = tuple(lanes)
        self._by_consumer: dict[int, list[Dependency]] = {}
        for dependency in dependencies:
            self._by_consumer.setdefault(dependency.consumer, []).append(dependency)

    def synchronisations(self) -> tuple[Synchronisation, ...]:
        """Return the waits in program order; O(work x lanes + dependencies log dependencies)."""
        lane_count = max(self._lanes, default=0) + 1
        finished_before: list[list[int]] = []
        latest_on_lane: list[list[int]] = [[-1] * lane_count for _ in range(lane_count)]
        needed: list[Synchronisation] = []
        for position, lane in enumerate(self._lanes):
            known = list(latest_on_lane[lane])
            # Latest producer first: waiting for it may imply the earlier ones.
            for edge in sorted(self._by_consumer.get(position, ()), key=lambda e: -e.producer):
                source = self._lanes[edge.producer]
                if known[source] >= edge.producer:
                    continue
                needed.append(Synchronisation(edge.producer, position, source, lane, edge.tensor))
                known = list(map(max, known, finished_before[edge.producer]))
            known[lane] = position
            finished_before.append(known)
            latest_on_lane[lane] = known
        return tuple(needed)
