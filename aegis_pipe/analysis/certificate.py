"""The proof that a task set keeps its deadlines, or the refusal with what would help."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from aegis_pipe.analysis.response_time import ResponseBound, Unbounded, response_bounds
from aegis_pipe.analysis.task_set import Task, TaskSet

FACTOR_STEP = 1e-3
"""How finely the fastest rate that passes is searched for: to a part in a thousand."""
SLOWEST = 64.0
"""A rate that would have to fall below a sixty-fourth is no change worth naming."""


class Verdict(enum.StrEnum):
    """What became of a task's promise."""

    PROVEN = "proven"
    REFUSED = "refused"
    NO_PROMISE = "no promise"
    """It has no deadline; its load is in everybody else's bound."""


@dataclass(frozen=True, slots=True)
class TaskProof:
    """What was found out about one task."""

    task: Task
    verdict: Verdict
    bound: ResponseBound | None
    """None if there is no bound, or if the task has no period."""
    reason: str = ""
    """Why it was refused."""

    @property
    def slack_ns(self) -> int | None:
        """Time between bound and deadline; negative if it is refused for its bound."""
        if self.bound is None or self.task.deadline_ns is None:
            return None
        return self.task.deadline_ns - promised_from_origin(self.task, self.bound)


def promised_from_origin(task: Task, bound: ResponseBound) -> int:
    """Return the part of a bound that the task's deadline counts."""
    if task.is_from_origin or not task.before:
        return bound.response_ns
    # The request's own deadline starts at its submission.
    return bound.response_ns - bound.before_ns + task.wake_ns


@dataclass(frozen=True, slots=True)
class Change:
    """A change after which every promise is proven."""

    what: str
    """`rate`, `segment`, `stream` or `drop`."""
    subject: str
    """The model it concerns; empty for the whole device."""
    text: str
    size: float
    """How much is changed, for comparing: the logarithm of the factor; a stream or a model
    counts as more than any factor of two."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """The outcome for a whole task set."""

    task_set: TaskSet
    proofs: tuple[TaskProof, ...]
    changes: tuple[Change, ...] = ()
    """What would make a refused set pass, the smallest first."""

    @property
    def is_proven(self) -> bool:
        """Whether every promise is kept."""
        return all(proof.verdict is not Verdict.REFUSED for proof in self.proofs)

    @property
    def refused(self) -> tuple[TaskProof, ...]:
        """The promises that can not be shown to be kept."""
        return tuple(proof for proof in self.proofs if proof.verdict is Verdict.REFUSED)

    def proof(self, name: str) -> TaskProof:
        """Return a task's proof; KeyError if there is none of that name."""
        for proof in self.proofs:
            if proof.task.name == name:
                return proof
        raise KeyError(name)


Recut = Callable[[int], Mapping[str, tuple[int, ...]]]
"""Segment durations by task if no segment were longer than this, as far as kernels allow."""


def certify(task_set: TaskSet, recut: Recut | None = None) -> Certificate:
    """Prove or refuse a task set; a refusal comes with the changes that would make it pass."""
    certificate = _certify(task_set)
    if certificate.is_proven:
        return certificate
    changes = sorted(_changes(task_set, recut), key=lambda change: (change.size, change.text))
    return replace(certificate, changes=tuple(changes))


def _certify(task_set: TaskSet) -> Certificate:
    bounds = response_bounds(task_set)
    return Certificate(task_set, tuple(_proof(task, bounds) for task in task_set.tasks))


def _proof(task: Task, bounds: Mapping[str, ResponseBound | Unbounded]) -> TaskProof:
    if task.period_ns is None:
        if task.deadline_ns is None:
            return TaskProof(task, Verdict.NO_PROMISE, None)
        reason = "it has a deadline and no period, so any number of requests may come at once"
        return TaskProof(task, Verdict.REFUSED, None, reason)
    bound = bounds[task.name]
    if isinstance(bound, Unbounded):
        verdict = Verdict.NO_PROMISE if task.deadline_ns is None else Verdict.REFUSED
        return TaskProof(task, verdict, None, bound.reason)
    if task.deadline_ns is None:
        return TaskProof(task, Verdict.NO_PROMISE, bound)
    excess_ns = promised_from_origin(task, bound) - task.deadline_ns
    if excess_ns <= 0:
        return TaskProof(task, Verdict.PROVEN, bound)
    reason = f"its bound is {excess_ns / 1e6:.3f} ms over its deadline"
    return TaskProof(task, Verdict.REFUSED, bound, reason)


