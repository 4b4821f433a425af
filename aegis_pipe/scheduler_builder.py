"""From a manifest to a scheduler, and what models have to be like for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from aegis_pipe.device.protocols import DeviceContext, DeviceStream
from aegis_pipe.errors import PermanentError
from aegis_pipe.events import PhaseRecorder
from aegis_pipe.execution import batching as variants
from aegis_pipe.execution.deployment import LoadedModel, ModelOrder, compile_models
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.program import BoundModel
from aegis_pipe.manifest.model import Manifest
from aegis_pipe.memory import nested_streams
from aegis_pipe.scheduling.batching import Batching, variant_name
from aegis_pipe.scheduling.device_launcher import StreamSlot
from aegis_pipe.scheduling.model_rules import StandIn
from aegis_pipe.scheduling.policies import make_policy
from aegis_pipe.scheduling.policy import SchedulingPolicy
from aegis_pipe.scheduling.scheduler import Scheduler
from aegis_pipe.scheduling.stream_pool import StreamPool


class Variant(NamedTuple):
    """One of the sizes in which a model that batches is loaded."""

    model: str
    size: int

    @property
    def name(self) -> str:
        """What it is called among the loaded models."""
        return variant_name(self.model, self.size)


def variants_of(manifest: Manifest) -> tuple[Variant, ...]:
    """Return what has to be loaded besides the manifest's models."""
    return tuple(
        Variant(section.name, size)
        for section in manifest.models
        if section.batching is not None
        for size in variants.batch_sizes(section.batching.max_batch)
    )


def compile_variants(
    manifest: Manifest,
    orders: Sequence[ModelOrder],
    loaded: Sequence[LoadedModel],
    context: DeviceContext,
    phases: PhaseRecorder,
) -> tuple[LoadedModel, ...]:
    """Compile the variants of models that were loaded in the order of `orders`."""
    by_name = {order.name: (order, one) for order, one in zip(orders, loaded, strict=True)}
    compiled: list[LoadedModel] = []
    for variant in variants_of(manifest):
        order, one = by_name[variant.model]
        try:
            shapes = variants.variant_shapes(one.compiled.graph, variant.size)
            options = replace(order.options, shapes=shapes, name=variant.name)
            wanted = replace(
                order,
                name=variant.name,
                options=options,
                variant_of=variant.model,
                rows=variant.size,
            )
            compiled += compile_models([wanted], context, phases)
        except PermanentError as error:
            error.context = f"model `{variant.model}`, `batching`"
            error.hint = variants.HINT
            raise
    return tuple(compiled)


def check_models(manifest: Manifest, graphs: Mapping[str, ExecutionGraph]) -> None:
    """Raise PermanentError for a variant without rows, or a stand-in that can not stand in."""
    for variant in variants_of(manifest):
        try:
            variants.check_variant(graphs[variant.model], graphs[variant.name], variant.size)
        except PermanentError as error:
            error.context = f"model `{variant.model}`, `batching`"
            raise
    for section in manifest.models:
        if section.degrade_to is not None:
            _check_stand_in(section.name, section.degrade_to, graphs)


def _check_stand_in(asked: str, stand_in: str, graphs: Mapping[str, ExecutionGraph]) -> None:
    inputs, other_inputs = (
        {name: graphs[model].spec(name) for name in graphs[model].inputs}
        for model in (asked, stand_in)
    )
    if inputs != other_inputs or graphs[asked].outputs != graphs[stand_in].outputs:
        raise PermanentError(
            f"`{stand_in}` can not take over its requests: inputs and names of outputs differ",
            context=f"model `{asked}`, `degrade_to`",
            hint="name a model with the same inputs, in the same order, and outputs of these names",
        )


def arena_groups(manifest: Manifest) -> dict[str, int]:
    """Return which models share memory on a stream: those that never preempt each other.

    A request can be paused at a segment boundary while another one runs only if the two keep
    their intermediate tensors apart. With `edf` what comes later preempts only what leaves more
    time, so models of equal deadlines share; with `fifo` and `fairness` nobody is paused, and all
    share; otherwise those of one priority. A variant shares with its model.
    """
    policy = manifest.scheduler.policy
    if policy in ("fifo", "fairness"):
        groups = {model.name: 0 for model in manifest.models}
    elif policy == "edf":
        deadlines_ns = sorted({model.deadline_ns or 0 for model in manifest.models})
        groups = {
            model.name: deadlines_ns.index(model.deadline_ns or 0) for model in manifest.models
        }
    else:
        groups = {model.name: model.priority for model in manifest.models}
    return groups | {each.name: groups[each.model] for each in variants_of(manifest)}


