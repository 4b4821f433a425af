"""Response-time bounds of tasks whose segments are not preempted.

On one stream the scheduler is a processor with fixed preemption points, and the bound is that of
the *deadline busy period*: the longest stretch in which only requests that go before the one in
question are run, after at most one segment of somebody who goes after it had just begun.

    S = B(a) + own work before the last segment + sum_j n_j(min(S, a + K - K_j)) C_j
    n_j(t) = floor((t + J_j) / T_j) + 1         response = S + last segment - a

for every instant `a` of the busy period at which one of the n_j changes. `K` is the order's key:
the relative deadline for EDF (George, Rivierre and Spuri, INRIA RR-2966, 1996), the level for
fixed priorities, where it becomes the multi-instance analysis of CAN (Davis, Burns, Bril and
Lukkien 2007) with deferred preemption (Bril, Lukkien and Verhaegh 2009): the last segment is not
preempted, so it is the start of that one that has to be bounded, and every instance in the busy
period has to be looked at, not only the first. J is release jitter: what a pipeline's earlier
stages may vary by (holistic analysis, Tindell and Clark 1994).

On several streams that a task may choose from, and under policies whose order is not known
beforehand, a coarser bound holds: whoever runs between a request's arrival and its end arrived
before that end and was not over before that arrival. Work that only holds it up while it waits
keeps all its streams busy, and is shared out among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from aegis_pipe.analysis.task_set import Order, Task, TaskSet

INSTANTS_MAX = 200_000
"""Most instants of a busy period that are looked at; a set that needs more is not proven."""


@dataclass(frozen=True, slots=True)
class ResponseBound:
    """How long a task's requests take at most, and what that time is made of.

    The parts add up to `response_ns`.
    """

    response_ns: int
    """From the task's origin: a pipeline item's arrival, or the request's own."""
    before_ns: int
    """Of that, until the scheduler knows of the request: earlier stages, host, wake-up."""
    execution_ns: int
    blocking_ns: int
    blocked_by: str
    """The task whose segment blocks; empty if none does."""
    interference_ns: Mapping[str, int]
    """Time that requests which go first take, by task; its own earlier ones under its name."""
    shared_ns: int = 0
    """What running on several streams takes off again."""
    method: str = ""


@dataclass(frozen=True, slots=True)
class Unbounded:
    """No bound exists, or none was found, and why."""

    reason: str
    culprit: str = ""
    """The task that is in the way."""


def response_bounds(task_set: TaskSet) -> dict[str, ResponseBound | Unbounded]:
    """Bound every task that has a period, by name."""
    proven = [task for task in task_set.tasks if task.period_ns is not None]
    jitter_ns = {task.name: task.host_ns + task.wake_ns for task in task_set.tasks}
    while True:
        analysis = _Analysis(task_set, jitter_ns)
        bounds = {task.name: analysis.bound(task) for task in proven}
        later_ns = {task.name: _jitter_ns(task, bounds) for task in task_set.tasks}
        if later_ns == jitter_ns or _is_beyond_hope(proven, bounds):
            return bounds
        jitter_ns = later_ns


def _jitter_ns(task: Task, bounds: Mapping[str, ResponseBound | Unbounded]) -> int:
    ends = (bounds.get(name) for name in task.before)
    latest_ns = max((end.response_ns for end in ends if isinstance(end, ResponseBound)), default=0)
    return latest_ns + task.host_ns + task.wake_ns


def _is_beyond_hope(tasks: Sequence[Task], bounds: Mapping[str, ResponseBound | Unbounded]) -> bool:
    """Whether going on can change nothing about the verdict: jitter and bounds only ever grow."""
    return any(task.before for task in tasks) and any(
        isinstance(bound, Unbounded)
        or (task.deadline_ns is not None and bound.response_ns > 4 * task.deadline_ns)
        for task in tasks
        for bound in (bounds[task.name],)
    )


