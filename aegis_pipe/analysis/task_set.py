"""What is to be proven: tasks with their costs, on streams, under a policy seen as an order."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple


class Order(NamedTuple):
    """Where a task's requests stand in a policy's order.

    Of two requests the one of the higher `level` goes first; of one level, the one whose arrival
    plus `key_ns` is earlier.
    """

    level: int
    key_ns: int


@dataclass(frozen=True, slots=True)
class Task:
    """Requests of one model from one place: a caller, or a pipeline's stage."""

    name: str
    """`detector`, or `camera/detect` for a pipeline's stage."""
    model: str
    source: str
    """What its rate belongs to: the pipeline, or the model itself."""
    segments_ns: tuple[int, ...]
    """Longest time each segment holds its stream."""
    total_ns: int = 0
    """Longest time of all segments together, where it is known to be less than their sum."""
    period_ns: int | None = None
    """Shortest time between two requests; None: they come as they please (best effort)."""
    deadline_ns: int | None = None
    """None: nothing is promised, but its load counts."""
    priority: int = 0
    before: tuple[str, ...] = ()
    """Tasks of the same pipeline whose results it needs."""
    is_from_origin: bool = False
    """The deadline counts from the item's arrival at the pipeline, not from the request's."""
    host_ns: int = 0
    """Longest time on the host between what it waits for and its submission."""
    wake_ns: int = 0
    """Longest time from a submission until the scheduler can act on it."""
    memory: Hashable = 0
    """Tasks of one value share memory on a stream; none of them preempts another."""
    streams: frozenset[int] = frozenset((0,))
    """Where it may run."""

    @property
    def execution_ns(self) -> int:
        """Time that one request holds its stream."""
        return self.total_ns or sum(self.segments_ns)

    @property
    def longest_segment_ns(self) -> int:
        """The longest stretch that can not be preempted."""
        return max(self.segments_ns)

    @property
    def utilisation(self) -> float:
        """Share of one stream that it takes; 0 for best effort."""
        return self.execution_ns / self.period_ns if self.period_ns else 0.0


@dataclass(frozen=True, slots=True)
class TaskSet:
    """Everything that shares a device, and the rule by which it does."""

    tasks: tuple[Task, ...]
    policy: str
    ageing_ns: int = 0
    """Of `priority`: waiting time that is worth one level."""
    stream_count: int = 1

    def order(self, task: Task) -> Order | None:
        """Return a task's place under the policy; None if its order is not known beforehand.

        `fifo`      arrival alone
        `priority`  levels without ageing; with it, `arrival - ageing * priority` (see its policy)
        `edf`       arrival + deadline; requests without one come after all others
        """
        if self.policy == "fifo":
            return Order(0, 0)
        if self.policy == "priority":
            if self.ageing_ns:
                return Order(0, -self.ageing_ns * task.priority)
            return Order(task.priority, 0)
        if self.policy == "edf":
            return Order(-1, 0) if task.deadline_ns is None else Order(0, task.deadline_ns)
        return None

    @property
    def preempts(self) -> bool:
        """Whether somebody may take another's stream at a segment boundary."""
        return self.policy not in ("fifo", "fairness")
