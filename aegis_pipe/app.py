"""The composition root: from a manifest to a running system.

Builds, wires and hands down; decides nothing.

    open_pipeline(path) -> Runtime     everything running; a context manager
    plan_deployment(manifest)          the same up to memory's plan; nothing reserved
"""

from __future__ import annotations

import atexit
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from aegis_pipe import units
from aegis_pipe.analysis_builder import (
    Admission,
    SegmentCuts,
    admission_outcome,
    check_admission,
    cut_segments,
    record_admission,
)
from aegis_pipe.clock import Clock, SystemClock
from aegis_pipe.deployment_builder import (
    Installation,
    ModelInformation,
    PlannedModels,
    Platform,
    compile_manifest,
    open_manifest_device,
    plan_memory,
)
from aegis_pipe.device.protocols import DeviceDescription
from aegis_pipe.errors import (
    AegisError,
    InvalidInputError,
    PermanentError,
    RuntimeStoppedError,
    TransientError,
)
from aegis_pipe.events import EventHub, Listener, PhaseRecorder, RuntimeStarted, RuntimeStopped
from aegis_pipe.execution.compiler import CompiledModel
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.manifest.model import Manifest
from aegis_pipe.manifest_check import check_manifest
from aegis_pipe.memory import DevicePlan
from aegis_pipe.pipeline_set import PipelineSet
from aegis_pipe.reloading import Reloader, ReloadReport
from aegis_pipe.request_gate import RequestGate
from aegis_pipe.revision import Revision, Submission, enforce, unknown_model
from aegis_pipe.runtime_report import RuntimeReport, RuntimeStatistics
from aegis_pipe.scheduler_builder import make_manifest_policy
from aegis_pipe.scheduling.device_launcher import InferenceFuture
from aegis_pipe.scheduling.statistics import RequestStatistics
from aegis_pipe.telemetry import Telemetry, TelemetryReport
from aegis_pipe.telemetry_builder import telemetry_config
from aegis_pipe.threads import real_time_threads

if TYPE_CHECKING:
    from aegis_pipe.telemetry.sdk_metrics import MetricReader
    from aegis_pipe.telemetry.sdk_sink import SpanExporter

