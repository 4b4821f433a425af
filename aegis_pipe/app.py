"""The composition root: from a manifest to a running system.

Builds, wires and hands down; decides nothing.

    open_pipeline(path) -> Runtime     everything running; a context manager
    plan_deployment(manifest)          the same up to memory's plan; nothing reserved
"""

from __future__ import annotations

import difflib
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from aegis_pipe import units
from aegis_pipe.analysis_builder import (
    Admission,
    SegmentCuts,
    check_admission,
    cut_segments,
    needed_ns_of,
    record_admission,
    refusal,
)
from aegis_pipe.clock import Clock, SystemClock
from aegis_pipe.device.protocols import (
    DeviceContext,
    DeviceDescription,
    DeviceStream,
    StagingStatistics,
)
from aegis_pipe.device.registry import OpenedDevice, open_device
from aegis_pipe.errors import AegisError, InvalidInputError, TransientError
from aegis_pipe.events import EventHub, Listener, PhaseRecorder, RuntimeStarted, RuntimeStopped
from aegis_pipe.execution.collector import heap_frozen
from aegis_pipe.execution.compiler import CompiledModel
from aegis_pipe.execution.deployment import (
    Deployment,
    LoadedModel,
    ModelOrder,
    compile_models,
    plan_models,
)
from aegis_pipe.execution.executor import check_inputs
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.lighter import lighter_ways
from aegis_pipe.execution.model_loader import LoadOptions
from aegis_pipe.execution.program import BoundModel
from aegis_pipe.manifest.model import LogSection, Manifest
from aegis_pipe.manifest.writer import dump_manifest
from aegis_pipe.manifest_check import check_manifest
from aegis_pipe.memory import DevicePlan, return_freed_memory
from aegis_pipe.pipeline import PipelineReport, PipelineRunner
from aegis_pipe.pipeline_builder import PipelineBuilder, arrivals_of, written_path
from aegis_pipe.scheduler_builder import (
    arena_groups,
    check_models,
    check_rows,
    compile_variants,
    make_manifest_policy,
    make_scheduler,
    make_slots,
    streams_max,
    variants_of,
)
from aegis_pipe.scheduling.admission import ProfileGuard
from aegis_pipe.scheduling.device_launcher import (
    DeviceLauncher,
    InferenceFuture,
    RequestPayload,
    StreamSlot,
)
from aegis_pipe.scheduling.loop import OrchestrationLoop
from aegis_pipe.scheduling.recording import RecordingScheduler, RunWriter
from aegis_pipe.scheduling.request import ExecutionRequest
from aegis_pipe.scheduling.scheduler import Scheduler
from aegis_pipe.scheduling.statistics import ModelStatistics, RequestStatistics
from aegis_pipe.telemetry import Telemetry, TelemetryConfig, TelemetryReport
from aegis_pipe.tensor import TensorSpec

if TYPE_CHECKING:
    from aegis_pipe.telemetry.sdk_metrics import MetricReader
    from aegis_pipe.telemetry.sdk_sink import SpanExporter

PRIORITY_MAX = 1000
"""Largest priority of a request, as of the manifest's models."""


@dataclass(frozen=True, slots=True)
class ModelInformation:
    """What a caller needs to know of a model."""

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True)
class RuntimeStatistics:
    """Figures of a running manifest."""

    models: tuple[ModelStatistics, ...]
    queue_depth: int
    allocations_after_start: int
    """Device allocations since everything was loaded: 0, or the plan is broken."""
    staging: tuple[StagingStatistics, ...]
    """Host memory that each stream's copies pass through, and what was needed of it."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Where a run was recorded, and the hash of its decisions."""

    path: Path
    journal: str


@dataclass(frozen=True, slots=True)
class RuntimeReport:
    """How a run went."""

    name: str
    device: str
    streams: int
    policy: str
    elapsed_ns: int
    memory_budget_bytes: int | None
    plan: DevicePlan
    statistics: RuntimeStatistics
    pipelines: tuple[PipelineReport, ...]
    telemetry: TelemetryReport | None
    """None if telemetry goes nowhere."""
    overruns: Mapping[str, int]
    """Segments that took longer than the profile says, by model; empty without a profile."""
    recording: Recording | None
    """None unless the manifest asks for one."""

    @property
    def failed(self) -> bool:
        """Whether something went wrong that the user has to see to."""
        return any(p.failed or p.error for p in self.pipelines) or any(
            m.failed for m in self.statistics.models
        )


