"""The runner with real threads and a submit function that really works in the background."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.errors import (
    AegisError,
    DeadlineExceededError,
    DeviceLostError,
    PipelineError,
    QueueFullError,
    RuntimeStoppedError,
)
from aegis_pipe.events import EventHub, ItemFinished, StageFinished
from aegis_pipe.pipeline import PipelinePlan, PipelineRunner, SinkPlan, StagePlan
from aegis_pipe.pipeline.arrivals import as_fast_as_possible, periodic


class Numbers:
    outputs = ("x",)

    def __init__(self, count: int, bad: tuple[int, ...] = ()) -> None:
        self._count = count
        self._bad = bad

    def items(self) -> Iterator[dict[str, np.ndarray]]:
        source = self

        class Items(Iterator[dict[str, np.ndarray]]):
            next_number = 0

            def __next__(self) -> dict[str, np.ndarray]:
                number = self.next_number
                if number == source._count:
                    raise StopIteration
                self.next_number += 1
                if number in source._bad:
                    raise PipelineError(f"item {number} is bad")
                return {"x": np.array(number)}

        return Items()


class Double:
    inputs = ("input",)
    outputs = ("output",)

    def __call__(self, values):
        return {"output": values["input"] * 2}


class Collect:
    def __init__(self, fail_at: int | None = None) -> None:
        self.items: list[tuple[int, dict[str, int]]] = []
        self.closed = 0
        self._fail_at = fail_at

    def write(self, item, values) -> None:
        if item == self._fail_at:
            raise OSError("no space left")
        self.items.append((item, {name: int(value) for name, value in values.items()}))

    def close(self) -> str:
        self.closed += 1
        return f"collected {len(self.items)}"


class Models:
    """Adds one, on threads of its own and out of order."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(4)
        self.in_flight_max = 0
        self._in_flight = 0
        self._lock = threading.Lock()
        self._ids = 0
        self.errors: dict[int, AegisError] = {}
        self.refusals = 0
        self.deadlines: list[int | None] = []
        self.patience: list[bool] = []

    def submit(self, model, inputs, *, priority, deadline_ns, is_patient):
        with self._lock:
            self._ids += 1
            request_id = self._ids
            self.deadlines.append(deadline_ns)
            self.patience.append(is_patient)
            if self.refusals:
                self.refusals -= 1
                raise QueueFullError("full")
            self._in_flight += 1
            self.in_flight_max = max(self.in_flight_max, self._in_flight)

        def run() -> dict[str, np.ndarray]:
            with self._lock:
                self._in_flight -= 1
            value = int(next(iter(inputs.values())))
            if value in self.errors:
                raise self.errors[value]
            return {"y": np.array(value + 1)}

        future: Future = self.pool.submit(run)
        future.request_id = request_id
        return future


@pytest.fixture
def models():
    models = Models()
    yield models
    models.pool.shutdown()


def make_plan(source, sink, **options) -> PipelinePlan:
    return PipelinePlan(
        name="test",
        source=source,
        source_kind="numbers",
        stages=(
            StagePlan("after", {"input": "model.y"}, ("output",), transform=Double()),
            StagePlan("before", {"input": "source.x"}, ("output",), transform=Double()),
            StagePlan("model", {"x": "before.output"}, ("y",), model="m"),
            StagePlan("again", {"x": "after.output"}, ("y",), model="m"),
        ),
        sinks=(SinkPlan("sink", sink, ("source.x", "again.y")),),
        **options,
    )


def run(plan, models, arrivals=None, listeners=(), on_error=lambda pipeline, error: None):
    runner = PipelineRunner(
        plan,
        arrivals or as_fast_as_possible(),
        models.submit,
        SystemClock(),
        EventHub(*listeners),
        on_error=on_error,
    )
    runner.start()
    assert runner.join(60)
    return runner.report()


def test_stages_are_ordered_and_cut_into_legs_at_awaited_models(models) -> None:
    plan = make_plan(Numbers(0), Collect())
    assert [[stage.name for stage in leg] for leg in plan.legs] == [
        ["before", "model"],
        ["after", "again"],
        [],
    ]


def test_every_item_comes_through_in_order(models) -> None:
    sink = Collect()
    report = run(make_plan(Numbers(200), sink), models)
    assert report.completed == 200
    assert report.failed == report.dropped == 0
    assert report.sinks == ("collected 200",)
    assert sink.items == [(n, {"source.x": n, "again.y": (2 * n + 1) * 2 + 1}) for n in range(200)]


def test_items_under_way_are_bounded(models) -> None:
    run(make_plan(Numbers(300), Collect(), queue_capacity=2), models)
    assert models.in_flight_max <= 2 * (2 + 2)


def test_a_bad_item_fails_alone(models) -> None:
    sink, errors = Collect(), []
    models.errors[8] = DeadlineExceededError("late")
    report = run(
        make_plan(Numbers(10, bad=(2,)), sink), models, on_error=lambda p, e: errors.append(str(e))
    )
    assert (report.completed, report.failed, report.dropped) == (8, 1, 1)
    assert report.reasons == {"PipelineError": 1, "DeadlineExceededError": 1}
    assert errors == ["item 2 is bad"]
    assert [item for item, _ in sink.items] == [0, 1, 3, 5, 6, 7, 8, 9]


