"""What became of promises in a run: what was proven of each model beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aegis_pipe.analysis.certificate import Certificate, Verdict, promised_from_origin
from aegis_pipe.scheduling.statistics import ModelStatistics


@dataclass(frozen=True, slots=True)
class ModelPromise:
    """One model's promise and how the run kept it; durations in nanoseconds."""

    model: str
    verdict: Verdict
    """Refused if one of its tasks is, proven if all with a deadline are."""
    deadline_ns: int | None
    """The shortest of its tasks'; None without any."""
    bound_ns: int | None
    """The longest that a proof lets its requests take; None if nothing bounds them."""
    requests: int
    completed: int
    deadline_misses: int
    """Results that came late or not at all."""
    overruns: int
    """Segments that took longer than the profile says that they ever do."""
    latency_p50_ns: int
    """Arrival to result, of completed requests."""
    latency_p99_ns: int
    latency_max_ns: int

    @property
    def is_broken(self) -> bool:
        """Whether deadlines were missed that were proven to be kept."""
        return self.verdict is Verdict.PROVEN and self.deadline_misses > 0

    @property
    def is_over_bound(self) -> bool:
        """Whether a request took longer than proven, in time or not."""
        is_proven = self.verdict is Verdict.PROVEN and self.bound_ns is not None
        return is_proven and self.latency_max_ns > (self.bound_ns or 0)


@dataclass(frozen=True, slots=True)
class AdmissionOutcome:
    """What admission control had promised, and what came of it."""

    mode: str
    """`report` or `enforce`."""
    problem: str
    """Why nothing is proven; empty if there is a certificate."""
    models: tuple[ModelPromise, ...]
    """In the order of the certificate; empty without one."""

    @property
    def broken(self) -> tuple[ModelPromise, ...]:
        """Models whose proven deadlines were missed."""
        return tuple(model for model in self.models if model.is_broken)


def promises_kept(
    certificate: Certificate, statistics: Sequence[ModelStatistics], overruns: Mapping[str, int]
) -> tuple[ModelPromise, ...]:
    """Hold a run's figures against a certificate, model by model.

    `overruns` has segments that overran the profile, by model.
    """
    figures = {model.model: model for model in statistics}
    names = dict.fromkeys(task.model for task in certificate.task_set.tasks)
    return tuple(_promise(certificate, figures[name], overruns.get(name, 0)) for name in names)


def _promise(certificate: Certificate, figures: ModelStatistics, overruns: int) -> ModelPromise:
    proofs = [proof for proof in certificate.proofs if proof.task.model == figures.model]
    deadlines = [proof.task.deadline_ns for proof in proofs if proof.task.deadline_ns is not None]
    bounds = [promised_from_origin(each.task, each.bound) for each in proofs if each.bound]
    verdicts = [proof.verdict for proof in proofs]
    order = (Verdict.REFUSED, Verdict.PROVEN, Verdict.NO_PROMISE)
    return ModelPromise(
        model=figures.model,
        verdict=min(verdicts, key=order.index),
        deadline_ns=min(deadlines, default=None),
        bound_ns=max(bounds) if len(bounds) == len(proofs) else None,
        requests=figures.submitted,
        completed=figures.completed,
        deadline_misses=figures.deadline_misses,
        overruns=overruns,
        latency_p50_ns=figures.latency_p50_ns,
        latency_p99_ns=figures.latency_p99_ns,
        latency_max_ns=figures.latency_max_ns,
    )
