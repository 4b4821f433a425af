"""All models of a device together: compiled, planned as one, reserved, bound to every stream.

compile_models   files -> graphs -> kernels chosen -> memory planned; no device memory
plan_device      weights once, one arena per stream, checked against the budgets
Deployment       reserves the pools, writes the weights, binds and records every model
"""

from __future__ import annotations

import contextlib
import itertools
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from aegis_pipe.clock import Clock
from aegis_pipe.device.protocols import DeviceContext, DeviceGraph, DeviceStream, Region
from aegis_pipe.errors import AegisError, PermanentError
from aegis_pipe.events import EventHub, ModelLoaded, Phase, PhaseRecorder
from aegis_pipe.execution.alternatives import with_alternatives
from aegis_pipe.execution.capture import GraphCapture
from aegis_pipe.execution.collector import collector_paused
from aegis_pipe.execution.compiler import (
    CompiledModel,
    ModelBinder,
    Weight,
    compile_model,
)
from aegis_pipe.execution.executor import Executor
from aegis_pipe.execution.forking import branched
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.guarding import watch_calls
from aegis_pipe.execution.memory_planning import CompiledStep
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.operators import OPERATORS
from aegis_pipe.execution.passes import (
    ATTENTION_PASSES,
    CHANNELS_LAST_PASSES,
    INVERTED_RESIDUAL_PASSES,
    PLANAR_PASSES,
    QUANTISED_RESIDUAL_PASSES,
    Pass,
    PassReport,
    chain_passes,
    first_passes,
    product_passes,
    run_passes,
)
from aegis_pipe.execution.passes.precision import HALF_DTYPES, convert
from aegis_pipe.execution.program import BoundModel, build_program
from aegis_pipe.execution.reference_operators import reference_function
from aegis_pipe.memory import (
    DeviceMemoryPool,
    DevicePlan,
    MoreSavings,
    check_device_budget,
    check_model_budget,
    check_staging_budget,
)
from aegis_pipe.parallel import run_all
from aegis_pipe.tensor import TensorId

_LARGE_BYTES = 128 << 10
"""Threads that write smaller weights mostly wait for each other to leave the interpreter."""
_PARALLEL_BYTES_MIN = 2 << 20
"""Less is written before a thread has started."""


@dataclass(frozen=True, slots=True)
class ModelOrder:
    """What a deployment is asked to load."""

    name: str
    path: Path
    options: LoadOptions
    precision: str = "fp32"
    """`fp32`, `tf32`, `fp16` or `bf16`."""
    watched: bool = False
    """Whether its kernels are watched for what they write outside of their places."""
    states: Mapping[str, str] = field(default_factory=dict)
    """Inputs that stay from request to request, and the output that each becomes."""
    variant_of: str = ""
    """The model that it runs several requests of; empty for a model itself."""
    rows: int = 1
    """How many requests: their inputs and outputs are copied one by one."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A compiled model with its open `model.load` phase."""

    compiled: CompiledModel
    phase: Phase


def compile_models(
    orders: Sequence[ModelOrder], context: DeviceContext, phases: PhaseRecorder
) -> tuple[LoadedModel, ...]:
    """Read and compile every model; raises the first model's error, with its name."""
    loaded: list[LoadedModel] = []
    with collector_paused():
        try:
            loaded.extend(_compile(order, context, phases) for order in orders)
        except BaseException as error:
            for model in loaded:
                phases.end(model.phase, f"given up: {error}")
            raise
    return tuple(loaded)


def _compile(order: ModelOrder, context: DeviceContext, phases: PhaseRecorder) -> LoadedModel:
    load = phases.begin("model.load", model=order.name)
    with phases.inside(load):
        try:
            with phases.phase("onnx.load", model=order.name) as phase:
                graph = ModelLoader().load(order.path, order.options)
                phase.attributes["operators"] = len(graph.operators)
                phase.attributes["constant_bytes"] = graph.constant_bytes
            compiled = compile_graph(
                graph, context, phases, order.precision, watched=order.watched, states=order.states
            )
            compiled = replace(compiled, variant_of=order.variant_of, rows=order.rows)
        except AegisError as error:
            # Several models load: say which one it was.
            error.context = f"model `{order.name}`" + (
                f", {error.context}" if error.context else ""
            )
            raise
    return LoadedModel(compiled, load)