def make_slots(
    manifest: Manifest,
    lanes: Sequence[Sequence[DeviceStream]],
    bound: Sequence[Mapping[str, BoundModel]],
    twins: Sequence[Mapping[str, BoundModel]],
) -> list[StreamSlot]:
    """Make the launcher's slots; variants get rows and arrays for rows that nobody wants."""
    wanted = variants_of(manifest)

    def with_rows(models: Mapping[str, BoundModel]) -> dict[str, BoundModel]:
        return dict(models) | {
            each.name: variants.in_rows(models[each.name], each.size)
            for each in wanted
            if each.name in models
        }

    return [
        StreamSlot(
            stream_lanes,
            with_rows(models),
            {
                each.name: variants.discards(models[each.model])
                for each in wanted
                if each.name in models
            },
            with_rows(second),
        )
        for stream_lanes, models, second in zip(lanes, bound, twins, strict=True)
    ]


def check_rows(manifest: Manifest, slot: StreamSlot, graphs: Mapping[str, ExecutionGraph]) -> None:
    """Run every variant beside its model; PermanentError if its rows influence each other."""
    for variant in variants_of(manifest):
        model, together = slot.models[variant.model], slot.models[variant.name]
        try:
            variants.check_rows(model, together, variant.size, graphs[variant.model], slot.lanes[0])
        except PermanentError as error:
            error.context = f"model `{variant.model}`, `batching`"
            raise


def make_manifest_policy(manifest: Manifest) -> SchedulingPolicy:
    """Make the manifest's policy with the options it takes from it."""
    section = manifest.scheduler
    options: dict[str, dict[str, object]] = {
        "priority": {"ageing_ns": section.ageing_ns},
        "fairness": {"weights": {model.name: model.weight for model in manifest.models}},
    }
    return make_policy(section.policy, **options.get(section.policy, {}))


def streams_max(manifest: Manifest) -> dict[str, int]:
    """Return how many streams the models that affinity confines, and their variants, need.

    What stands in for a model has to be where that model runs. A model with `streams` of its own
    has its memory on all.
    """
    if manifest.streams.affinity == "any":
        return {}
    count = manifest.streams.count
    needs = {
        model.name: count if model.streams else min(model.requests_at_once or count, count)
        for model in manifest.models
    }
    for _ in manifest.models:  # stand-ins of stand-ins
        for model in manifest.models:
            if model.degrade_to is not None:
                needs[model.degrade_to] = max(needs[model.degrade_to], needs[model.name])
    return needs | {each.name: needs[each.model] for each in variants_of(manifest)}


def allowed_streams(manifest: Manifest) -> dict[str, Sequence[int]]:
    """Return the streams of each confined model: where its memory is, or those it names itself."""
    count = manifest.streams.count
    by_memory = {name: nested_streams(most, count) for name, most in streams_max(manifest).items()}
    return by_memory | {model.name: model.streams for model in manifest.models if model.streams}


def make_scheduler(
    manifest: Manifest,
    segments: Mapping[str, int],
    *,
    needed_ns: Mapping[str, int] | None = None,
    kind: type[Scheduler] = Scheduler,
    explains: bool = True,
) -> Scheduler:
    """Make the manifest's scheduler, for running and for simulating alike.

    `segments` has the number of segments of every loaded model, variants among them; `needed_ns`
    what models (and variants) are known to need from start to result; `kind` may be one that
    records; without `explains`, decisions do not name candidates and blockers.
    """
    models = manifest.models
    return kind(
        make_manifest_policy(manifest),
        StreamPool(
            manifest.streams.count,
            allowed=allowed_streams(manifest),
        ),
        queue_capacity=manifest.scheduler.queue_capacity,
        model_capacity={
            model.name: model.queue_capacity for model in models if model.queue_capacity is not None
        },
        late={model.name: model.late for model in models},
        stand_ins={
            model.name: StandIn(model.degrade_to, segments[model.degrade_to])
            for model in models
            if model.degrade_to is not None
        },
        needed_ns=needed_ns,
        concurrency={
            model.name: model.requests_at_once
            for model in models
            if model.requests_at_once is not None
        },
        batching={
            model.name: Batching(
                {1: segments[model.name]}
                | {
                    each.size: segments[each.name]
                    for each in variants_of(manifest)
                    if each.model == model.name
                },
                model.batching.window_ns,
            )
            for model in models
            if model.batching is not None
        },
        in_flight=manifest.streams.in_flight,
        preemption=True,
        memory_of=arena_groups(manifest),
        explains=explains,
    )