class _Analysis:
    """One round of analysis with given jitters."""

    def __init__(self, task_set: TaskSet, jitter_ns: Mapping[str, int]) -> None:
        self.task_set = task_set
        self.jitter_ns = jitter_ns

    def bound(self, task: Task) -> ResponseBound | Unbounded:
        """Bound one task by the finest method that holds for it."""
        rivals = [
            other
            for other in self.task_set.tasks
            if other is not task and other.streams & task.streams
        ]
        order = self.task_set.order(task)
        if order is None:
            return self._in_window(task, rivals, rivals, ())
        ranked = _Ranked(self.task_set, self.jitter_ns, task, order, rivals)
        culprit = ranked.unlimited()
        if culprit is not None:
            return _unlimited(task, culprit, self.task_set)
        if ranked.is_held_off():
            # It can not preempt somebody it goes before, and others may preempt that one.
            return self._in_window(task, rivals, rivals, ())
        alone = len(task.streams) == 1 and all(len(other.streams) == 1 for other in rivals)
        if alone:
            return ranked.bound()
        return self._in_window(task, rivals, ranked.rivals_ahead(), ranked.blockers())

    def _in_window(
        self, task: Task, rivals: Sequence[Task], ahead: Sequence[Task], blockers: Sequence[Task]
    ) -> ResponseBound | Unbounded:
        """Bound by what may run between arrival and end; holds if every task keeps its deadline."""
        for other in ahead:
            if other.period_ns is None:
                return _unlimited(task, other, self.task_set)
        preemptors = [
            other for other in ahead if self.task_set.preempts and _may_preempt(other, task, self)
        ]
        waits = [other for other in ahead if other not in preemptors]
        blocker = max(blockers, key=lambda other: other.longest_segment_ns, default=None)
        blocking_ns = blocker.longest_segment_ns if blocker else 0
        assert task.period_ns is not None
        limit_ns = 4 * max(task.deadline_ns or 0, task.period_ns)
        length_ns = task.execution_ns + blocking_ns
        while length_ns <= limit_ns:
            work_ns = {other.name: self._work_in(other, length_ns) for other in ahead}
            own_ns = (self._unfinished(task) - 1) * task.execution_ns
            together_ns = sum(work_ns[other.name] for other in waits) + own_ns
            shared_ns = together_ns - -(-together_ns // len(task.streams))
            needed_ns = task.execution_ns + blocking_ns + sum(work_ns.values()) + own_ns - shared_ns
            if needed_ns <= length_ns:
                before_ns = self.jitter_ns[task.name]
                interference = {name: ns for name, ns in work_ns.items() if ns}
                return ResponseBound(
                    before_ns + needed_ns,
                    before_ns,
                    task.execution_ns,
                    blocking_ns,
                    blocker.name if blocker else "",
                    interference | ({task.name: own_ns} if own_ns else {}),
                    shared_ns,
                    "window",
                )
            length_ns = needed_ns
        return Unbounded(
            f"what may go before it takes more than {limit_ns / 1e6:.1f} ms",
            max(rivals, key=lambda other: other.utilisation, default=task).name,
        )

    def _work_in(self, other: Task, length_ns: int) -> int:
        assert other.period_ns is not None
        open_ns = self._open_ns(other)
        return -(-(length_ns + open_ns) // other.period_ns) * other.execution_ns

    def _unfinished(self, task: Task) -> int:
        """Return how many of a task's own requests can be open at once."""
        assert task.period_ns is not None
        return -(-self._open_ns(task) // task.period_ns)

    def _open_ns(self, task: Task) -> int:
        """Return how long after its origin a request may be open, if deadlines are kept."""
        assert task.period_ns is not None
        promised_ns = task.deadline_ns if task.deadline_ns is not None else task.period_ns
        return promised_ns if task.is_from_origin else promised_ns + self.jitter_ns[task.name]


def _may_preempt(other: Task, task: Task, analysis: _Analysis) -> bool:
    order, own = analysis.task_set.order(other), analysis.task_set.order(task)
    return order is None or own is None or order.level > own.level or order.key_ns < own.key_ns


def _unlimited(task: Task, culprit: Task, task_set: TaskSet) -> Unbounded:
    if task_set.policy == "priority" and task_set.ageing_ns and culprit.priority < task.priority:
        how = "and with ageing its requests go first once they have waited long enough"
    else:
        how = f"and the policy `{task_set.policy}` lets them go first"
    return Unbounded(f"`{culprit.name}` may send any number of requests, {how}", culprit.name)


class _Ranked:
    """A task among rivals whose order is known: who goes before it, and who can only block."""

    def __init__(
        self,
        task_set: TaskSet,
        jitter_ns: Mapping[str, int],
        task: Task,
        order: Order,
        rivals: Sequence[Task],
    ) -> None:
        self._task_set = task_set
        self._task = task
        self._order = order
        self._jitter_ns = jitter_ns
        self._orders = {other.name: _known(task_set.order(other)) for other in rivals}
        self._above = [each for each in rivals if self._orders[each.name].level > order.level]
        self._equal = [each for each in rivals if self._orders[each.name].level == order.level]
        self._below = [each for each in rivals if self._orders[each.name].level < order.level]

    def unlimited(self) -> Task | None:
        """Return a task that may go before it any number of times."""
        return next((each for each in self.rivals_ahead() if each.period_ns is None), None)

    def rivals_ahead(self) -> list[Task]:
        """Return who may go before it."""
        return [*self._above, *self._equal]

    def blockers(self) -> list[Task]:
        """Return who may be in a segment when it arrives, though they go after it."""
        behind = [
            each for each in self._equal if self._orders[each.name].key_ns > self._order.key_ns
        ]
        return [*self._below, *behind]

    def is_held_off(self) -> bool:
        """Whether somebody it goes before shares memory with it and so can not be preempted."""
        return any(each.memory == self._task.memory for each in self.blockers())

    def bound(self) -> ResponseBound | Unbounded:
        """Return the worst response over every instant of its longest busy period."""
        task = self._task
        if self._load >= 1:
            heaviest = max((*self.rivals_ahead(), task), key=lambda each: each.utilisation)
            return Unbounded(
                f"it and what goes before it take {self._load:.1%} of the stream", heaviest.name
            )
        worst: ResponseBound | None = None
        for count, instant_ns in enumerate(self._instants()):
            if count == INSTANTS_MAX:
                return Unbounded(
                    f"its busy period has more than {INSTANTS_MAX} instants to look at", task.name
                )
            found = self._response_at(instant_ns)
            if worst is None or found.response_ns > worst.response_ns:
                worst = found
        assert worst is not None
        return worst

    @cached_property
    def _load(self) -> float:
        return sum(each.utilisation for each in (*self.rivals_ahead(), self._task))

    def _busy_ns(self) -> int:
        """Return the length of the longest stretch in which it or somebody before it is open."""
        everyone = [*self.rivals_ahead(), self._task]
        blocking_ns = max((each.longest_segment_ns for each in self.blockers()), default=0)
        length_ns = blocking_ns + sum(each.execution_ns for each in everyone)
        while True:
            needed_ns = blocking_ns + sum(
                self._count(each, length_ns - 1) * each.execution_ns for each in everyone
            )
            if needed_ns <= length_ns:
                return length_ns
            length_ns = needed_ns

    def _instants(self) -> Iterator[int]:
        """Yield the instants of arrival to look at: where a count changes, and the first.

        Between two of them the same requests go before it, and arriving later is no worse.
        """
        busy_ns = self._busy_ns()
        seen = {0}
        yield 0
        own = self._order.key_ns
        for each in (self._task, *self._equal):
            assert each.period_ns is not None
            shift_ns = self._key_of(each) - own - self._jitter_ns[each.name]
            first = max(0, -(shift_ns // each.period_ns))
            instant_ns = first * each.period_ns + shift_ns
            while instant_ns < busy_ns:
                if instant_ns not in seen:
                    seen.add(instant_ns)
                    yield instant_ns
                instant_ns += each.period_ns

    def _key_of(self, each: Task) -> int:
        return self._order.key_ns if each is self._task else self._orders[each.name].key_ns

    def _count(self, each: Task, until_ns: int) -> int:
        """Return how many requests may arrive from the busy period's start to an instant."""
        assert each.period_ns is not None
        return max(0, (until_ns + self._jitter_ns[each.name]) // each.period_ns + 1)

    def _response_at(self, instant_ns: int) -> ResponseBound:
        """Return the response of a request that arrives at an instant of the busy period."""
        task = self._task
        blocker = self._blocker_at(instant_ns)
        # It began a nanosecond earlier at the latest: what comes at one instant is ranked first.
        blocking_ns = blocker.longest_segment_ns - 1 if blocker else 0
        own_before = self._count(task, instant_ns) - 1
        last_ns = task.segments_ns[-1]
        fixed_ns = blocking_ns + (own_before + 1) * task.execution_ns - last_ns
        start_ns = fixed_ns
        while True:
            counts = self._counts_ahead(instant_ns, start_ns)
            needed_ns = fixed_ns + sum(
                counts[each.name] * each.execution_ns for each in self.rivals_ahead()
            )
            if needed_ns == start_ns:
                break
            start_ns = needed_ns
        before_ns = self._jitter_ns[task.name]
        response_ns = max(start_ns + last_ns - instant_ns, task.execution_ns)
        interference = {
            each.name: counts[each.name] * each.execution_ns
            for each in self.rivals_ahead()
            if counts[each.name]
        }
        own_ns = response_ns - task.execution_ns - blocking_ns - sum(interference.values())
        return ResponseBound(
            before_ns + response_ns,
            before_ns,
            task.execution_ns,
            blocking_ns,
            blocker.name if blocker else "",
            # What is left is its own earlier requests, less the time that passed before it came.
            interference | ({task.name: own_ns} if own_ns else {}),
            method="busy period",
        )

    def _counts_ahead(self, instant_ns: int, start_ns: int) -> dict[str, int]:
        counts = {each.name: self._count(each, start_ns) for each in self._above}
        for each in self._equal:
            latest_ns = instant_ns + self._order.key_ns - self._orders[each.name].key_ns
            counts[each.name] = self._count(each, min(start_ns, latest_ns))
        return counts

    def _blocker_at(self, instant_ns: int) -> Task | None:
        """Return whose segment may have just begun when the busy period does."""
        latest_ns = instant_ns + self._order.key_ns
        if self._task_set.policy == "edf":
            # A deadline may be as much earlier as the request came late.
            latest_ns -= self._jitter_ns[self._task.name]
        behind = [each for each in self._equal if self._orders[each.name].key_ns > latest_ns]
        return max((*self._below, *behind), key=lambda each: each.longest_segment_ns, default=None)


def _known(order: Order | None) -> Order:
    assert order is not None, "a policy knows the order of all its tasks or of none"
    return order