def compile_graph(
    graph: ExecutionGraph,
    context: DeviceContext,
    phases: PhaseRecorder,
    precision: str = "fp32",
    *,
    watched: bool = False,
    states: Mapping[str, str] | None = None,
) -> CompiledModel:
    """Run the passes over a graph, choose its kernels and plan its memory.

    `watched` leaves room for guards. Raises a PermanentError for a `precision` that the device is
    not made for, and if it can not watch memory.
    """
    _check_precision(precision, context)
    _check_watching(watched, context)
    capabilities = context.capabilities
    passes = (
        *first_passes(parallel_branches=capabilities.parallel_branches),
        *product_passes(capabilities.product_endings),
        *(ATTENTION_PASSES if capabilities.fused_attention else ()),
        *(CHANNELS_LAST_PASSES if capabilities.channels_last else ()),
        *(INVERTED_RESIDUAL_PASSES if capabilities.fused_inverted_residuals else ()),
        *(QUANTISED_RESIDUAL_PASSES if capabilities.quantised_residuals else ()),
    )
    with phases.phase("passes", model=graph.name):
        graph, reports = _run_passes(graph, passes, phases)
        if precision in HALF_DTYPES:
            before = len(graph.operators)
            graph = convert(graph, precision)
            reports = (*reports, PassReport("precision", before, len(graph.operators)))
            if capabilities.planar_convolutions:
                graph, more = _run_passes(graph, PLANAR_PASSES, phases)
                reports = (*reports, *more)
        last = chain_passes(capabilities.elementwise_chains)
        graph, more = _run_passes(graph, last, phases)
        reports = (*reports, *more)
    tf32 = precision == "tf32"
    compiled = compile_model(
        graph,
        context,
        OPERATORS,
        reference_function,
        phases,
        tf32=tf32,
        guard_bytes=context.description.alignment_bytes if watched else 0,
        states=states,
    )
    compiled = with_alternatives(replace(compiled, passes=reports), context, phases)
    return branched(compiled, context, phases)


def _check_watching(watched: bool, context: DeviceContext) -> None:
    if watched and not context.capabilities.watches_memory:
        raise PermanentError(
            f"memory can not be watched on {context.description.name}",
            context="device",
            hint='take `memory_debug` out, or write `kind = "cpu"`',
        )


def _check_precision(precision: str, context: DeviceContext) -> None:
    if precision in HALF_DTYPES and not context.capabilities.half_precision:
        raise PermanentError(
            f"precision `{precision}` is not supported by {context.description.name}",
            hint='write `precision = "fp32"`, or leave it out',
        )


def _run_passes(
    graph: ExecutionGraph, passes: Sequence[Pass], phases: PhaseRecorder
) -> tuple[ExecutionGraph, tuple[PassReport, ...]]:
    reports = []
    for one in passes:
        with phases.phase(f"pass.{one.name}", model=graph.name) as phase:
            graph, (report,) = run_passes(graph, (one,))
            phase.attributes["nodes_before"] = report.nodes_before
            phase.attributes["nodes_after"] = report.nodes_after
        reports.append(report)
    return graph, tuple(reports)


def plan_models(
    loaded: Sequence[LoadedModel],
    budgets_bytes: Sequence[int | None],
    context: DeviceContext,
    *,
    stream_count: int,
    requests_per_stream: int = 1,
    budget_bytes: int | None,
    staging_budget_bytes: int | None = None,
    arena_groups: Mapping[str, int] | None = None,
    streams_max: Mapping[str, int] | None = None,
    more_savings: MoreSavings | None = None,
) -> DevicePlan:
    """Plan the device as one; raises BudgetExceededError with the smallest cause.

    `budgets_bytes` has each model's own budget, None where it has none; `staging_budget_bytes` is
    for the host memory that copies pass through, which is no part of `budget_bytes`. `arena_groups`
    says which models share memory on a stream: all of them, unless some shall preempt others.
    `streams_max` confines models to as few streams. `requests_per_stream` is how many can be on one
    at once, one behind the other. `more_savings` says what else would help a plan
    over budget.
    """
    for model, model_budget_bytes in zip(loaded, budgets_bytes, strict=True):
        if model_budget_bytes is not None:
            compiled = model.compiled
            check_model_budget(
                compiled.name,
                model_budget_bytes,
                lifetimes=compiled.analysis.lifetimes,
                plan=compiled.plan,
                step_names=[step.name for step in compiled.analysis.steps],
                weights_bytes=compiled.weight_bytes,
            )
    description = context.description
    plan = DevicePlan.build(
        [
            model.compiled.memory(
                description,
                (arena_groups or {}).get(model.compiled.name, 0),
                (streams_max or {}).get(model.compiled.name),
            )
            for model in loaded
        ],
        stream_count=stream_count,
        alignment_bytes=description.alignment_bytes,
        requests_per_stream=requests_per_stream,
    )
    if budget_bytes is not None:
        check_device_budget(plan, budget_bytes, device=description.name, more_savings=more_savings)
    if staging_budget_bytes is not None:
        check_staging_budget(
            plan, staging_budget_bytes, device=description.name, more_savings=more_savings
        )
    return plan


