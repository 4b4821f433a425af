"""From a manifest to models on the device; part of the composition root.

PlannedModels.of(manifest, platform)   compiled, planned, checked; no device memory
Installation(planned, platform)        the same on the device, bound to streams
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from aegis_pipe.analysis.profile import Profile
from aegis_pipe.analysis_builder import cut_segments
from aegis_pipe.clock import Clock, SystemClock
from aegis_pipe.device.protocols import DeviceContext, DeviceStream, StagingStatistics
from aegis_pipe.device.registry import OpenedDevice, open_device
from aegis_pipe.errors import BudgetExceededError, PermanentError
from aegis_pipe.events import EventHub, PhaseRecorder
from aegis_pipe.execution.alternatives import without_alternatives
from aegis_pipe.execution.collector import heap_frozen
from aegis_pipe.execution.compiler import CompiledModel
from aegis_pipe.execution.deployment import (
    Deployment,
    LoadedModel,
    ModelOrder,
    compile_models,
    plan_models,
)
from aegis_pipe.execution.forking import as_chain
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.lighter import lighter_ways
from aegis_pipe.execution.model_loader import LoadOptions, ModelFiles
from aegis_pipe.execution.program import result_names
from aegis_pipe.manifest.model import Manifest
from aegis_pipe.memory import DevicePlan, MoreSavings, return_freed_memory
from aegis_pipe.scheduler_builder import (
    arena_groups,
    check_models,
    check_rows,
    compile_variants,
    make_slots,
    streams_max,
    variants_of,
)
from aegis_pipe.telemetry.lull import Lull
from aegis_pipe.tensor import TensorSpec
from aegis_pipe.threads import real_time_threads


@dataclass(frozen=True, slots=True, eq=False)
class Platform:
    """What outlives the models: the open device, the clock, and who listens."""

    context: DeviceContext
    clock: Clock
    hub: EventHub
    phases: PhaseRecorder
    lull: Lull | None
    """Told when no request runs, if there is telemetry."""


@dataclass(frozen=True, slots=True)
class ModelInformation:
    """What a caller needs to know of a model."""

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True)
class InstallationKey:
    """All that decides what lies where on the device: of equal keys, one installation will do."""

    models: tuple[tuple[object, ...], ...]
    files: tuple[ModelFiles, ...]
    device: tuple[object, ...]
    profile: Profile | None

    @classmethod
    def of(cls, manifest: Manifest, profile: Profile | None) -> InstallationKey:
        """Look at the model files as they are now; `profile` is the one that cuts segments."""
        return cls(
            tuple(
                (
                    section.name,
                    dict(section.shapes),
                    dict(section.bind),
                    dict(section.state),
                    section.precision,
                    section.memory_budget_bytes,
                )
                for section in manifest.models
            ),
            tuple(ModelFiles.at(manifest.resolve(section.path)) for section in manifest.models),
            (
                manifest.device.memory_budget_bytes,
                manifest.device.staging_budget_bytes,
                manifest.device.memory_debug,
                manifest.streams.count,
                manifest.streams.in_flight,
                manifest.streams.max_block_ns,
                variants_of(manifest),
                _ranks(arena_groups(manifest)),
                streams_max(manifest),
            ),
            profile,
        )


def _ranks(groups: Mapping[str, int]) -> dict[str, int]:
    """Return groups numbered from 0 in their order: only who shares with whom matters."""
    ordered = sorted(set(groups.values()))
    return {model: ordered.index(group) for model, group in groups.items()}


class PlannedModels:
    """A manifest's models compiled, their memory planned as one, and where they are cut."""

    def __init__(
        self,
        manifest: Manifest,
        platform: Platform,
        profile: Profile | None,
        boundaries: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """Plan; raises the AegisError of what can not be read, compiled or fitted in.

        `boundaries` has where segments begin, unless the profile or the cost model says it.
        """
        self.manifest = manifest
        self._phases = platform.phases
        # Looked at before they are read: what changes meanwhile will count as changed.
        self.key = InstallationKey.of(manifest, profile)
        self.loaded = compile_manifest(manifest, platform.context, platform.phases)
        try:
            with platform.phases.phase("plan"):
                self.plan = plan_memory(manifest, self.loaded, platform.context)
                self.boundaries = boundaries
                if self.boundaries is None:
                    compiled = [model.compiled for model in self.loaded]
                    description = platform.context.description
                    cuts = cut_segments(manifest, compiled, profile, description)
                    self.boundaries = cuts.boundaries
        except BaseException as error:
            self.give_up(error)
            raise
        self.models = {
            model.compiled.name: _information(model) for model in self.loaded[: self.model_count]
        }

    @property
    def model_count(self) -> int:
        """The manifest's models, which come first; variants for batches follow."""
        return len(self.manifest.models)

    def give_up(self, reason: BaseException) -> None:
        """End the phases of models that will not be installed."""
        give_up_phases(self.loaded, self._phases, reason)
        self.release()

    def release(self) -> None:
        """Let go of the compiled models with their weights."""
        self.loaded = ()


class Installation:
    """Models on the device, each bound to its streams. Owns streams, pools and bound models."""

    def __init__(self, planned: PlannedModels, platform: Platform) -> None:
        manifest, context = planned.manifest, platform.context
        self.key = planned.key
        self.plan = planned.plan
        self.boundaries = MappingProxyType(dict(planned.boundaries or {}))
        self.half_written: set[str] = set()
        """Models whose state a request has begun to write over; outlives a reload as it does."""
        self._closing = ExitStack()
        try:
            streams: list[DeviceStream] = []
            self._streams = streams
            stopping = self._closing.enter_context(ExitStack())
            stopping.callback(_close_all, streams)
            ahead = self.plan.staging_ahead
            self.staging_ahead = context.reserve_staging_ahead(ahead.part_bytes, ahead.parts)
            shares = manifest.streams.sm or (None,) * manifest.streams.count
            with real_time_threads(manifest.streams.real_time):
                for index, staging in enumerate(self.plan.staging):
                    streams.append(
                        context.create_stream(
                            index,
                            staging_bytes=staging.size_bytes,
                            staging_parts=staging.parts,
                            multiprocessors=shares[index],
                        )
                    )
            self.deployment = Deployment(
                planned.loaded,
                self.plan,
                context,
                streams,
                boundaries=self.boundaries,
                in_flight=manifest.streams.in_flight,
                hub=platform.hub,
                clock=platform.clock,
                phases=platform.phases,
            )
            self._closing.callback(self.deployment.close)
            # Streams are closed before the memory is freed: a request given up may still be on one.
            self._closing.callback(stopping.close)
            graphs = graphs_of(planned.loaded)
            # Weights are on the device by now, and not kept twice.
            self.all_graphs = {name: graph.without_weights() for name, graph in graphs.items()}
            # All models are bound to the last stream, confined ones too.
            # A copy: the deployment's own is emptied at the end, and `submit` is called even then.
            last = self.deployment.slots[-1]
            self.bound = {name: last[name] for name in planned.models}
            self.segments = {name: bound.segment_count for name, bound in last.items()}
            self.models = MappingProxyType(dict(planned.models))
            self.slots = make_slots(
                manifest,
                [[stream] for stream in streams],
                self.deployment.slots,
                self.deployment.twins,
            )
            with platform.phases.phase("batching.check"):
                check_rows(manifest, self.slots[-1], graphs)
            planned.release()
        except BaseException as error:
            self._closing.close()
            planned.give_up(error)
            raise

    @property
    def graphs(self) -> Mapping[str, ExecutionGraph]:
        """The manifest's models as they run, without their weights."""
        return {name: self.all_graphs[name] for name in self.models}

    def staging(self) -> tuple[StagingStatistics, ...]:
        """Return the figures of each stream's staging memory."""
        return tuple(stream.staging for stream in self._streams)

    def settle(self) -> None:
        """Give back what loading used up, and have the collector pass over what it made."""
        return_freed_memory()
        self._closing.enter_context(heap_frozen())

    def close(self) -> None:
        """Finish the streams and free the memory; idempotent."""
        self._closing.close()


def _close_all(streams: Sequence[DeviceStream]) -> None:
    for stream in streams:
        stream.close()


def open_manifest_device(manifest: Manifest, clock: Clock) -> OpenedDevice:
    """Open the device that a manifest asks for.

    PermanentError if it has fewer multiprocessors than streams are to have for themselves.
    """
    section = manifest.device
    opened = open_device(
        section.kind, index=section.index, clock=clock, threads=manifest.streams.threads
    )
    wanted, found = sum(manifest.streams.sm), opened.context.capabilities.sm_partitions
    if wanted > found:
        name = opened.context.description.name
        opened.context.close()
        raise PermanentError(
            f"streams are to have {wanted} multiprocessors, but {name} has {found} to divide",
            context="streams.sm",
            hint="give the streams fewer" if found else 'leave `sm` out, or set `kind = "cuda"`',
        )
    return opened


def model_orders(manifest: Manifest) -> list[ModelOrder]:
    """Return what a manifest asks to be loaded, in its order."""
    return [
        ModelOrder(
            name=section.name,
            path=manifest.resolve(section.path),
            options=LoadOptions(
                shapes=section.shapes,
                bind={name: _as_lists(value) for name, value in section.bind.items()},
                name=section.name,
            ),
            precision=section.precision,
            watched=manifest.device.memory_debug == "canary",
            states=section.state,
        )
        for section in manifest.models
    ]


def _as_lists(constant: Any) -> Any:
    """Return a manifest's constant with its sequences as the loader takes them."""
    return [_as_lists(item) for item in constant] if isinstance(constant, tuple) else constant


def compile_manifest(
    manifest: Manifest, context: DeviceContext, phases: PhaseRecorder
) -> tuple[LoadedModel, ...]:
    """Compile the manifest's models, then the variants of those that batch.

    Where budgets have no room for branches that run side by side, none do; and where they have none
    for alternatives of kernels, none are taken.
    """
    orders = model_orders(manifest)
    loaded = compile_models(orders, context, phases)
    try:
        loaded += compile_variants(manifest, orders, loaded, context, phases)
        check_models(manifest, graphs_of(loaded))
        loaded = _within_budgets(manifest, loaded, context)
    except BaseException as error:
        give_up_phases(loaded, phases, error)
        raise
    return loaded


def graphs_of(loaded: Sequence[LoadedModel]) -> dict[str, ExecutionGraph]:
    """Return the models' graphs by name, with their weights."""
    return {model.compiled.name: model.compiled.graph for model in loaded}


def _within_budgets(
    manifest: Manifest, loaded: tuple[LoadedModel, ...], context: DeviceContext
) -> tuple[LoadedModel, ...]:
    """Return the models without forks, then without alternatives, where they are over a budget."""
    for change, takes_more in (
        (as_chain, [model.compiled.forks for model in loaded]),
        (without_alternatives, [_has_alternatives(model.compiled) for model in loaded]),
    ):
        if not any(takes_more):
            continue
        try:
            _plan(manifest, loaded, context, None)
        except BudgetExceededError as error:
            reason = f"a budget has no room for them: {error.message}"
            loaded = tuple(
                [replace(each, compiled=change(each.compiled, reason)) for each in loaded]
            )
    return loaded


def _has_alternatives(compiled: CompiledModel) -> bool:
    return (compiled.chain or compiled).plain is not None


def plan_memory(
    manifest: Manifest, loaded: Sequence[LoadedModel], context: DeviceContext
) -> DevicePlan:
    """Plan models and variants as one device; raises BudgetExceededError with what would help."""
    return _plan(
        manifest,
        loaded,
        context,
        lambda plan, measure: lighter_ways(
            model_orders(manifest),
            loaded,
            plan,
            measure,
            context,
            PhaseRecorder(EventHub(), SystemClock()),
        ),
    )


def _plan(
    manifest: Manifest,
    loaded: Sequence[LoadedModel],
    context: DeviceContext,
    more_savings: MoreSavings | None,
) -> DevicePlan:
    models = (*manifest.models, *(manifest.model(each.model) for each in variants_of(manifest)))
    return plan_models(
        loaded,
        [section.memory_budget_bytes for section in models],
        context,
        stream_count=manifest.streams.count,
        requests_per_stream=min(2, manifest.streams.in_flight),
        budget_bytes=manifest.device.memory_budget_bytes,
        staging_budget_bytes=manifest.device.staging_budget_bytes,
        arena_groups=arena_groups(manifest),
        streams_max=streams_max(manifest),
        more_savings=more_savings,
    )


def give_up_phases(
    loaded: Sequence[LoadedModel], phases: PhaseRecorder, reason: BaseException
) -> None:
    """End the `model.load` phases that are still open, with the reason as their error."""
    for model in loaded:
        if model.phase.is_open:
            phases.end(model.phase, f"given up: {reason}")


def _information(model: LoadedModel) -> ModelInformation:
    compiled, graph = model.compiled, model.compiled.graph
    results = result_names(compiled.outputs, graph.lengths)
    return ModelInformation(
        compiled.name,
        MappingProxyType({name: graph.spec(name) for name in compiled.inputs}),
        MappingProxyType({name: graph.spec(name) for name in results}),
    )