def unmet_wishes(manifest: Manifest) -> tuple[str, ...]:
    """Return a line for each key of the manifest that this version does not act on yet.

    Nothing is passed over in silence: `up` and `plan` show them.
    """
    lines = []
    if manifest.serve is not None:
        lines.append("`serve`: this version does not listen to clients yet")
    return tuple(lines)


def open_pipeline(
    manifest: str | Path | Manifest,
    *,
    listeners: Sequence[Listener] = (),
    span_exporters: Sequence[SpanExporter] = (),
    metric_readers: Sequence[MetricReader] = (),
    write_line: Callable[[str], None] = print,
    boundaries: Mapping[str, tuple[int, ...]] | None = None,
) -> Runtime:
    """Load a manifest and start it; use the result as a context manager.

    `listeners` get every event; `span_exporters` and `metric_readers`, written for the
    OpenTelemetry SDK, get spans and metrics beside the manifest's own destinations and are shut
    down at the end; `write_line` takes what
    `console` sinks show; `boundaries` has the kernels at which models' segments begin, where they
    are not to come from the profile or the cost model. Raises ManifestError, or the AegisError of
    whatever could not be loaded; nothing is left open then.
    """
    loaded = manifest if isinstance(manifest, Manifest) else check_manifest(manifest)
    return Runtime(
        loaded,
        SystemClock(),
        listeners,
        _Observers(span_exporters, metric_readers),
        write_line,
        boundaries,
    )


class _Observers(NamedTuple):
    """What was written for the OpenTelemetry SDK and is to be served too."""

    span_exporters: Sequence[SpanExporter]
    metric_readers: Sequence[MetricReader]


@dataclass(frozen=True, slots=True, eq=False)
class PlannedDeployment:
    """What `aegis-pipe plan` shows: everything up to the point where memory is reserved."""

    manifest: Manifest
    device: DeviceDescription
    device_reason: str
    models: tuple[CompiledModel, ...]
    memory: DevicePlan
    admission: Admission
    cuts: SegmentCuts
    variants: tuple[CompiledModel, ...] = ()
    """What is loaded besides, for requests that run together."""


def plan_deployment(manifest: Manifest) -> PlannedDeployment:
    """Compile and plan all models of a manifest; reserves no device memory."""
    make_manifest_policy(manifest)
    clock = SystemClock()
    phases = PhaseRecorder(EventHub(), clock)
    opened = _open_device(manifest, clock)
    with opened.context as context:
        loaded = _compile(manifest, context, phases)
        plan = _plan(manifest, loaded, context)
        models = tuple(model.compiled for model in loaded)
        count = len(manifest.models)
        admission = check_admission(manifest, context.description)
        cuts = cut_segments(manifest, models, admission.valid_profile, context.description)
        return PlannedDeployment(
            manifest,
            context.description,
            opened.reason,
            models[:count],
            plan,
            admission,
            cuts,
            models[count:],
        )