PRIORITY_MAX = 1000
"""Largest priority of a request, as of the manifest's models."""


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
    opened = open_manifest_device(manifest, clock)
    with opened.context as context:
        loaded = compile_manifest(manifest, context, phases)
        plan = plan_memory(manifest, loaded, context)
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

    Thread-safe but for `close`. Made by `open_pipeline`. One that is not closed is closed at the
    end of the interpreter. A process that is forked from this one can not use it.
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
        self.clock = clock
        self._requests = RequestStatistics(tuple(model.name for model in manifest.models))
        self._hub = EventHub(*listeners, counters=(self._requests,))
        # From 1: 0 stands for no request. next() of a count is atomic.
        self._request_ids = itertools.count(1)
        self._closing = ExitStack()
        self._telemetry: Telemetry | None = None
        self._telemetry_report: TelemetryReport | None = None
        self._is_stamped: Callable[[int], bool] = _never
        self._end_ns: int | None = None
        self._has_pipelines = False
        self._is_forked = False
        self._drain_until_ns: int | None = None
        self._gives_up = threading.Event()
        self.stamps_kernels = False
        """Whether every kernel of every request is timed, whoever listens."""
        try:
            revision = self._start(manifest, observers, boundaries)
        except BaseException:
            self._closing.close()
            raise
        self._pipelines = PipelineSet(self._submit, clock, self._hub, write_line)
        self._reloader = Reloader(
            self._platform, self._gate, self._pipelines, self._requests, self._stamps
        )
        revision.installation.settle()
        _RUNNING.add(self)

    def _start(
        self,
        manifest: Manifest,
        observers: _Observers,
        boundaries: Mapping[str, tuple[int, ...]] | None,
    ) -> Revision:
        clock, hub = self.clock, self._hub
        make_manifest_policy(manifest)
        self._start_telemetry(manifest, observers)
        phases = PhaseRecorder(hub, clock)
        with phases.phase("runtime.start") as phase:
            phase.attributes["manifest"] = self.name
            with phases.phase("device.open"):
                opened = open_manifest_device(manifest, clock)
            context = self._closing.enter_context(opened.context)
            self.device, self.device_reason = context.description, opened.reason
            lull = None if self._telemetry is None else self._telemetry.lull
            self._platform = platform = Platform(context, clock, hub, phases, lull)
            if self._telemetry is not None:
                self._telemetry.observe_device(self.device.name, context.read_sensors)
            with phases.phase("admission") as admission_phase:
                admission = check_admission(manifest, self.device)
                record_admission(admission, phases, admission_phase)
                enforce(manifest, admission)
        planned = PlannedModels(manifest, platform, admission.valid_profile, boundaries)
        installation = Installation(planned, platform)
        try:
            revision = Revision(manifest, admission, installation, platform, self._stamps)
        except BaseException:
            installation.close()
            raise
        self._gate = RequestGate(revision, clock, hub)
        self._closing.callback(self._stop)
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
        return revision

    def _stop(self) -> None:
        """Stop what runs: everything is counted then, and the memory to be told of still there."""
        revision = self._gate.revision
        drained = revision.stop(self._drain_until_ns, self._gives_up)
        self._pipelines.finish()
        self._end_ns = self.clock.now_ns()
        self._final_statistics = self.statistics()
        if self._hub.enabled:
            self._hub.emit(RuntimeStopped(self.clock.now_ns(), self.name, drained))
        revision.installation.close()

    def _stamps(self, request_id: int) -> bool:
        return self.stamps_kernels or self._is_stamped(request_id)

    def _start_telemetry(self, manifest: Manifest, observers: _Observers) -> None:
        config = telemetry_config(manifest)
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

    # What a reload may change.

    @property
    def manifest(self) -> Manifest:
        """The manifest that runs."""
        return self._gate.revision.manifest

    @property
    def policy(self) -> str:
        """Name of the scheduling policy."""
        return self.manifest.scheduler.policy

    @property
    def stream_count(self) -> int:
        """Streams of the device."""
        return self.manifest.streams.count

    @property
    def queue_capacity(self) -> int:
        """Most requests that wait at once."""
        return self.manifest.scheduler.queue_capacity

    @property
    def unmet_wishes(self) -> tuple[str, ...]:
        """A line for each key of the manifest that this version does not act on yet."""
        return unmet_wishes(self.manifest)

    @property
    def admission(self) -> Admission:
        """What is known about the manifest's promises."""
        return self._gate.revision.admission

    @property
    def plan(self) -> DevicePlan:
        """Where everything lies on the device."""
        return self._gate.revision.installation.plan

    @property
    def boundaries(self) -> Mapping[str, tuple[int, ...]]:
        """The kernels at which each model's segments begin, but for the first."""
        return self._gate.revision.installation.boundaries

    @property
    def graphs(self) -> Mapping[str, ExecutionGraph]:
        """The models as they run, without their weights."""
        return self._gate.revision.installation.graphs

    @property
    def models(self) -> Mapping[str, ModelInformation]:
        """Inputs and outputs of every model, by its name."""
        return self._gate.revision.models

    def reload(self, manifest: str | Path | Manifest) -> ReloadReport:
        """Put another manifest in the place of the one that runs, and return what has changed.

        It is read, checked, loaded and planned first; whatever is wrong then (a ManifestError, a
        BudgetExceededError, deadlines that are not proven, ...) is raised and changes nothing. So
        is a TransientError if another reload is under way, or if what was under way is not finished
        after the `drain_timeout` of the manifest that runs. No request is lost: those that come
        during the swap wait for its end, as many as the queue has room for. Pipelines that are the
        same in both manifests go on where they were.

        Keys that hold for the whole process (`name`, `device.kind`, `device.index`,
        `streams.threads`, `telemetry`, `serve`) can not change: a ManifestError names them. If the
        new manifest can not be started in spite of the checks, the one before is started again and
        a PermanentError says so; a FatalError, if that fails too. A completion
        callback can not call it: a PermanentError. Raises RuntimeStoppedError after `close`.
        """
        if self._gate.completes_here():
            raise PermanentError(
                "a completion callback can not wait for a reload",
                context="reload",
                hint="reload on a thread of your own",
            )
        return self._reloader.reload(manifest)

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
        RequestCancelledError or what a kernel raised; of a request that came during a reload also
        InvalidInputError, if the new manifest has no such model or inputs.
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
        is_patient: bool = False,
    ) -> InferenceFuture:
        future, request_id = InferenceFuture(), next(self._request_ids)
        future.attach(request_id, self._gate.cancel, self._gate.completes_here)
        future.caller_traceparent = traceparent
        self._gate.submit(
            Submission(
                request_id,
                model,
                inputs,
                priority,
                deadline_ns,
                self.clock.now_ns(),
                traceparent,
                future,
                is_patient,
            )
        )
        return future

    def infer(self, model: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Submit and wait for the outputs."""
        return self.submit(model, inputs).result()

    def reset_state(self, model: str) -> None:
        """Set what a model keeps from request to request to zero, as at the start.

        Raises TransientError while requests of it wait or run, InvalidInputError for a model that
        is not there, RuntimeStoppedError after `close`. Nobody may hand in requests of it, or
        reload, meanwhile.
        """
        self._refuse_if_closed("reset_state")
        if model not in self.models:
            raise unknown_model(model, self.models)
        pending = self._gate.revision.loop.pending(model)
        if pending:
            raise TransientError(
                f"{pending} requests wait or run",
                context=f"model `{model}`",
                hint="reset it when their futures are done",
            )
        self._gate.revision.installation.deployment.reset_state(model)
        self._gate.revision.launcher.state_was_reset(model)

    def statistics(self) -> RuntimeStatistics:
        """Return the figures so far, those before a reload among them."""
        revision = self._gate.revision
        return RuntimeStatistics(
            models=self._requests.snapshot(),
            queue_depth=revision.scheduler.statistics().waiting,
            allocations_after_start=revision.installation.deployment.allocations_after_start,
            staging=revision.installation.staging(),
            staged_ahead=revision.launcher.staged_ahead,
        )

    def start_pipelines(
        self, *, on_error: Callable[[str, AegisError], None] = lambda pipeline, error: None
    ) -> None:
        """Begin to feed the manifest's pipelines; `on_error` hears of failing items and sinks.

        Raises PermanentError if they were started before, RuntimeStoppedError after `close`.
        """
        self._refuse_if_closed("pipelines")
        if self._has_pipelines:
            raise PermanentError(
                "they were started before", context="pipelines", hint="call start_pipelines once"
            )
        self._has_pipelines = True
        with real_time_threads(self.manifest.streams.real_time):
            self._pipelines.start(self.manifest, self.models, on_error)

    def join(self, timeout_s: float, stop: threading.Event) -> bool:
        """Wait for the end of all pipelines, `stop` or the timeout; return whether all ended.

        A manifest without pipelines never ends by itself.
        """
        return self._pipelines.join(timeout_s, stop)

    def _refuse_if_closed(self, context: str) -> None:
        if self._end_ns is not None:
            raise RuntimeStoppedError(
                "the runtime has stopped", context=context, hint="open it again to go on"
            )

    def close(self, *, give_up: threading.Event | None = None) -> None:
        """Finish what is under way and release everything; idempotent.

        Requests and pipelines' items have the manifest's `drain_timeout` together. What is still
        under way after that, or once `give_up` is set, ends with a RuntimeStoppedError; segments
        that run on the device are waited for.
        """
        if self._is_forked:
            return
        self._reloader.close()
        if give_up is not None:
            self._gives_up = give_up
        until_ns = self.clock.now_ns() + self.manifest.scheduler.drain_timeout_ns
        self._drain_until_ns = until_ns
        self._pipelines.stop(until_ns, self._gives_up)
        self._closing.close()
        _RUNNING.discard(self)

    def forked(self) -> None:
        """Refuse requests, and leave closing to the parent process: what runs is its own."""
        self._is_forked = True
        self._gate.forked()

    def report(self) -> RuntimeReport:
        """Return how the run went; complete after `close`."""
        end_ns, revision = self._end_ns or self.clock.now_ns(), self._gate.revision
        last = () if revision.recording is None else (revision.recording,)
        statistics = self._final_statistics if self._end_ns else self.statistics()
        return RuntimeReport(
            name=self.name,
            device=self.device.name,
            streams=self.stream_count,
            policy=self.policy,
            elapsed_ns=end_ns - self._start_ns,
            memory_budget_bytes=self.manifest.device.memory_budget_bytes,
            plan=self.plan,
            statistics=statistics,
            pipelines=self._pipelines.reports(),
            telemetry=self._telemetry_report,
            overruns=self._reloader.overruns(),
            admission=admission_outcome(
                self.manifest, self.admission, statistics.models, self._reloader.overruns()
            ),
            recordings=(*self._reloader.recordings, *last),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_RUNNING: weakref.WeakSet[Runtime] = weakref.WeakSet()


def _tell_forked() -> None:
    for runtime in list(_RUNNING):
        runtime.forked()
    _RUNNING.clear()


def _close_running() -> None:
    for runtime in list(_RUNNING):
        runtime.close()


atexit.register(_close_running)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell_forked)


def _never(request_id: int) -> bool:
    """Without telemetry no kernel is stamped."""
    return False


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