def _passes(task_set: TaskSet) -> bool:
    return _certify(task_set).is_proven


# --- the smallest change ------------------------------------------------------------------------


def _changes(task_set: TaskSet, recut: Recut | None) -> Iterable[Change]:
    for source in dict.fromkeys(task.source for task in task_set.tasks if task.period_ns):
        yield from _slower(task_set, source)
    if recut is not None:
        yield from _shorter_segments(task_set, recut)
    yield from _more_streams(task_set)
    for model in dict.fromkeys(task.model for task in task_set.tasks):
        yield from _without(task_set, model)


def _slower(task_set: TaskSet, source: str) -> Iterable[Change]:
    """Find the least factor by which one rate has to fall, by bisection.

    Bounds never grow when a period does, so what passes at one factor passes at larger ones.
    """

    def stretched(factor: float) -> TaskSet:
        return replace(
            task_set,
            tasks=tuple(
                replace(task, period_ns=math.ceil(task.period_ns * factor))
                if task.source == source and task.period_ns is not None
                else task
                for task in task_set.tasks
            ),
        )

    if not _passes(stretched(SLOWEST)):
        return
    low, high = 0.0, math.log(SLOWEST)
    while high - low > FACTOR_STEP:
        middle = (low + high) / 2
        low, high = (low, middle) if _passes(stretched(math.exp(middle))) else (middle, high)
    period_ns = next(task.period_ns for task in task_set.tasks if task.source == source)
    assert period_ns is not None
    slower_ns = math.ceil(period_ns * math.exp(high))
    yield Change(
        "rate",
        source,
        f"send to `{source}` every {_ms(slower_ns)} instead of every {_ms(period_ns)}",
        high,
    )


def _shorter_segments(task_set: TaskSet, recut: Recut) -> Iterable[Change]:
    longest_ns = max(task.longest_segment_ns for task in task_set.tasks)

    def cut(factor: float) -> TaskSet:
        pieces = recut(round(longest_ns / factor))
        return replace(
            task_set,
            tasks=tuple(
                replace(task, segments_ns=pieces.get(task.name, task.segments_ns), total_ns=0)
                for task in task_set.tasks
            ),
        )

    # More cuts also cost more, so this is no monotonic search: the first that passes is taken.
    for step in range(1, 25):
        factor = 2 ** (step / 4)
        if _passes(cut(factor)):
            limit_ns = round(longest_ns / factor)
            yield Change(
                "segment",
                "",
                f"cut models into segments of at most {_ms(limit_ns)} (`streams.max_block`); "
                f"the longest has {_ms(longest_ns)}",
                math.log(factor),
            )
            return


def _more_streams(task_set: TaskSet) -> Iterable[Change]:
    """Give one model a stream to itself.

    Times measured beside other streams are what this is reckoned with; from one stream to two they
    have to be measured anew, and the text says so.
    """
    more = task_set.stream_count + 1
    note = "; measure the profile anew with that many" if task_set.stream_count == 1 else ""
    for model in dict.fromkeys(task.model for task in task_set.tasks):
        tasks = tuple(
            replace(task, streams=frozenset((more - 1,))) if task.model == model else task
            for task in task_set.tasks
        )
        if len({task.model for task in tasks}) > 1 and _passes(
            replace(task_set, tasks=tasks, stream_count=more)
        ):
            yield Change(
                "stream",
                model,
                f"give `{model}` a stream of its own (`streams.count = {more}`, and "
                f"`streams = [...]` for each model){note}",
                1.0,
            )


def _without(task_set: TaskSet, model: str) -> Iterable[Change]:
    left = tuple(task for task in task_set.tasks if task.model != model)
    names = {task.name for task in left}
    # A pipeline that loses a stage is another pipeline: not a change to propose.
    if all(set(task.before) <= names for task in left) and _passes(replace(task_set, tasks=left)):
        yield Change("drop", model, f"leave `{model}` out", 2.0)


def _ms(duration_ns: int) -> str:
    return f"{duration_ns / 1e6:.6g} ms"
