"""One manifest at work: a scheduler and its loop over models on the device.

A runtime begins with one revision; a reload puts another in its place (`aegis_pipe/reloading.py`).
Revisions whose models lie on the device in the same way share the `Installation`.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aegis_pipe.analysis_builder import Admission, needed_ns_of, refusal
from aegis_pipe.deployment_builder import Installation, ModelInformation, Platform
from aegis_pipe.errors import InvalidInputError
from aegis_pipe.execution.executor import check_inputs
from aegis_pipe.manifest.model import Manifest
from aegis_pipe.manifest.writer import dump_manifest
from aegis_pipe.scheduler_builder import make_scheduler
from aegis_pipe.scheduling.admission import ProfileGuard
from aegis_pipe.scheduling.device_launcher import DeviceLauncher, InferenceFuture, RequestPayload
from aegis_pipe.scheduling.loop import OrchestrationLoop
from aegis_pipe.scheduling.recording import RecordingScheduler, RunWriter
from aegis_pipe.scheduling.request import ExecutionRequest
from aegis_pipe.scheduling.scheduler import Scheduler
from aegis_pipe.threads import real_time_threads


@dataclass(frozen=True, slots=True)
class Recording:
    """Where a run was recorded, and the hash of its decisions."""

    path: Path
    journal: str
    problem: str = ""
    """Why it ends before the run did; empty if it is whole."""


class Submission(NamedTuple):
    """What a caller hands in, before it is a request of one revision."""

    request_id: int
    model: str
    inputs: Mapping[str, np.ndarray]
    priority: int | None
    deadline_ns: int | None
    """Instant; None for the model's own deadline."""
    arrival_ns: int
    traceparent: str
    future: InferenceFuture
    is_patient: bool = False
    """Whether a full queue is no end: the caller will offer the same again."""