class Runtime:
    """A running manifest: models loaded, streams and scheduler at work.

    Thread-safe but for `close`. Made by `open_pipeline`.
    """

    def __init__(
        self,
        manifest: Manifest,
        clock: Clock,
        listeners: Sequence[Listener],
        observers: _Observers,
        write_line: Callable[[str], None],
        boundaries: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.name = manifest.name
        self.policy = manifest.scheduler.policy
        self.unmet_wishes = unmet_wishes(manifest)
        self.stream_count = manifest.streams.count
        self.queue_capacity = manifest.scheduler.queue_capacity
        self.clock = clock
        self._manifest = manifest
        self._write_line = write_line
        self._requests = RequestStatistics(tuple(model.name for model in manifest.models))
        self._hub = EventHub(*listeners, counters=(self._requests,))
        self._sections = {section.name: section for section in manifest.models}
        # From 1: 0 stands for no request. next() of a count is atomic.
        self._request_ids = itertools.count(1)
        self._closing = ExitStack()
        self._runners: list[PipelineRunner] = []
        self._telemetry: Telemetry | None = None
        self._telemetry_report: TelemetryReport | None = None
        self._is_stamped: Callable[[int], bool] = _never
        self._end_ns: int | None = None
        self.profile_guard: ProfileGuard | None = None
        self.recording: Recording | None = None
        self.stamps_kernels = False
        """Whether every kernel of every request is timed, whoever listens."""
        try:
            self._start(observers, boundaries)
        except BaseException:
            self._closing.close()
            raise
        return_freed_memory()
        self._closing.enter_context(heap_frozen())

    def _start(
        self, observers: _Observers, boundaries: Mapping[str, tuple[int, ...]] | None
    ) -> None:
        manifest, clock, hub = self._manifest, self.clock, self._hub
        make_manifest_policy(manifest)
        self._start_telemetry(observers)
        phases = PhaseRecorder(hub, clock)
        with phases.phase("runtime.start") as phase:
            phase.attributes["manifest"] = self.name
            with phases.phase("device.open"):
                opened = _open_device(manifest, clock)
            context = self._closing.enter_context(opened.context)
            self.device = context.description
            if self._telemetry is not None:
                self._telemetry.observe_device(self.device.name, context.read_sensors)
            with phases.phase("admission") as admission_phase:
                self.admission = check_admission(manifest, self.device)
                record_admission(self.admission, phases, admission_phase)
                self._admit(self.admission)
        loaded = _compile(manifest, context, phases)
        self.plan = _plan(manifest, loaded, context)
        if boundaries is None:
            boundaries = cut_segments(
                manifest,
                [model.compiled for model in loaded],
                self.admission.valid_profile,
                self.device,
            ).boundaries
        self.boundaries = MappingProxyType(dict(boundaries))
        streams = [
            context.create_stream(index, staging_bytes=staging.size_bytes)
            for index, staging in enumerate(self.plan.staging)
        ]
        self._streams = streams
        self._deployment = self._closing.enter_context(
            Deployment(
                loaded,
                self.plan,
                context,
                streams,
                boundaries=boundaries,
                hub=hub,
                clock=clock,
                phases=phases,
            )
        )
        # Weights are on the device by now, and not kept twice.
        self.graphs = MappingProxyType(
            {
                model.compiled.name: model.compiled.graph.without_weights()
                for model in loaded[: len(manifest.models)]
            }
        )
        # All models are bound to the last stream, confined ones too.
        # A copy: the deployment's own is emptied at the end, and `submit` is called even then.
        self._bound = {
            model.name: self._deployment.slots[-1][model.name] for model in manifest.models
        }
        self.models = MappingProxyType(
            {model.name: _information(self._bound[model.name]) for model in manifest.models}
        )
        # Closed before the memory is freed: a request given up may still be on its stream.
        self._closing.callback(_close_all, streams)
        slots = make_slots(manifest, [[stream] for stream in streams], self._deployment.slots)
        with phases.phase("batching.check"):
            check_rows(manifest, slots[-1], _graphs(loaded))
        self._loop = self._start_loop(context, slots)
        self._start_ns = clock.now_ns()
        if hub.enabled:
            hub.emit(
                RuntimeStarted(
                    self._start_ns,
                    self.name,
                    self.device.name,
                    opened.reason,
                    self.policy,
                    self.stream_count,
                )
            )

    def _admit(self, admission: Admission) -> None:
        """Watch over what is proven; with `enforce`, refuse what is not."""
        manifest = self._manifest
        if manifest.scheduler.admission == "enforce" and not admission.is_proven:
            raise refusal(admission)
        if admission.certificate is not None and admission.profile is not None:
            profile = admission.profile
            bounds_ns = {model: profile.segments_ns(model) for model in profile.models}
            self.profile_guard = ProfileGuard(
                bounds_ns,
                self._hub,
                is_proven=manifest.scheduler.admission != "off" and admission.is_proven,
            )
            self._hub.add(self.profile_guard)

    def _stamps(self, request_id: int) -> bool:
        return self.stamps_kernels or self._is_stamped(request_id)

    def _start_telemetry(self, observers: _Observers) -> None:
        config = _telemetry_config(self._manifest)
        if not (config.has_destination or any(observers)):
            return
        telemetry = Telemetry(config, self.clock, **observers._asdict())
        telemetry.start()
        self._telemetry = telemetry
        self._hub.add(telemetry.listener)
        self._is_stamped = telemetry.is_stamped

        def close() -> None:
            self._telemetry_report = telemetry.close()

        self._closing.callback(close)

    def _start_loop(self, context: DeviceContext, slots: Sequence[StreamSlot]) -> OrchestrationLoop:
        manifest = self._manifest
        launcher = self._launcher = DeviceLauncher(
            slots,
            self.clock,
            self._hub,
            notifies=context.capabilities.notifies_progress,
            is_stamped=self._stamps,
        )
        segments = {name: bound.segment_count for name, bound in self._deployment.slots[-1].items()}
        self._scheduler = self._make_scheduler(segments)
        loop = OrchestrationLoop(self._scheduler, launcher, self.clock, self._hub)
        context.set_progress_listener(loop.wake)
        loop.start()
        timeout_ns = manifest.scheduler.drain_timeout_ns
        self._closing.callback(self._stop_loop, loop, timeout_ns)
        return loop

    def _make_scheduler(self, segments: Mapping[str, int]) -> Scheduler:
        manifest, profile = self._manifest, self.admission.valid_profile
        needed_ns = {} if profile is None else needed_ns_of(manifest, profile)
        if not manifest.scheduler.record:
            explains = self._hub.detailed
            return make_scheduler(manifest, segments, needed_ns=needed_ns, explains=explains)
        scheduler = make_scheduler(manifest, segments, needed_ns=needed_ns, kind=RecordingScheduler)
        assert isinstance(scheduler, RecordingScheduler)
        models = [model.name for model in manifest.models]
        header = {
            "manifest": dump_manifest(manifest),
            "models": models,
            "segments": dict(segments),
            "needed_ns": needed_ns,
        }
        writer = RunWriter(manifest.beside(".run"), header)
        scheduler.record_to(writer, models)

        def close() -> None:
            self.recording = Recording(writer.path, writer.close())

        self._closing.callback(close)
        return scheduler

    def _stop_loop(self, loop: OrchestrationLoop, timeout_ns: int) -> None:
        drained = loop.stop(drain=True, timeout_ns=timeout_ns)
        # Everything has been counted by now, and the memory to be told of is still there.
        self._end_ns = self.clock.now_ns()
        self._final_statistics = self.statistics()
        if self._hub.enabled:
            self._hub.emit(RuntimeStopped(self.clock.now_ns(), self.name, drained))

    def submit(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        priority: int | None = None,
        deadline: float | str | None = None,
        traceparent: str = "",
    ) -> InferenceFuture:
        """Hand in one inference and return at once; the future has the outputs by name.

        Arrays must not be changed until the future is done. `priority` and `deadline` (seconds
        from now, or a text such as "20 ms") replace the model's own. `traceparent` is the caller's
        W3C trace context: the request's trace continues it; what is not valid counts as none.
        Raises InvalidInputError for inputs that do not fit, QueueFullError if there is no room,
        RuntimeStoppedError after `close`. The future raises DeadlineExceededError,
        RequestCancelledError or what a kernel raised.
        """
        deadline_ns = None
        if deadline is not None:
            deadline_ns = self.clock.now_ns() + _duration_ns(deadline)
        if priority is not None:
            _check_priority(priority)
        return self._submit(
            model, inputs, priority=priority, deadline_ns=deadline_ns, traceparent=traceparent
        )

    def traceparent(self, future: InferenceFuture) -> str:
        """Return the W3C trace context of a request's own span, to hand on to others.

        Empty without telemetry. Not for requests of pipelines, whose traces are those of items.
        """
        if self._telemetry is None:
            return ""
        return self._telemetry.traceparent(future.request_id, future.caller_traceparent)

    def _submit(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        priority: int | None,
        deadline_ns: int | None,
        traceparent: str = "",
    ) -> InferenceFuture:
        bound = self._bound.get(model)
        if bound is None:
            raise _unknown_model(model, self.models)
        section = self._sections[model]
        arrays = check_inputs(model, bound.inputs, inputs)
        now_ns = self.clock.now_ns()
        if deadline_ns is None and section.deadline_ns is not None:
            deadline_ns = now_ns + section.deadline_ns
        future = InferenceFuture()
        request = ExecutionRequest(
            request_id=next(self._request_ids),
            model=model,
            arrival_ns=now_ns,
            segment_count=bound.segment_count,
            priority=section.priority if priority is None else priority,
            deadline_ns=deadline_ns,
            payload=RequestPayload(arrays, future),
            traceparent=traceparent,
        )
        future.attach(request.request_id, self._loop.cancel)
        future.caller_traceparent = traceparent
        self._loop.submit(request)
        return future

    def infer(self, model: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Submit and wait for the outputs."""
        return self.submit(model, inputs).result()

    def reset_state(self, model: str) -> None:
        """Set what a model keeps from request to request to zero, as at the start.

        Raises TransientError while requests of it wait or run, InvalidInputError for a model that
        is not there. Nobody may hand in requests of it meanwhile.
        """
        if model not in self._bound:
            raise _unknown_model(model, self.models)
        pending = self._requests.pending(model)
        if pending:
            raise TransientError(
                f"{pending} requests wait or run",
                context=f"model `{model}`",
                hint="reset it when their futures are done",
            )
        self._deployment.reset_state(model)
        self._launcher.state_was_reset(model)

    def statistics(self) -> RuntimeStatistics:
        """Return the figures so far."""
        return RuntimeStatistics(
            models=self._requests.snapshot(),
            queue_depth=self._scheduler.statistics().waiting,
            allocations_after_start=self._deployment.allocations_after_start,
            staging=tuple(stream.staging for stream in self._streams),
        )

    def start_pipelines(
        self, *, on_error: Callable[[str, AegisError], None] = lambda pipeline, error: None
    ) -> None:
        """Begin to feed the manifest's pipelines; `on_error` hears of failing items and sinks."""
        builder = PipelineBuilder(
            self._manifest,
            {name: information.inputs for name, information in self.models.items()},
            {name: tuple(information.outputs) for name, information in self.models.items()},
            self._write_line,
        )
        plans = [builder.build(section) for section in self._manifest.pipelines]
        self._runners = [
            PipelineRunner(
                plan, arrivals_of(section), self._submit, self.clock, self._hub, on_error=on_error
            )
            for plan, section in zip(plans, self._manifest.pipelines, strict=True)
        ]
        by_name = {runner.name: runner for runner in self._runners}
        for runner, section in zip(self._runners, self._manifest.pipelines, strict=True):
            until = getattr(section.source, "until", None)
            if until is not None:
                by_name[until].on_end(runner.stop)
        for runner in self._runners:
            runner.start()

    def join(self, timeout_s: float, stop: threading.Event) -> bool:
        """Wait for the end of all pipelines, `stop` or the timeout; return whether all ended.

        A manifest without pipelines never ends by itself.
        """
        end_ns = self.clock.now_ns() + round(timeout_s * 1e9)
        for runner in self._runners:
            while not runner.join(0.02):
                if stop.is_set() or self.clock.now_ns() >= end_ns:
                    return False
        if not self._runners:
            self.clock.wait_until(end_ns, stop)
        return bool(self._runners)

    def close(self) -> None:
        """Finish what is under way and release everything; idempotent."""
        for runner in self._runners:
            runner.stop()
        for runner in self._runners:
            runner.join()
        self._closing.close()

    def report(self) -> RuntimeReport:
        """Return how the run went; complete after `close`."""
        end_ns = self._end_ns or self.clock.now_ns()
        return RuntimeReport(
            name=self.name,
            device=self.device.name,
            streams=self.stream_count,
            policy=self.policy,
            elapsed_ns=end_ns - self._start_ns,
            memory_budget_bytes=self._manifest.device.memory_budget_bytes,
            plan=self.plan,
            statistics=self._final_statistics if self._end_ns else self.statistics(),
            pipelines=tuple(runner.report() for runner in self._runners),
            telemetry=self._telemetry_report,
            overruns=dict(self.profile_guard.overruns) if self.profile_guard else {},
            recording=self.recording,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _close_all(streams: Sequence[DeviceStream]) -> None:
    for stream in streams:
        stream.close()


def _never(request_id: int) -> bool:
    """Without telemetry no kernel is stamped."""
    return False


def _open_device(manifest: Manifest, clock: Clock) -> OpenedDevice:
    section = manifest.device
    return open_device(
        section.kind, index=section.index, clock=clock, threads=manifest.streams.threads
    )


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


def _compile(
    manifest: Manifest, context: DeviceContext, phases: PhaseRecorder
) -> tuple[LoadedModel, ...]:
    """Compile the manifest's models, then the variants of those that batch."""
    orders = model_orders(manifest)
    loaded = compile_models(orders, context, phases)
    loaded += compile_variants(manifest, orders, loaded, context, phases)
    check_models(manifest, _graphs(loaded))
    return loaded


def _graphs(loaded: Sequence[LoadedModel]) -> dict[str, ExecutionGraph]:
    return {model.compiled.name: model.compiled.graph for model in loaded}


def _plan(manifest: Manifest, loaded: Sequence[LoadedModel], context: DeviceContext) -> DevicePlan:
    models = (*manifest.models, *(manifest.model(each.model) for each in variants_of(manifest)))
    return plan_models(
        loaded,
        [section.memory_budget_bytes for section in models],
        context,
        stream_count=manifest.streams.count,
        budget_bytes=manifest.device.memory_budget_bytes,
        staging_budget_bytes=manifest.device.staging_budget_bytes,
        arena_groups=arena_groups(manifest),
        streams_max=streams_max(manifest),
        more_savings=lambda plan, measure: lighter_ways(
            model_orders(manifest),
            loaded,
            plan,
            measure,
            context,
            PhaseRecorder(EventHub(), SystemClock()),
        ),
    )


def _telemetry_config(manifest: Manifest) -> TelemetryConfig:
    section, otlp = manifest.telemetry, manifest.telemetry.otlp
    traces = section.traces
    return TelemetryConfig(
        service_name=manifest.service_name,
        device=manifest.device.kind,
        otlp_endpoint=otlp.endpoint if otlp else "",
        otlp_protocol=otlp.protocol if otlp else "grpc",
        otlp_headers=tuple(otlp.headers.items()) if otlp else (),
        otlp_timeout_ns=otlp.timeout_ns if otlp else 750_000_000,
        otlp_json_path=written_path(manifest, section.file) if section.file else None,
        log_path=written_path(manifest, section.log.path) if section.log else None,
        log_max_bytes=(section.log or LogSection("")).max_size_bytes,
        log_keep=(section.log or LogSection("")).keep,
        prometheus=section.metrics.prometheus or "",
        ratio=traces.ratio,
        always=traces.always,
        slow_ns=traces.slow_ns or 0,
        kernels=traces.kernels,
        max_spans=traces.max_spans,
        ring_capacity=section.ring_capacity,
    )


def _information(bound: BoundModel) -> ModelInformation:
    return ModelInformation(
        bound.name,
        MappingProxyType({tensor.name: tensor.spec for tensor in bound.inputs}),
        MappingProxyType({tensor.name: tensor.spec for tensor in bound.results}),
    )


def _unknown_model(model: str, models: Mapping[str, ModelInformation]) -> InvalidInputError:
    close = difflib.get_close_matches(str(model), models, n=1)
    known = ", ".join(f"`{name}`" for name in models)
    return InvalidInputError(
        f"there is no model `{model}`",
        hint=f"did you mean `{close[0]}`?" if close else f"the models are {known}",
    )


def _check_priority(priority: int) -> None:
    """Refuse what the queue could not compare: it would end the run for everybody."""
    if not isinstance(priority, int) or not 0 <= priority <= PRIORITY_MAX:
        raise InvalidInputError(
            f"{priority!r} is not a whole number from 0 to {PRIORITY_MAX}",
            context="priority",
            hint="higher is more urgent; leave it out for the model's own",
        )


def _duration_ns(duration: float | str) -> int:
    if not isinstance(duration, str):
        # Written so that a NaN is refused too.
        if not 0 <= duration <= units.MAX_WHOLE / 1e9:
            raise InvalidInputError(
                f"{duration} is not a number of seconds from now",
                context="deadline",
                hint='give seconds, or a text such as "20 ms"',
            )
        return round(duration * 1e9)
    try:
        return units.parse_duration(duration)
    except ValueError as error:
        raise InvalidInputError(str(error), context="deadline") from error
