"""Puts another manifest in the place of the one that runs.

    validate > admission > models loaded and planned > pipelines' parts made    nothing is touched
    drain: sources stop between items, submissions wait, what is open is finished
    swap: old scheduler stopped, old models freed, new ones installed, new scheduler started
    what has waited is handed in, sources go on

Whatever is wrong before the swap leaves the running manifest as it was. If the new one can not be
started in spite of the checks, the one before is started again. Where the models lie on the device
as they did, they stay there, and only scheduler and pipelines change.
"""

from __future__ import annotations

import enum
import gc
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from aegis_pipe.analysis_builder import check_admission, record_admission
from aegis_pipe.deployment_builder import Installation, InstallationKey, PlannedModels, Platform
from aegis_pipe.errors import (
    FatalError,
    ManifestError,
    PermanentError,
    Problem,
    RuntimeStoppedError,
    TransientError,
)
from aegis_pipe.events import ManifestReloaded, Scalar
from aegis_pipe.manifest.conversion import manifest_to_table
from aegis_pipe.manifest.model import Manifest
from aegis_pipe.manifest.writer import dump_manifest
from aegis_pipe.manifest_check import check_manifest
from aegis_pipe.pipeline_set import PipelineChange, PipelineSet
from aegis_pipe.request_gate import RequestGate
from aegis_pipe.revision import Recording, Revision, enforce
from aegis_pipe.scheduler_builder import check_models, make_manifest_policy
from aegis_pipe.scheduling.statistics import RequestStatistics
from aegis_pipe.telemetry import attributes as names
from aegis_pipe.threads import real_time_threads

FIXED: Final = (
    ("name",),
    ("device", "kind"),
    ("device", "index"),
    ("streams", "threads"),
    ("streams", "sm"),
    ("streams", "real_time"),
    ("serve",),
    ("telemetry",),
)
"""Keys that hold for as long as the process runs, and all that is below them."""


class ReloadOutcome(enum.StrEnum):
    """How a reload ended."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    """There was nothing to do."""
    REFUSED = "refused"
    """The manifest before goes on as if nothing had been asked."""
    RESTORED = "restored"
    """The new manifest could not be started; the one before was started again."""
    FAILED = "failed"
    """Neither could be started: nothing runs any more."""


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What a reload has changed."""

    outcome: ReloadOutcome
    digest_before: str
    """SHA-256 of the manifest that ran, written with its defaults left out."""
    digest_after: str
    """Of the new one; empty if that could not be read."""
    models_added: tuple[str, ...] = ()
    models_removed: tuple[str, ...] = ()
    models_reloaded: tuple[str, ...] = ()
    """In both manifests, and loaded anew."""
    models_kept: tuple[str, ...] = ()
    """In both manifests, and left on the device as they were."""
    requests_held: int = 0
    """Requests that came during the swap and were handed to the new revision."""
    error: str = ""