class Deployment:
    """Models on the device, ready to run on every stream. Owns pools and bound models."""

    def __init__(
        self,
        loaded: Sequence[LoadedModel],
        plan: DevicePlan,
        context: DeviceContext,
        streams: Sequence[DeviceStream],
        *,
        boundaries: Mapping[str, Sequence[int]] | None = None,
        in_flight: int = 1,
        hub: EventHub,
        clock: Clock,
        phases: PhaseRecorder,
    ) -> None:
        self._context = context
        self._streams = streams
        self._hub = hub
        self._clock = clock
        self._phases = phases
        self._pools: list[DeviceMemoryPool] = []
        self._states: dict[str, dict[TensorId, Region]] = {}
        self._boundaries = {model: tuple(cuts) for model, cuts in (boundaries or {}).items()}
        self._in_flight = in_flight
        self.slots: list[dict[str, BoundModel]] = [{} for _ in streams]
        self.twins: list[dict[str, BoundModel]] = [{} for _ in streams]
        """Models of so few segments that a request's first can be launched while the last request's
        first is in flight, once more: with graphs and events of their own, in the same memory."""
        try:
            with collector_paused():
                self._deploy(loaded, plan)
        except BaseException:
            self.close()
            raise

    def _deploy(self, loaded: Sequence[LoadedModel], plan: DevicePlan) -> None:
        weights_pool = self._reserve("weights", plan.weights_bytes)
        arenas = [
            self._reserve(f"arena.{index}", arena.size_bytes)
            for index, arena in enumerate(plan.arenas)
        ]
        state_pool = self._reserve("states", plan.states_bytes)
        regions: dict[str, Region] = {}
        written: dict[str, Weight] = {}
        for model in loaded:
            with self._phases.inside(model.phase):
                self._write_weights(model.compiled, plan, weights_pool, regions, written)
                self._place_states(model.compiled, plan, state_pool)
                for index in plan.streams_of(model.compiled.name):
                    arena = arenas[index]
                    base_bytes = plan.arena_base(model.compiled.name, index)
                    steps = self._bind(model.compiled, regions, arena, base_bytes, index)
            self._phases.end(model.phase)
            self._announce(model, steps)
        for name in self._states:
            self.reset_state(name)  # a warm-up has left something there
        for pool in self._pools:
            pool.seal()

    def _reserve(self, name: str, size_bytes: int) -> DeviceMemoryPool:
        pool = DeviceMemoryPool(self._context, name, size_bytes, hub=self._hub, clock=self._clock)
        self._pools.append(pool)
        with self._phases.phase("pool.reserve") as phase:
            phase.attributes.update(pool=name, size_bytes=size_bytes)
            pool.reserve()
        return pool

    def _place_states(
        self, compiled: CompiledModel, plan: DevicePlan, pool: DeviceMemoryPool
    ) -> None:
        self._states[compiled.name] = {
            tensor: pool.place(
                tensor,
                plan.states_offsets[compiled.name, tensor],
                compiled.graph.spec(tensor).size_bytes,
                compiled.name,
            ).region
            for tensor in compiled.states
        }

    def reset_state(self, model: str) -> None:
        """Set a model's states to zero; none of its requests may be running."""
        for region in self._states[model].values():
            self._context.write(region, np.zeros(region.size_bytes, np.uint8))

    def _write_weights(
        self,
        compiled: CompiledModel,
        plan: DevicePlan,
        pool: DeviceMemoryPool,
        regions: dict[str, Region],
        written: dict[str, Weight],
    ) -> None:
        """Place and fill those weights that no earlier model has brought along."""
        with self._phases.phase("pool.reserve", model=compiled.name) as phase:
            new = [weight for key, weight in compiled.weights.items() if key not in regions]
            for key, weight in compiled.weights.items():
                same = key not in written or weight.is_same(written[key])
                assert same, f"`{weight.tensor}` and `{written[key].tensor}` have one digest"
            for weight in new:
                offset_bytes = plan.weights_offsets[weight.key]
                buffer = pool.place(weight.tensor, offset_bytes, weight.size_bytes, compiled.name)
                regions[weight.key] = buffer.region
                written[weight.key] = weight
            self._fill(new, regions)
            phase.attributes["weights_written_bytes"] = sum(w.size_bytes for w in new)
            phase.attributes["weights_shared"] = len(compiled.weights) - len(new)

    def _fill(self, weights: Sequence[Weight], regions: Mapping[str, Region]) -> None:
        """Write weights to where they lie; large ones on all cores, if the device allows that."""

        def write(weight: Weight) -> None:
            self._context.write(regions[weight.key], weight.content())

        threads = 1
        if self._context.capabilities.parallel_writes:
            threads = self._context.description.compute_units
        large = [weight for weight in weights if weight.size_bytes >= _LARGE_BYTES]
        if sum(weight.size_bytes for weight in large) < _PARALLEL_BYTES_MIN:
            threads = 1
        run_all([partial(write, weight) for weight in large], threads)
        for weight in weights:
            if weight.size_bytes < _LARGE_BYTES:
                write(weight)

    def _bind(
        self,
        compiled: CompiledModel,
        weights: Mapping[str, Region],
        arena: DeviceMemoryPool,
        base_bytes: int,
        index: int,
    ) -> tuple[CompiledStep, ...]:
        """Bind a model to one stream's arena, warm it up, and record its segments."""
        name = compiled.name
        with self._phases.phase("graph.capture", model=name) as phase:
            storages = {
                each.tensor_id: arena.place(
                    str(each.tensor_id),
                    base_bytes + compiled.plan.offsets[each.tensor_id],
                    each.size_bytes,
                    name,
                ).region
                for each in compiled.analysis.lifetimes
            }
            binder = ModelBinder(compiled, self._context, weights, storages, self._states[name])
            steps = binder.launched_steps()
            watched = None
            if compiled.guard_bytes:
                watched = arena.place(
                    "all of it", base_bytes, compiled.plan.peak_bytes, name
                ).region
            bound = self.slots[index][name] = self._record(compiled, binder, watched, index)
            # Whoever has a state runs one request at a time.
            if bound.segment_count < self._in_flight and not compiled.states:
                self.twins[index][name] = self._record(compiled, binder, watched, index)
            phase.attributes.update(stream=index, calls=len(steps), segments=bound.segment_count)
        return steps

    def _record(
        self, compiled: CompiledModel, binder: ModelBinder, watched: Region | None, index: int
    ) -> BoundModel:
        calls = binder.calls()
        if watched is not None:
            calls = watch_calls(compiled, calls, watched, self._context)
        capture = GraphCapture(self._context, self._streams[index])
        cuts = self._boundaries.get(compiled.name, ())
        segments = capture.record(calls, cuts, binder.forks())
        bound = self._program(compiled, binder, segments)
        if not self._context.capabilities.steady_at_once:
            self._warm_up(bound, self._streams[index])
        return bound

    def _program(
        self, compiled: CompiledModel, binder: ModelBinder, segments: Sequence[DeviceGraph]
    ) -> BoundModel:
        return build_program(
            self._context,
            compiled.name,
            binder.inputs(),
            binder.outputs(),
            segments,
            lengths=compiled.graph.lengths,
            first_update=self._segment_of(compiled.name, compiled.first_update),
        )

    def _segment_of(self, model: str, call: int | None) -> int | None:
        return None if call is None else bisect_right(self._boundaries.get(model, ()), call)

    @staticmethod
    def _warm_up(bound: BoundModel, stream: DeviceStream) -> None:
        """Run once on zeros, so that nothing is imported or faulted in later."""
        inputs = [np.zeros(tensor.spec.shape, tensor.spec.dtype) for tensor in bound.inputs]
        outputs = [np.empty(tensor.spec.shape, tensor.spec.dtype) for tensor in bound.outputs]
        # Zeros may be bad data for a model (an index, a divisor): it is warm all the same.
        with contextlib.suppress(PermanentError):
            for segment in range(bound.segment_count):
                Executor.launch_segment(bound, segment, [stream], inputs, outputs, stamped=True)
                stream.synchronise()

    def _announce(self, model: LoadedModel, steps: Sequence[CompiledStep]) -> None:
        if not self._hub.enabled:
            return
        compiled = model.compiled
        described = tuple((step.operator, step.node, step.choice.kernel) for step in steps)
        edges = [0, *self._boundaries.get(compiled.name, ()), len(described)]
        self._hub.emit(
            ModelLoaded(
                self._clock.now_ns(),
                compiled.name,
                model.phase.phase_id,
                tuple(described[first:end] for first, end in itertools.pairwise(edges)),
                compiled.weight_bytes,
                compiled.plan.peak_bytes,
            )
        )

    @property
    def boundaries(self) -> Mapping[str, tuple[int, ...]]:
        """The calls at which each model's segments begin, but for the first."""
        return self._boundaries

    @property
    def allocations_after_start(self) -> int:
        """Device allocations since everything was in place: 0, or the plan is broken."""
        return max((pool.statistics().allocations_since_seal for pool in self._pools), default=0)

    def close(self) -> None:
        """Release what was recorded, then the memory; idempotent."""
        for slot in (*self.twins, *self.slots):
            while slot:
                slot.popitem()[1].close()
        while self._pools:
            self._pools.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
