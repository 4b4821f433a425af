"""The pipelines of a running manifest, and which of them go on through a reload."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from aegis_pipe.clock import Clock
from aegis_pipe.deployment_builder import ModelInformation
from aegis_pipe.errors import AegisError
from aegis_pipe.events import EventHub
from aegis_pipe.manifest.model import Manifest, PipelineSection
from aegis_pipe.pipeline import PipelinePlan, PipelineReport, PipelineRunner
from aegis_pipe.pipeline.runner import Submit
from aegis_pipe.pipeline_builder import PipelineBuilder, arrivals_of

OnError = Callable[[str, AegisError], None]

JOIN_SLICE_S = 0.02
"""Pause between two looks at what may end a wait for a pipeline."""


@dataclass(frozen=True, slots=True)
class _Definition:
    """What a pipeline does: of equal ones, the one that runs will do."""

    section: PipelineSection
    models: tuple[ModelInformation, ...]
    """Those that it uses."""

    @classmethod
    def of(cls, section: PipelineSection, models: Mapping[str, ModelInformation]) -> _Definition:
        used = [stage.model for stage in section.stages if stage.model is not None]
        like = getattr(section.source, "like", None)
        names = used if like is None else [*used, like]
        return cls(section, tuple(models[name] for name in names))

    @property
    def until(self) -> str | None:
        """The pipeline with which it ends."""
        return getattr(self.section.source, "until", None)


@dataclass(slots=True, eq=False)
class PipelineChange:
    """What a reload makes of the pipelines; worked out before anything is touched."""

    definitions: Sequence[_Definition]
    plans: Mapping[str, PipelinePlan]
    """Of those that are new or changed, by name; the others go on."""

    def discard(self) -> None:
        """Close what was opened for plans that will not run."""
        for plan in self.plans.values():
            for sink in plan.sinks:
                with contextlib.suppress(AegisError):
                    sink.sink.close()


class PipelineSet:
    """Runs pipelines. Thread-safe but for `start`, `replace` and `stop`."""

    def __init__(
        self, submit: Submit, clock: Clock, hub: EventHub, write_line: Callable[[str], None]
    ) -> None:
        self._submit = submit
        self._clock = clock
        self._hub = hub
        self._write_line = write_line
        self._on_error: OnError = _nothing
        self._is_started = False
        self._definitions: Sequence[_Definition] = ()
        self._runners: dict[str, PipelineRunner] = {}
        self._retired: dict[str, PipelineReport] = {}
        """What became of pipelines that a reload has ended, by name."""

    def start(
        self, manifest: Manifest, models: Mapping[str, ModelInformation], on_error: OnError
    ) -> None:
        """Begin to feed a manifest's pipelines; raises PipelineError for one that can not be."""
        self._on_error = on_error
        self._is_started = True
        change = self._plan(manifest, models, frozenset(), append=False)
        self.replace(change)

    def plan_change(
        self, manifest: Manifest, models: Mapping[str, ModelInformation]
    ) -> PipelineChange:
        """Make the parts of what is new or changed; raises PipelineError if they can not be made.

        Sinks add to their files, which others may have written to.
        """
        if not self._is_started:
            return PipelineChange((), {})
        return self._plan(manifest, models, self._unchanged(manifest, models), append=True)

    def _plan(
        self,
        manifest: Manifest,
        models: Mapping[str, ModelInformation],
        kept: frozenset[str],
        *,
        append: bool,
    ) -> PipelineChange:
        builder = PipelineBuilder(
            manifest,
            {name: information.inputs for name, information in models.items()},
            {name: tuple(information.outputs) for name, information in models.items()},
            self._write_line,
        )
        change = PipelineChange(
            [_Definition.of(section, models) for section in manifest.pipelines], plans := {}
        )
        try:
            for section in manifest.pipelines:
                if section.name not in kept:
                    plans[section.name] = builder.build(section, append=append)
        except BaseException:
            change.discard()
            raise
        return change

    def _unchanged(
        self, manifest: Manifest, models: Mapping[str, ModelInformation]
    ) -> frozenset[str]:
        """Return the pipelines that go on: the same, as are those with which they end."""
        before = {each.section.name: each for each in self._definitions}
        after = {each.name: _Definition.of(each, models) for each in manifest.pipelines}
        kept = {name for name, each in after.items() if before.get(name) == each}
        while dropped := {name for name in kept if (after[name].until or name) not in kept}:
            kept -= dropped
        return frozenset(kept)

    def pause(self, until_ns: int) -> bool:
        """Stop the sources between two items and finish what is under way; return whether it is.

        `resume` has to follow.
        """
        for runner in self._runners.values():
            runner.pause()
        return all(
            runner.wait_idle(max(0, until_ns - self._clock.now_ns()) / 1e9)
            for runner in self._runners.values()
        )

    def resume(self) -> None:
        """Have the sources go on."""
        for runner in self._runners.values():
            runner.resume()

    def replace(self, change: PipelineChange) -> None:
        """End what is gone or changed, start what is new or changed, and have the others go on."""
        if not self._is_started:
            return
        before = self._runners
        names = [each.section.name for each in change.definitions]
        kept = [name for name in names if name not in change.plans]
        # First of all, so that the end of one that a reload ends is not the end of others.
        self._runners = {name: before[name] for name in kept}
        for name, runner in before.items():
            if name not in self._runners:
                runner.stop()
                runner.join()
                self._retire(runner.report())
        self._definitions = change.definitions
        self._runners = {
            each.section.name: before[each.section.name]
            if each.section.name in kept
            else self._make(each, change, before.get(each.section.name))
            for each in change.definitions
        }
        for name in change.plans:
            self._runners[name].start()
        for each in change.definitions:
            if each.until is not None and self._runners[each.until].join(0):
                self._runners[each.section.name].stop()
        self.resume()

    def _make(
        self, each: _Definition, change: PipelineChange, before: PipelineRunner | None
    ) -> PipelineRunner:
        name = each.section.name
        runner = PipelineRunner(
            change.plans[name],
            arrivals_of(each.section),
            self._submit,
            self._clock,
            self._hub,
            on_error=self._on_error,
            first_item=0 if before is None else before.next_item,
        )
        runner.on_end(lambda: self._end_others(name, runner))
        return runner

    def _end_others(self, name: str, runner: PipelineRunner) -> None:
        """End the pipelines that last as long as this one."""
        if self._runners.get(name) is runner:
            for each in self._definitions:
                if each.until == name:
                    self._runners[each.section.name].stop()

    def _retire(self, report: PipelineReport) -> None:
        earlier = self._retired.get(report.name)
        self._retired[report.name] = report if earlier is None else _together(earlier, report)

    def join(self, timeout_s: float, stop: threading.Event) -> bool:
        """Wait for the end of all pipelines, `stop` or the timeout; return whether all ended.

        Without pipelines there is no end.
        """
        end_ns = self._clock.now_ns() + round(timeout_s * 1e9)
        while True:
            runners = self._runners
            for runner in runners.values():
                while not runner.join(JOIN_SLICE_S):
                    if stop.is_set() or self._clock.now_ns() >= end_ns:
                        return False
            # Others may have taken their place meanwhile.
            if runners is self._runners:
                break
        if not runners:
            self._clock.wait_until(end_ns, stop)
        return bool(runners)

    def stop(self, until_ns: int, give_up: threading.Event) -> None:
        """Take no more items, and finish what is under way: until that instant or `give_up`.

        What is still under way then is dropped once its requests have ended; `finish` follows.
        """
        runners = self._runners.values()
        for runner in runners:
            runner.stop()
        for runner in runners:
            while not runner.join(JOIN_SLICE_S):
                if give_up.is_set() or self._clock.now_ns() >= until_ns:
                    runner.give_up()
                    break

    def finish(self) -> None:
        """Wait until all items are through and the sinks closed: requests have ended by now."""
        for runner in self._runners.values():
            runner.join()

    def reports(self) -> tuple[PipelineReport, ...]:
        """Return how far the pipelines got; those that a reload has ended come last."""
        reports = {}
        for name, runner in self._runners.items():
            report, earlier = runner.report(), self._retired.get(name)
            reports[name] = report if earlier is None else _together(earlier, report)
        return tuple(
            (reports | {k: v for k, v in self._retired.items() if k not in reports}).values()
        )


def _together(earlier: PipelineReport, later: PipelineReport) -> PipelineReport:
    """Return what two pipelines of one name did, one after the other."""
    return replace(
        later,
        completed=earlier.completed + later.completed,
        failed=earlier.failed + later.failed,
        dropped=earlier.dropped + later.dropped,
        reasons=dict(Counter(earlier.reasons) + Counter(later.reasons)),
        sinks=earlier.sinks + later.sinks,
        error=later.error or earlier.error,
    )


def _nothing(pipeline: str, error: AegisError) -> None:
    """Take no notice."""