class _Models(NamedTuple):
    """What becomes of the models of two manifests."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    reloaded: tuple[str, ...]
    kept: tuple[str, ...]

    @classmethod
    def of(cls, before: Manifest, after: Manifest, *, are_kept: bool) -> _Models:
        old = [model.name for model in before.models]
        new = [model.name for model in after.models]
        both = tuple(name for name in new if name in old)
        return cls(
            tuple(name for name in new if name not in old),
            tuple(name for name in old if name not in new),
            () if are_kept else both,
            both if are_kept else (),
        )


_NO_MODELS: Final = _Models((), (), (), ())


class _Attempt:
    """One reload, as far as it got."""

    def __init__(self, before: Manifest, start_ns: int) -> None:
        self.start_ns = start_ns
        self.outcome = ReloadOutcome.REFUSED
        self.digest_before = manifest_digest(before)
        self.digest_after = ""
        self.models = _NO_MODELS
        self.held = 0
        self.error = ""

    def report(self) -> ReloadReport:
        return ReloadReport(
            self.outcome,
            self.digest_before,
            self.digest_after,
            *self.models,
            self.held,
            self.error,
        )

    def attributes(self) -> dict[str, Scalar]:
        return {
            names.RELOAD_OUTCOME: str(self.outcome),
            names.RELOAD_DIGEST_BEFORE: self.digest_before,
            names.RELOAD_DIGEST_AFTER: self.digest_after,
            names.RELOAD_MODELS_ADDED: ", ".join(self.models.added),
            names.RELOAD_MODELS_REMOVED: ", ".join(self.models.removed),
            names.RELOAD_MODELS_RELOADED: ", ".join(self.models.reloaded),
            names.RELOAD_MODELS_KEPT: ", ".join(self.models.kept),
            names.RELOAD_REQUESTS_HELD: self.held,
        }


class _Planned(NamedTuple):
    """A revision that could be started."""

    manifest: Manifest
    make: Callable[[Installation], Revision]
    models: PlannedModels | None
    """None if the models stay where they are."""


class Reloader:
    """Reloads the revision behind a gate; one reload at a time."""

    def __init__(
        self,
        platform: Platform,
        gate: RequestGate,
        pipelines: PipelineSet,
        requests: RequestStatistics,
        is_stamped: Callable[[int], bool],
    ) -> None:
        self._platform = platform
        self._gate = gate
        self._pipelines = pipelines
        self._requests = requests
        self._is_stamped = is_stamped
        self._busy = threading.Lock()
        self._is_closed = False
        self._starts = 0
        self._overruns: Counter[str] = Counter()
        """Of the revisions that are over."""
        self.recordings: list[Recording] = []
        """Of the revisions that are over, in their order."""

    def overruns(self) -> dict[str, int]:
        """Return the overruns of the profile so far, by model; empty without a profile."""
        guard, total = self._gate.revision.profile_guard, Counter(self._overruns)
        total.update({} if guard is None else guard.overruns)
        return dict(total)

    def close(self) -> None:
        """Wait for a reload that is under way; none begins after this."""
        with self._busy:
            self._is_closed = True

    def reload(self, source: str | Path | Manifest) -> ReloadReport:
        """See `Runtime.reload`."""
        if not self._busy.acquire(blocking=False):
            raise TransientError(
                "another reload is under way", context="reload", hint="try again when it is over"
            )
        try:
            self._assert_running()
            return self._reload(source)
        finally:
            self._busy.release()

    def _assert_running(self) -> None:
        fatal = self._gate.revision.loop.fatal_error
        if self._is_closed or fatal is not None:
            raise RuntimeStoppedError(
                "the runtime has stopped" if fatal is None else f"the runtime has failed: {fatal}",
                context="reload",
                hint="start it again with the new manifest",
            )

    def _reload(self, source: str | Path | Manifest) -> ReloadReport:
        platform = self._platform
        attempt = _Attempt(self._gate.revision.manifest, platform.clock.now_ns())
        try:
            with platform.phases.phase(names.RELOAD) as phase:
                try:
                    self._attempt(source, attempt)
                except BaseException as error:
                    attempt.error = str(error) or type(error).__name__
                    raise
                finally:
                    phase.attributes.update(attempt.attributes())
        finally:
            self._tell(attempt)
        return attempt.report()

    def _tell(self, attempt: _Attempt) -> None:
        if self._platform.hub.enabled:
            self._platform.hub.emit(
                ManifestReloaded(
                    attempt.start_ns,
                    self._platform.clock.now_ns(),
                    str(attempt.outcome),
                    attempt.digest_before,
                    attempt.digest_after,
                    *attempt.models,
                    attempt.held,
                    attempt.error,
                )
            )

    # --- before anything is touched -------------------------------------------------------------

    def _attempt(self, source: str | Path | Manifest, attempt: _Attempt) -> None:
        phases, old = self._platform.phases, self._gate.revision
        with phases.phase("manifest.validate"):
            manifest = source if isinstance(source, Manifest) else check_manifest(source)
            attempt.digest_after = manifest_digest(manifest)
            refuse_fixed(old.manifest, manifest)
            make_manifest_policy(manifest)
        planned = self._plan(manifest, old)
        change: PipelineChange | None = None
        try:
            models = old.models if planned.models is None else planned.models.models
            change = self._pipelines.plan_change(manifest, models)
            attempt.models = _Models.of(old.manifest, manifest, are_kept=planned.models is None)
            if planned.models is None and manifest == old.manifest:
                attempt.outcome = ReloadOutcome.UNCHANGED
                change.discard()
                return
            self._drain(old)
        except BaseException as error:
            if planned.models is not None:
                planned.models.give_up(error)
            if change is not None:
                change.discard()
            raise
        self._swap(old, planned, change, attempt)

    def _plan(self, manifest: Manifest, old: Revision, *, restores: bool = False) -> _Planned:
        platform = self._platform
        with platform.phases.phase("admission") as phase:
            admission = check_admission(manifest, platform.context.description)
            record_admission(admission, platform.phases, phase)
            enforce(manifest, admission)

        def make(installation: Installation) -> Revision:
            self._starts += 1
            return Revision(
                manifest, admission, installation, platform, self._is_stamped, self._starts
            )

        profile = admission.valid_profile
        if not restores and old.installation.key == InstallationKey.of(manifest, profile):
            check_models(manifest, old.installation.all_graphs)
            return _Planned(manifest, make, None)
        return _Planned(manifest, make, PlannedModels(manifest, platform, profile))

    def _drain(self, old: Revision) -> None:
        """Bring what is open to its end; raises TransientError if it takes too long."""
        clock = self._platform.clock
        timeout_ns = old.manifest.scheduler.drain_timeout_ns
        with self._platform.phases.phase("drain") as phase:
            until_ns = clock.now_ns() + timeout_ns
            is_idle, left = self._pipelines.pause(until_ns), 0
            if is_idle:
                self._gate.hold()
                left = self._gate.drain(until_ns)
            phase.attributes["requests_left"] = left
            if is_idle and not left:
                return
            self._gate.open(old)
            self._pipelines.resume()
            what = f"{left} requests" if is_idle else "items of pipelines"
            raise TransientError(
                f"{what} were still under way after {timeout_ns / 1e9:g} s; the manifest before "
                "goes on",
                context="reload",
                hint="try again when there is less to do, or raise `scheduler.drain_timeout`",
            )

    # --- the swap -------------------------------------------------------------------------------

    def _swap(
        self, old: Revision, planned: _Planned, change: PipelineChange, attempt: _Attempt
    ) -> None:
        try:
            old.stop()
            if old.recording is not None:
                self.recordings.append(old.recording)
            if old.profile_guard is not None:
                self._overruns.update(old.profile_guard.overruns)
            if planned.models is not None:
                # Both do not fit: the budget is for one.
                old.installation.close()
                gc.collect()
            new = self._start(planned, old.installation)
        except BaseException as failure:
            change.discard()
            self._restore(old, planned, failure, attempt)
        self._requests.add(tuple(model.name for model in planned.manifest.models))
        attempt.outcome = ReloadOutcome.APPLIED
        attempt.held = self._gate.open(new)
        with real_time_threads(planned.manifest.streams.real_time):
            self._pipelines.replace(change)

    def _start(self, planned: _Planned, kept: Installation) -> Revision:
        if planned.models is None:
            return planned.make(kept)
        installation = Installation(planned.models, self._platform)
        try:
            revision = planned.make(installation)
        except BaseException:
            installation.close()
            raise
        installation.settle()
        return revision

    def _restore(
        self, old: Revision, planned: _Planned, failure: BaseException, attempt: _Attempt
    ) -> NoReturn:
        """Start the manifest before once more, and raise what is to be told."""
        try:
            with self._platform.phases.phase("restore"):
                restores = planned.models is not None
                again = self._start(
                    self._plan(old.manifest, old, restores=restores), old.installation
                )
        except BaseException as second:
            attempt.outcome = ReloadOutcome.FAILED
            # Stopped as it is, it tells everyone who waits.
            attempt.held = self._gate.open(old)
            self._pipelines.resume()
            raise FatalError(
                f"the new manifest could not be started ({failure}), nor the one before again "
                f"({second}): nothing runs any more",
                context="reload",
                hint="start the runtime again",
            ) from failure
        attempt.outcome = ReloadOutcome.RESTORED
        attempt.held = self._gate.open(again)
        self._pipelines.resume()
        if not isinstance(failure, Exception):
            raise failure
        raise PermanentError(
            f"the new manifest could not be started, and the one before runs again: {failure}",
            context="reload",
        ) from failure


def manifest_digest(manifest: Manifest) -> str:
    """Return the SHA-256 of a manifest's text with defaults left out, as hexadecimal digits."""
    return hashlib.sha256(dump_manifest(manifest, schema_line="").encode("utf-8")).hexdigest()


def refuse_fixed(before: Manifest, after: Manifest) -> None:
    """Raise ManifestError with every key that differs and can not be changed by a reload."""
    old, new = manifest_to_table(before), manifest_to_table(after)
    file = str(after.beside(".toml"))
    changed = [key for path in FIXED for key in _differences(_at(old, path), _at(new, path), path)]
    if changed:
        raise ManifestError.of(
            [
                Problem(
                    file,
                    0,
                    0,
                    ".".join(key),
                    "a reload can not change this",
                    hint="put it back, or end the run and start it with the new manifest",
                )
                for key in changed
            ]
        )


def _at(table: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        table = table.get(key) if isinstance(table, Mapping) else None
    return table


def _differences(before: Any, after: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if isinstance(before, Mapping) or isinstance(after, Mapping):
        old = before if isinstance(before, Mapping) else {}
        new = after if isinstance(after, Mapping) else {}
        for key in dict.fromkeys((*old, *new)):
            yield from _differences(old.get(key), new.get(key), (*path, key))
    elif before != after:
        yield path
