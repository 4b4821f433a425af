"""From a manifest to its scheduler: the one place, for running and for simulating alike."""

from __future__ import annotations

from aegis_pipe.manifest.model import Manifest
from aegis_pipe.scheduling.policies import make_policy
from aegis_pipe.scheduling.policy import SchedulingPolicy
from aegis_pipe.scheduling.scheduler import Scheduler
from aegis_pipe.scheduling.stream_pool import StreamPool


def make_scheduler(manifest: Manifest, kind: type[Scheduler] = Scheduler) -> Scheduler:
    """Make the scheduler a manifest describes; `kind` may be one that also records."""
    return kind(
        policy_of(manifest),
        StreamPool(
            manifest.streams.count,
            allowed={model.name: model.streams for model in manifest.models if model.streams},
        ),
        queue_capacity=manifest.scheduler.queue_capacity,
        model_capacity={
            model.name: model.queue_capacity
            for model in manifest.models
            if model.queue_capacity is not None
        },
        late={model.name: model.late for model in manifest.models},
        preemption=True,
        memory_of=arena_groups(manifest),
    )


def arena_groups(manifest: Manifest) -> dict[str, int]:
    """Return which models share memory on a stream: those that never preempt each other.

    A request can be paused at a segment boundary while another one runs only if the two keep
    their intermediate tensors apart. With `edf` what comes later preempts only what leaves more
    time, so models of equal deadlines share; with `fifo` and `fairness` nobody is paused, and all
    share; otherwise those of one priority.
    """
    policy = manifest.scheduler.policy
    if policy in ("fifo", "fairness"):
        return {model.name: 0 for model in manifest.models}
    if policy == "edf":
        deadlines_ns = sorted({model.deadline_ns or 0 for model in manifest.models})
        groups = {deadline_ns: group for group, deadline_ns in enumerate(deadlines_ns)}
        return {model.name: groups[model.deadline_ns or 0] for model in manifest.models}
    return {model.name: model.priority for model in manifest.models}


def policy_of(manifest: Manifest) -> SchedulingPolicy:
    """Make the policy a manifest asks for; raises PermanentError if there is none such."""
    section = manifest.scheduler
    options: dict[str, dict[str, object]] = {
        "priority": {"ageing_ns": section.ageing_ns},
        "fairness": {"weights": {model.name: model.weight for model in manifest.models}},
    }
    return make_policy(section.policy, **options.get(section.policy, {}))
