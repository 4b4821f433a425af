"""How `plan` shows what was proven about deadlines, and `up` what became of it."""

from __future__ import annotations

import dataclasses
from typing import Any

from aegis_pipe.analysis.certificate import Certificate, TaskProof
from aegis_pipe.analysis.profile import Profile
from aegis_pipe.analysis.promises import AdmissionOutcome
from aegis_pipe.analysis_builder import Admission
from aegis_pipe.cli.tables import counted, table
from aegis_pipe.manifest.model import Manifest

_HEADER = (
    "request", "verdict", "deadline", "bound", "slack", "before", "run", "blocked", "by",
    "waits for",
)  # fmt: skip
_OUTCOME_HEADER = (
    "model", "verdict", "requests", "completed", "missed", "overruns", "p50", "p99", "longest",
    "bound", "deadline",
)  # fmt: skip


def admission_lines(manifest: Manifest, admission: Admission) -> list[str]:
    """Format the certificate, or why there is none."""
    mode = manifest.scheduler.admission
    if admission.certificate is None or admission.profile is None:
        lines = [f"deadlines (admission {mode}): nothing is proven: {admission.problem}"]
        return [*lines, f"  {admission.hint}"] if admission.hint else lines
    certificate = admission.certificate
    outcome = "all promises are proven" if certificate.is_proven else "REFUSED"
    lines = [
        f"deadlines (admission {mode}): {outcome}; times in ms",
        table(_HEADER, [_row(proof) for proof in certificate.proofs]),
        f"  {_method(certificate)}; {_basis(admission.profile)}",
    ]
    lines += [f"  {proof.task.name}: {proof.reason}" for proof in certificate.refused]
    if not certificate.is_proven:
        lines += [f"  would pass: {change.text}" for change in certificate.changes[:3]]
        if not certificate.changes:
            lines.append(
                "  no single change of a rate, the segments, a stream or a model is enough"
            )
    return lines


def outcome_lines(outcome: AdmissionOutcome) -> list[str]:
    """Format what a run made of its promises."""
    if outcome.problem:
        return [f"promises (admission {outcome.mode}): nothing is proven: {outcome.problem}"]
    kept = "BROKEN" if outcome.broken else "all that are proven were kept"
    lines = [
        f"promises (admission {outcome.mode}): {kept}; times in ms",
        *(f"  {line}" for line in table(_OUTCOME_HEADER, _outcome_rows(outcome)).splitlines()),
    ]
    lines += [
        f"  {model.model}: {model.deadline_misses} of {counted(model.requests, 'request')} "
        "missed a deadline that was proven: the profile is not of this machine as it is now; "
        "measure it anew with `aegis-pipe profile`"
        for model in outcome.broken
    ]
    lines += [
        f"  {model.model}: a request took {_ms(model.latency_max_ns)}, proven were "
        f"{_ms(model.bound_ns)} at most"
        for model in outcome.models
        if model.is_over_bound
    ]
    return lines


def _outcome_rows(outcome: AdmissionOutcome) -> list[tuple[str, ...]]:
    return [
        (
            model.model,
            model.verdict.value,
            str(model.requests),
            str(model.completed),
            str(model.deadline_misses),
            str(model.overruns),
            _ms(model.latency_p50_ns),
            _ms(model.latency_p99_ns),
            _ms(model.latency_max_ns),
            _ms(model.bound_ns),
            _ms(model.deadline_ns),
        )
        for model in outcome.models
    ]


def _row(proof: TaskProof) -> tuple[str, ...]:
    bound, task = proof.bound, proof.task
    start = (task.name, proof.verdict.value, _ms(task.deadline_ns))
    if bound is None:
        return (*start, "-", "-", "-", _ms(task.execution_ns), "-", "-", "-")
    waits = ", ".join(f"{name} {_ms(ns)}" for name, ns in bound.interference_ns.items() if ns)
    return (
        *start,
        _ms(bound.response_ns),
        _ms(proof.slack_ns),
        _ms(bound.before_ns),
        _ms(bound.execution_ns),
        _ms(bound.blocking_ns),
        bound.blocked_by or "-",
        waits or "-",
    )


def _ms(duration_ns: int | None) -> str:
    return "-" if duration_ns is None else f"{duration_ns / 1e6:.3f}"


def _method(certificate: Certificate) -> str:
    task_set = certificate.task_set
    methods = {proof.bound.method for proof in certificate.proofs if proof.bound}
    how = f"response times under `{task_set.policy}`"
    if task_set.stream_count == 1:
        where = "on one stream"
    elif methods <= {"busy period"}:
        where = "stream by stream, with times measured beside the other streams' models"
    else:
        where = (
            f"over {task_set.stream_count} streams together, with times measured beside other "
            "models (coarser than with each model on a stream of its own)"
        )
    return f"{how}, {where}"


def _basis(profile: Profile) -> str:
    weakest = min((model.total for model in profile.models.values()), key=lambda t: t.quantile)
    return (
        f"times are longest ones of {weakest.samples} samples or more, and cover at least "
        f"p{weakest.quantile * 100:.4g} with {weakest.confidence:.0%} confidence"
    )


def admission_json(admission: Admission) -> dict[str, Any]:
    """Return the certificate as plain values; durations in nanoseconds."""
    certificate = admission.certificate
    if certificate is None:
        return {"proven": False, "problem": admission.problem, "hint": admission.hint}
    return {
        "proven": certificate.is_proven,
        "policy": certificate.task_set.policy,
        "streams": certificate.task_set.stream_count,
        "requests": [
            {
                "name": proof.task.name,
                "model": proof.task.model,
                "verdict": proof.verdict.value,
                "reason": proof.reason,
                "period_ns": proof.task.period_ns,
                "deadline_ns": proof.task.deadline_ns,
                "slack_ns": proof.slack_ns,
                "bound": dataclasses.asdict(proof.bound) if proof.bound else None,
            }
            for proof in certificate.proofs
        ],
        "changes": [dataclasses.asdict(change) for change in certificate.changes],
    }
