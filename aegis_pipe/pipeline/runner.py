"""Runs one pipeline: a thread per leg, bounded queues between them, items in order throughout.

A failing item (an unreadable image, an expired request) ends that item alone; a failing sink ends
the pipeline, because what it should have kept would be lost, and so does the end of the runtime,
which no later item would survive. Either way the report says so.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from aegis_pipe.clock import Clock
from aegis_pipe.errors import (
    AegisError,
    DeadlineExceededError,
    FatalError,
    PermanentError,
    PipelineError,
    QueueFullError,
    RuntimeStoppedError,
)
from aegis_pipe.events import EventHub, ItemFinished, StageFinished
from aegis_pipe.pipeline.parts import Values
from aegis_pipe.pipeline.plan import SOURCE, PipelinePlan, StagePlan

RETRY_NS = 1_000_000
"""Pause before a blocked pipeline offers a request again that the full queue refused."""


class SubmittedFuture(Protocol):
    """What submitting returns: a future that knows its request."""

    request_id: int

    def result(self) -> dict[str, np.ndarray]:
        """Wait for the outputs."""
        ...

    def done(self) -> bool:
        """Return whether the result is there."""
        ...

    def cancel(self) -> bool:
        """Withdraw the request."""
        ...


class Submit(Protocol):
    """Hands a request to the scheduler; raises QueueFullError at once if there is no room."""

    def __call__(
        self,
        model: str,
        inputs: Values,
        *,
        priority: int | None,
        deadline_ns: int | None,
        is_patient: bool,
    ) -> SubmittedFuture:
        """Submit; `deadline_ns` is an instant, None for the model's own.

        `is_patient` says that the same will be offered again if the queue is full: that is a wait
        then, and no rejected request.
        """
        ...


@dataclass(frozen=True, slots=True)
class PipelineReport:
    """How a pipeline ended."""

    name: str
    completed: int
    failed: int
    dropped: int
    reasons: Mapping[str, int]
    """How often each reason for failing or dropping occurred."""
    sinks: tuple[str, ...]
    """One line per sink."""
    error: str
    """What stopped the pipeline; empty if it ran to its end."""


@dataclass(slots=True, eq=False)
class _Item:
    number: int
    start_ns: int
    values: dict[str, np.ndarray] = field(default_factory=dict)
    pending: dict[str, tuple[SubmittedFuture, int]] = field(default_factory=dict)
    """Per model stage: its future and when it was submitted."""
    error: AegisError | None = None


_Edge = queue.Queue["_Item | None"]


class PipelineRunner:
    """One running pipeline. `start`, then `join` for its end, or `stop` to end it early.

    `pause` and `resume` hold its source at the boundary between two items. Items are numbered from
    `first_item`.
    """

    def __init__(
        self,
        plan: PipelinePlan,
        arrivals: Iterator[int],
        submit: Submit,
        clock: Clock,
        hub: EventHub,
        *,
        on_error: Callable[[str, AegisError], None] = lambda pipeline, error: None,
        first_item: int = 0,
    ) -> None:
        self.next_item = first_item
        """Number of the next item."""
        self._plan = plan
        self._arrivals = arrivals
        self._submit = submit
        self._clock = clock
        self._hub = hub
        self._on_error = on_error
        self._stopping = threading.Event()
        self._edges: list[_Edge] = [queue.Queue(plan.queue_capacity) for _ in plan.legs]
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._state = threading.Condition()
        """Of the counts, and of these three."""
        self._is_paused = False
        self._is_given_up = False
        self._open_items = 0
        self._sink_lines: tuple[str, ...] = ()
        self._error: AegisError | None = None
        self._at_end: list[Callable[[], None]] = []
        self._threads = [
            threading.Thread(target=target, name=f"{plan.name}-{role}", daemon=True)
            for role, target in (
                ("source", self._run_source),
                *((f"leg-{leg}", self._leg_runner(leg)) for leg in range(len(plan.legs))),
            )
        ]

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return self._plan.name

    def start(self) -> None:
        """Begin to take items from the source."""
        for thread in self._threads:
            thread.start()

    def on_end(self, action: Callable[[], None]) -> None:
        """Have `action` called once all items are through; to be said before `start`."""
        self._at_end.append(action)

    def stop(self) -> None:
        """Take no more items; those under way go on to their end."""
        with self._state:
            self._stopping.set()
            self._state.notify_all()

    def give_up(self) -> None:
        """Count items whose requests the end of the runtime ends as dropped; after `stop`."""
        self._is_given_up = True

    def pause(self) -> None:
        """Take no item until `resume`; those under way go on to their end."""
        with self._state:
            self._is_paused = True

    def resume(self) -> None:
        """Go on taking items; what is due at a time comes later by as long as it was held up."""
        with self._state:
            self._is_paused = False
            self._state.notify_all()

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no item is under way; return whether that is so."""
        with self._state:
            return self._state.wait_for(lambda: self._open_items == 0, timeout_s)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until all items are through; return whether they are."""
        self._threads[-1].join(timeout_s)
        return not self._threads[-1].is_alive()

    def report(self) -> PipelineReport:
        """Return how far it got; complete once `join` returned True."""
        with self._state:
            return PipelineReport(
                self._plan.name,
                self._counts["completed"],
                self._counts["failed"],
                self._counts["dropped"],
                dict(self._reasons),
                self._sink_lines,
                str(self._error) if self._error else "",
            )

    def _run_source(self) -> None:
        start_ns = self._clock.now_ns()
        items = self._plan.source.items()
        try:
            for offset_ns in self._arrivals:
                self._clock.wait_until(start_ns + offset_ns, self._stopping)
                start_ns += self._begin_item()
                item = None
                if not self._stopping.is_set():
                    item = self._take(items, self.next_item)
                if item is None:
                    self._leave_item()
                    break
                self.next_item += 1
                self._offer(item)
        finally:
            self._edges[0].put(None)

    def _begin_item(self) -> int:
        """Count an item as under way, once it may be; return for how long it was held up, in ns."""
        with self._state:
            if not self._is_paused:
                self._open_items += 1
                return 0
            since_ns = self._clock.now_ns()
            self._state.wait_for(lambda: not self._is_paused or self._stopping.is_set())
            self._open_items += 1
        return self._clock.now_ns() - since_ns

    def _leave_item(self) -> None:
        with self._state:
            self._open_items -= 1
            self._state.notify_all()

    def _take(self, items: Iterator[Values], number: int) -> _Item | None:
        """Read one item from the source; None at its end."""
        start_ns = self._clock.now_ns()
        item = _Item(number, start_ns)
        try:
            values = next(items, None)
            if values is None:
                return None
            item.values = {f"{SOURCE}.{name}": value for name, value in values.items()}
        except AegisError as error:
            item.error = error
        except Exception as error:
            item.error = self._fail(f"pipeline `{self.name}`, source", error)
        self._emit_stage(item, self._plan.source_kind, "source", start_ns)
        return item

    def _offer(self, item: _Item) -> None:
        """Put an item on the first edge, or drop it if that is full and the manifest says so."""
        if not self._plan.drop_when_full:
            self._edges[0].put(item)
            return
        try:
            self._edges[0].put_nowait(item)
        except queue.Full:
            self._finish(item, "dropped", "edge_full")

    def _leg_runner(self, leg: int) -> Callable[[], None]:
        is_last = leg == len(self._plan.legs) - 1

        def run() -> None:
            while (item := self._edges[leg].get()) is not None:
                self._run_stages(item, self._plan.legs[leg])
                if is_last:
                    self._end(item)
                else:
                    self._edges[leg + 1].put(item)
            if is_last:
                self._close_sinks()
                for action in self._at_end:
                    action()
            else:
                self._edges[leg + 1].put(None)

        return run

    def _run_stages(self, item: _Item, stages: tuple[StagePlan, ...]) -> None:
        for stage in stages:
            if item.error is not None:
                return
            # The wait for its inputs belongs to the model stages that make them.
            inputs = self._inputs(item, stage)
            if inputs is None:
                return
            start_ns = self._clock.now_ns()
            try:
                if stage.model:
                    self._submit_stage(item, stage, inputs, start_ns)
                else:
                    self._transform(item, stage, inputs)
                    self._emit_stage(item, stage.name, "transform", start_ns)
            except AegisError as error:
                item.error = error
                self._emit_stage(
                    item, stage.name, "model" if stage.model else "transform", start_ns
                )

    def _transform(self, item: _Item, stage: StagePlan, inputs: Values) -> None:
        assert stage.transform is not None
        try:
            outputs = stage.transform(inputs)
        except AegisError:
            raise
        except Exception as error:
            raise PipelineError(
                f"the transform raised {type(error).__name__}: {error}",
                context=f"pipeline `{self.name}`, stage `{stage.name}`, item {item.number}",
            ) from error
        item.values.update({f"{stage.name}.{name}": value for name, value in outputs.items()})

    def _submit_stage(self, item: _Item, stage: StagePlan, inputs: Values, start_ns: int) -> None:
        plan = self._plan
        deadline_ns = None if plan.deadline_ns is None else item.start_ns + plan.deadline_ns
        while True:
            is_patient = not (plan.drop_when_full or self._stopping.is_set())
            try:
                future = self._submit(
                    stage.model,
                    inputs,
                    priority=plan.priority,
                    deadline_ns=deadline_ns,
                    is_patient=is_patient,
                )
                break
            except QueueFullError:
                if not is_patient:
                    raise
                self._clock.wait_until(self._clock.now_ns() + RETRY_NS, self._stopping)
        item.pending[stage.name] = (future, start_ns)

    def _inputs(self, item: _Item, stage: StagePlan) -> Values | None:
        """Wait for a stage's inputs; None if one failed to come, which ends the item."""
        try:
            for value in stage.inputs.values():
                self._await(item, value)
        except AegisError:
            return None
        return {operand: item.values[value] for operand, value in stage.inputs.items()}

    def _await(self, item: _Item, value: str) -> None:
        """Wait for the model stage that makes `value`, if it is still under way."""
        stage = value.partition(".")[0]
        if stage not in item.pending:
            return
        future, start_ns = item.pending.pop(stage)
        try:
            outputs = future.result()
            item.values.update({f"{stage}.{name}": array for name, array in outputs.items()})
        except AegisError as error:
            item.error = error
            raise
        finally:
            self._emit_stage(item, stage, "model", start_ns, future.request_id)

    def _end(self, item: _Item) -> None:
        """Await what is left, hand the values to the sinks, and say how the item ended."""
        for stage in list(item.pending):
            try:
                self._await(item, f"{stage}.")
            except AegisError as error:
                item.error = item.error or error
        if item.error is None and self._error is None:
            self._write(item)
        if self._is_end_of_runtime(item.error):
            assert item.error is not None
            self._fail("", item.error)
        if item.error is not None:
            outcome = "dropped" if self._is_no_fault(item.error) else "failed"
            self._finish(item, outcome, type(item.error).__name__, item.error)
        elif self._error is not None:
            # It came through, but where it would go has failed, or the runtime has ended.
            self._finish(item, "dropped", "pipeline_ended")
        else:
            self._finish(item, "completed", "")

    def _is_end_of_runtime(self, error: AegisError | None) -> bool:
        """Return whether no item can succeed any more; to stop is then no failure of its own."""
        if isinstance(error, RuntimeStoppedError):
            return not self._stopping.is_set()
        return isinstance(error, FatalError)

    def _is_no_fault(self, error: AegisError) -> bool:
        """Return whether load or the end of the runtime, not the item or a model, is to blame."""
        if isinstance(error, RuntimeStoppedError):
            return self._is_given_up
        return isinstance(error, DeadlineExceededError | QueueFullError)

    def _write(self, item: _Item) -> None:
        for sink in self._plan.sinks:
            start_ns = self._clock.now_ns()
            try:
                sink.sink.write(item.number, {name: item.values[name] for name in sink.inputs})
            except Exception as error:
                item.error = self._fail(f"pipeline `{self.name}`, sink `{sink.name}`", error)
                return
            finally:
                self._emit_stage(item, sink.name, "sink", start_ns)

    def _fail(self, context: str, error: Exception) -> AegisError:
        """End the pipeline: later items would be lost by the same sink, or fail as this one did."""
        if not isinstance(error, AegisError):
            error = PipelineError(f"it raised {type(error).__name__}: {error}", context=context)
        self._error = self._error or error
        self._stopping.set()
        return error

    def _close_sinks(self) -> None:
        lines = []
        for sink in self._plan.sinks:
            try:
                lines.append(sink.sink.close())
            except Exception as error:
                self._fail(f"pipeline `{self.name}`, sink `{sink.name}`", error)
        self._sink_lines = tuple(lines)

    def _finish(
        self, item: _Item, outcome: str, reason: str, error: AegisError | None = None
    ) -> None:
        with self._state:
            self._counts[outcome] += 1
            if reason:
                self._reasons[reason] += 1
        if isinstance(error, PermanentError) or (error and outcome == "failed"):
            self._on_error(self.name, error)
        if self._hub.enabled:
            end_ns = self._clock.now_ns()
            self._hub.emit(
                ItemFinished(self.name, item.number, outcome, reason, item.start_ns, end_ns)
            )
        self._leave_item()

    def _emit_stage(
        self, item: _Item, stage: str, kind: str, start_ns: int, request_id: int = 0
    ) -> None:
        if self._hub.enabled:
            error = str(item.error) if item.error else ""
            end_ns = self._clock.now_ns()
            self._hub.emit(
                StageFinished(
                    self.name, item.number, stage, kind, start_ns, end_ns, request_id, error
                )
            )