def test_a_sink_that_raises_ends_the_pipeline_with_its_reason(models) -> None:
    sink = Collect(fail_at=5)
    report = run(make_plan(Numbers(10_000), sink), models)
    assert "sink `sink`: it raised OSError: no space left" in report.error
    assert report.completed == 5
    assert sink.closed == 1


@pytest.mark.parametrize("error", [DeviceLostError("gone"), RuntimeStoppedError("stopped")])
def test_the_end_of_the_runtime_ends_an_endless_pipeline(models, error) -> None:
    models.errors = dict.fromkeys(range(20, 10**6), error)
    report = run(make_plan(Numbers(10**6), Collect()), models)
    assert report.error == str(error)
    assert report.failed == report.reasons[type(error).__name__] >= 1


def test_what_comes_through_after_the_end_of_the_runtime_blames_no_sink(models) -> None:
    # Item 10, doubled on its way there.
    models.errors = {20: DeviceLostError("gone")}
    report = run(make_plan(Numbers(10**6), Collect()), models)
    assert report.completed == 10
    assert report.reasons.keys() <= {"DeviceLostError", "pipeline_ended"}


def test_a_pipeline_that_was_stopped_is_not_ended_by_the_end_of_the_runtime(models) -> None:
    started, may_end = threading.Event(), threading.Event()

    def submit(model, inputs, **options):
        started.set()
        assert may_end.wait(60)
        raise RuntimeStoppedError("stopped")

    plan = make_plan(Numbers(5), Collect())
    runner = PipelineRunner(plan, as_fast_as_possible(), submit, SystemClock(), EventHub())
    runner.start()
    assert started.wait(60)
    runner.stop()
    runner.give_up()
    may_end.set()
    assert runner.join(60)
    report = runner.report()
    assert report.error == ""
    assert report.dropped == report.reasons["RuntimeStoppedError"] >= 1


def test_a_refused_request_is_offered_again_when_blocking(models) -> None:
    models.refusals = 3
    report = run(make_plan(Numbers(5), Collect()), models)
    assert report.completed == 5
    assert all(models.patience)


def test_a_refused_request_drops_its_item_when_dropping(models) -> None:
    models.refusals = 1
    report = run(make_plan(Numbers(1), Collect(), drop_when_full=True), models)
    assert (report.completed, report.dropped) == (0, 1)
    assert report.reasons == {"QueueFullError": 1}
    assert not any(models.patience)


def test_the_end_of_a_pipeline_ends_its_wait_for_room(models) -> None:
    """What is still refused then is not offered again, which is said before it is offered."""
    models.refusals = 10**9
    plan = make_plan(Numbers(1), Collect())
    runner = PipelineRunner(plan, as_fast_as_possible(), models.submit, SystemClock(), EventHub())
    runner.start()
    while len(models.patience) < 3:
        pass
    runner.stop()
    assert runner.join(60)
    assert runner.report().reasons == {"QueueFullError": 1}
    assert models.patience == [True] * (len(models.patience) - 1) + [False]


def test_stages_share_one_end_to_end_deadline(models) -> None:
    starts: list[int] = []

    def listen(event) -> None:
        if isinstance(event, ItemFinished):
            starts.append(event.start_ns)

    run(make_plan(Numbers(3), Collect(), deadline_ns=10**12), models, listeners=[listen])
    assert sorted(models.deadlines) == sorted(start + 10**12 for start in starts for _ in "ab")


def test_stop_lets_items_under_way_finish(models) -> None:
    sink = Collect()
    plan = make_plan(Numbers(10**9), sink)
    runner = PipelineRunner(plan, periodic(500.0), models.submit, SystemClock(), EventHub())
    runner.start()
    while not sink.items:
        pass
    runner.stop()
    assert runner.join(60)
    assert runner.report().completed == len(sink.items)
    assert runner.report().error == ""


def test_events_tell_every_stage_of_every_item(models) -> None:
    events: list[object] = []
    run(make_plan(Numbers(2), Collect()), models, listeners=[events.append])
    stages = [e.stage for e in events if isinstance(e, StageFinished) and e.item == 1]
    assert sorted(stages) == ["after", "again", "before", "model", "numbers", "sink"]
    assert all(e.end_ns >= e.start_ns for e in events)
    requests = [e.request_id for e in events if isinstance(e, StageFinished) and e.kind == "model"]
    assert len(set(requests)) == 4
    assert sum(isinstance(e, ItemFinished) for e in events) == 2


def test_a_stage_begins_when_its_inputs_are_there(models) -> None:
    events: list[object] = []
    run(make_plan(Numbers(3), Collect()), models, listeners=[events.append])
    stages = {(e.item, e.stage): e for e in events if isinstance(e, StageFinished)}
    for item in range(3):
        assert stages[item, "after"].start_ns >= stages[item, "model"].end_ns


def test_a_cycle_is_refused() -> None:
    stage = StagePlan("a", {"input": "b.output"}, ("output",), transform=Double())
    other = StagePlan("b", {"input": "a.output"}, ("output",), transform=Double())
    with pytest.raises(PipelineError, match="waits for itself"):
        PipelinePlan("p", Numbers(1), "numbers", (stage, other), ())