class Revision:
    """A manifest that takes requests, from its making until `stop`.

    `number` counts the reloads before it. Does not own its installation.
    """

    def __init__(
        self,
        manifest: Manifest,
        admission: Admission,
        installation: Installation,
        platform: Platform,
        is_stamped: Callable[[int], bool],
        number: int = 0,
    ) -> None:
        self.manifest = manifest
        self.admission = admission
        self.installation = installation
        self.number = number
        self.recording: Recording | None = None
        self.profile_guard: ProfileGuard | None = None
        self._sections = {section.name: section for section in manifest.models}
        self._platform = platform
        self._closing = ExitStack()
        try:
            self._watch()
            self.scheduler = self._make_scheduler()
            self.loop = self._start_loop(is_stamped)
        except BaseException:
            self._closing.close()
            raise

    def _watch(self) -> None:
        """Watch over what is proven."""
        admission, hub = self.admission, self._platform.hub
        if admission.certificate is None or admission.profile is None:
            return
        profile = admission.profile
        self.profile_guard = ProfileGuard(
            {model: profile.segments_ns(model) for model in profile.models},
            hub,
            is_proven=self.manifest.scheduler.admission != "off" and admission.is_proven,
        )
        hub.add(self.profile_guard)
        self._closing.callback(hub.remove, self.profile_guard)

    def _make_scheduler(self) -> Scheduler:
        manifest, profile = self.manifest, self.admission.valid_profile
        segments = self.installation.segments
        needed_ns = {} if profile is None else needed_ns_of(manifest, profile)
        if not manifest.scheduler.record:
            explains = self._platform.hub.detailed
            return make_scheduler(manifest, segments, needed_ns=needed_ns, explains=explains)
        scheduler = make_scheduler(manifest, segments, needed_ns=needed_ns, kind=RecordingScheduler)
        assert isinstance(scheduler, RecordingScheduler)
        models = [model.name for model in manifest.models]
        header = {
            "manifest": dump_manifest(_without_secrets(manifest)),
            "models": models,
            "segments": dict(segments),
            "needed_ns": needed_ns,
            "reloads": self.number,
        }
        ending = f".reload-{self.number}.run" if self.number else ".run"
        writer = RunWriter(manifest.beside(ending), header)
        scheduler.record_to(writer, models)

        def close() -> None:
            journal = writer.close()
            self.recording = Recording(writer.path, journal, writer.problem)

        self._closing.callback(close)
        return scheduler

    def _start_loop(self, is_stamped: Callable[[int], bool]) -> OrchestrationLoop:
        platform = self._platform
        context, clock, hub = platform.context, platform.clock, platform.hub
        self.launcher = DeviceLauncher(
            self.installation.slots,
            clock,
            hub,
            notifies=context.capabilities.notifies_progress,
            is_stamped=is_stamped,
            half_written=self.installation.half_written,
            ahead=self.installation.staging_ahead,
        )
        lull = platform.lull
        when_idle = None if lull is None else lull.tell
        loop = OrchestrationLoop(self.scheduler, self.launcher, clock, hub, when_idle=when_idle)
        if lull is not None:
            lull.watch(loop.idle_since_ns)
        context.set_progress_listener(loop.wake)
        with real_time_threads(self.manifest.streams.real_time):
            loop.start()
        return loop

    @property
    def models(self) -> Mapping[str, ModelInformation]:
        """The manifest's models by name."""
        return self.installation.models

    def make_request(self, submission: Submission) -> ExecutionRequest:
        """Return what is handed in as a request of this manifest.

        Raises InvalidInputError for a model that is not there and for inputs that do not fit.
        """
        model = submission.model
        bound = self.installation.bound.get(model)
        if bound is None:
            raise unknown_model(model, self.models)
        section = self._sections[model]
        arrays = check_inputs(model, bound.inputs, submission.inputs)
        deadline_ns = submission.deadline_ns
        if deadline_ns is None and section.deadline_ns is not None:
            deadline_ns = submission.arrival_ns + section.deadline_ns
        return ExecutionRequest(
            request_id=submission.request_id,
            model=model,
            arrival_ns=submission.arrival_ns,
            segment_count=bound.segment_count,
            priority=section.priority if submission.priority is None else submission.priority,
            deadline_ns=deadline_ns,
            payload=RequestPayload(arrays, submission.future),
            traceparent=submission.traceparent,
        )

    def stage(self, request: ExecutionRequest) -> None:
        """Have its inputs ready for its launch, if there is room; before it is handed in."""
        if not self.scheduler.queue.is_full:
            self.launcher.stage_inputs(request.payload)

    def unstage(self, request: ExecutionRequest) -> None:
        """Undo that, for a request that was not handed in."""
        self.launcher.give_back_inputs(request.payload)

    def stop(self, until_ns: int | None = None, give_up: threading.Event | None = None) -> bool:
        """Bring open requests to their end; idempotent.

        They have until that instant, or for `drain_timeout`, and only as long as `give_up` is not
        set.

        Returns whether each came to its own end.
        """
        timeout_ns = self.manifest.scheduler.drain_timeout_ns
        if until_ns is not None:
            timeout_ns = max(0, until_ns - self._platform.clock.now_ns())
        drained = self.loop.stop(drain=True, timeout_ns=timeout_ns, give_up=give_up)
        self._closing.close()
        return drained


def _without_secrets(manifest: Manifest) -> Manifest:
    """Return a manifest that may be kept and handed on: headers can hold access tokens."""
    otlp = manifest.telemetry.otlp
    if otlp is None or not otlp.headers:
        return manifest
    hidden = replace(otlp, headers=dict.fromkeys(otlp.headers, "hidden"))
    return replace(manifest, telemetry=replace(manifest.telemetry, otlp=hidden))


def enforce(manifest: Manifest, admission: Admission) -> None:
    """Raise a PermanentError if deadlines have to be proven and are not."""
    if manifest.scheduler.admission == "enforce" and not admission.is_proven:
        raise refusal(admission)


def unknown_model(model: str, models: Mapping[str, ModelInformation]) -> InvalidInputError:
    """Return the error for a model that the manifest does not have."""
    close = difflib.get_close_matches(str(model), models, n=1)
    known = ", ".join(f"`{name}`" for name in models)
    return InvalidInputError(
        f"there is no model `{model}`",
        hint=f"did you mean `{close[0]}`?" if close else f"the models are {known}",
    )
