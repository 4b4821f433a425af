"""What a caller hands in, how it waits, and what ends it.

What depends on who is quicker is settled by a `Latch`, which holds the scheduling thread right
after it has started a request.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import helper

import aegis_pipe
from aegis_pipe.app import PRIORITY_MAX
from aegis_pipe.events import DecisionMade, Event, RequestFinished
from tests.unit.app.small_models import (
    FLOAT_ROW,
    SQUEEZENET,
    WAIT_S,
    Latch,
    Open,
    Save,
    Write,
    error_of,
    row,
)


def refusal(runtime: aegis_pipe.Runtime, model: str, **inputs: Any) -> str:
    with pytest.raises(aegis_pipe.InvalidInputError) as caught:
        runtime.submit(model, inputs)
    return str(caught.value)


def test_what_does_not_fit_is_refused_by_name(opened: Open, product: str) -> None:
    runtime = opened(detector=product)
    assert "did you mean `detector`?" in refusal(runtime, "detectr", x=row())
    assert "the models are `detector`" in refusal(runtime, "zzz", x=row())
    assert refusal(runtime, "detector", x=row().T).startswith(
        "model `detector`, input `x`: expected float32[1, 64], found float32[64, 1]\n  hint: "
    )
    assert "found float64[1, 64]" in refusal(runtime, "detector", x=row().astype(np.float64))
    assert "no value was given\n  hint: give float32[1, 64]" in refusal(runtime, "detector")
    assert "no input `z`\n  hint: its inputs are `x`" in refusal(runtime, "detector", x=row(), z=1)
    assert "this is no array" in refusal(runtime, "detector", x=[[1], [1, 2]])
    assert "no model `None`" in refusal(runtime, None)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(aegis_pipe.InvalidInputError, match="by name, not as list"):
        runtime.submit("detector", [row()])  # type: ignore[arg-type]  # wrong on purpose
    assert runtime.statistics().models[0].submitted == 0


@pytest.mark.parametrize(
    "options",
    [
        {"priority": "high"},
        {"priority": 1.5},
        {"priority": -1},
        {"priority": PRIORITY_MAX + 1},
        {"deadline": -0.1},
        {"deadline": float("nan")},
        {"deadline": float("inf")},
        {"deadline": "20 parsecs"},
        {"deadline": ""},
    ],
)
def test_a_priority_or_deadline_that_is_none_is_refused_and_harms_nobody(
    opened: Open, product: str, options: dict[str, Any]
) -> None:
    runtime = opened(m=product)
    with pytest.raises(aegis_pipe.InvalidInputError) as caught:
        runtime.submit("m", {"x": row()}, **options)
    assert caught.value.context in options
    assert runtime.infer("m", {"x": row()})["y"].shape == (1, 64)


def test_a_deadline_after_all_of_us_is_no_trouble(opened: Open, product: str) -> None:
    runtime = opened(m=product)
    far = runtime.submit("m", {"x": row()}, deadline="2000000 h")
    assert far.result(WAIT_S)["y"].shape == (1, 64)


@pytest.mark.parametrize(
    "array",
    [
        np.repeat(row(), 2, axis=1)[:, ::2],
        np.flip(np.flip(row(), 1).copy(), 1),
        np.asfortranarray(row()),
        row().astype(">f4"),
        np.broadcast_to(row(), (3, 1, 64))[1],
        row().tobytes(),
    ],
    ids=["strided", "reversed", "fortran", "big-endian", "broadcast", "read-only"],
)
def test_arrays_may_lie_in_memory_as_they_like(
    opened: Open, product: str, array: np.ndarray | bytes
) -> None:
    if isinstance(array, bytes):
        array = np.frombuffer(array, np.float32).reshape(1, 64)
    runtime = opened(m=product)
    expected = runtime.infer("m", {"x": row()})["y"]
    np.testing.assert_array_equal(runtime.infer("m", {"x": array})["y"], expected)


def test_results_belong_to_the_caller(opened: Open, product: str) -> None:
    runtime = opened(m=product)
    first = runtime.infer("m", {"x": row(1)})["y"]
    kept = first.copy()
    second = runtime.infer("m", {"x": row(2)})["y"]
    np.testing.assert_array_equal(first, kept)
    second[:] = 0
    np.testing.assert_array_equal(runtime.infer("m", {"x": row(1)})["y"], kept)


def test_priority_decides_who_is_next(opened: Open, product: str, latch: Latch) -> None:
    runtime = opened("[scheduler]", 'ageing = "1 h"', m=product, listeners=[latch])
    futures = [runtime.submit("m", {"x": row()})]
    assert latch.reached.wait(WAIT_S)
    futures += [runtime.submit("m", {"x": row()}, priority=level) for level in (1, 5, 0, 5)]
    latch.release()
    for future in futures:
        future.result(WAIT_S)
    assert latch.started == [1, 3, 5, 2, 4]


def test_a_full_queue_says_so_at_once_and_takes_more_later(
    opened: Open, product: str, latch: Latch
) -> None:
    runtime = opened("[scheduler]", "queue_capacity = 2", m=product, listeners=[latch])
    accepted = [runtime.submit("m", {"x": row()})]
    assert latch.reached.wait(WAIT_S)
    accepted += [runtime.submit("m", {"x": row()}) for _ in range(2)]
    with pytest.raises(aegis_pipe.QueueFullError, match="2 requests wait") as caught:
        runtime.submit("m", {"x": row()})
    assert caught.value.category is aegis_pipe.ErrorCategory.TRANSIENT
    assert runtime.statistics().queue_depth == 2
    latch.release()
    for future in accepted:
        future.result(WAIT_S)
    runtime.infer("m", {"x": row()})
    figures = runtime.statistics().models[0]
    assert (figures.submitted, figures.rejected) == (5, 1)


def test_a_pipeline_that_waits_for_room_is_no_rejected_request(
    opened: Open, product: str, latch: Latch
) -> None:
    """However often it asks: one request of each item is what figures, events and decisions say."""
    count, events = 3, list[Event]()
    runtime = opened(
        "[scheduler]",
        "queue_capacity = 1",
        *("[[pipelines]]", 'name = "read"'),
        f'source = {{ kind = "synthetic", like = "m", count = {count} }}',
        'stages = [{ name = "infer", model = "m" }]',
        m=product,
        listeners=[events.append, latch],
    )
    asked = threading.Semaphore(0)
    submit = runtime._pipelines._submit

    def counted(*inputs: Any, **options: Any) -> Any:
        asked.release()
        return submit(*inputs, **options)

    runtime._pipelines._submit = counted
    first = [runtime.submit("m", {"x": row()})]
    assert latch.reached.wait(WAIT_S)
    first += [runtime.submit("m", {"x": row()})]
    runtime.start_pipelines()
    for _ in range(20):
        assert asked.acquire(timeout=WAIT_S)
    latch.release()
    assert runtime.join(WAIT_S, threading.Event())
    runtime.close()
    figures = runtime.report().statistics.models[0]
    assert (figures.submitted, figures.rejected, figures.completed) == (count + 2, 0, count + 2)
    assert not [each for each in events if isinstance(each, DecisionMade) and each.kind == "reject"]
    finished = [each for each in events if isinstance(each, RequestFinished)]
    assert [each.outcome for each in finished] == ["completed"] * (count + 2)


def test_an_item_that_may_wait_no_longer_is_one_rejected_request(
    opened: Open, product: str, latch: Latch
) -> None:
    runtime = opened(
        "[scheduler]",
        "queue_capacity = 1",
        *("[[pipelines]]", 'name = "read"', 'full = "drop"'),
        'source = { kind = "synthetic", like = "m", count = 1 }',
        'stages = [{ name = "infer", model = "m" }]',
        m=product,
        listeners=[latch],
    )
    futures = [runtime.submit("m", {"x": row()})]
    assert latch.reached.wait(WAIT_S)
    futures += [runtime.submit("m", {"x": row()})]
    runtime.start_pipelines()
    assert runtime.join(WAIT_S, threading.Event())
    latch.release()
    runtime.close()
    figures = runtime.report().statistics.models[0]
    assert (figures.submitted, figures.rejected, figures.completed) == (3, 1, 2)


@pytest.mark.parametrize("deadline", [0.0, "0 ms", 1e-9])
def test_a_request_expires_in_the_queue(
    opened: Open, product: str, latch: Latch, deadline: float | str
) -> None:
    runtime = opened(m=product, listeners=[latch])
    first = runtime.submit("m", {"x": row()})
    assert latch.reached.wait(WAIT_S)
    late = runtime.submit("m", {"x": row()}, deadline=deadline)
    latch.release()
    assert first.result(WAIT_S)
    error = error_of(late)
    assert isinstance(error, aegis_pipe.DeadlineExceededError)
    assert "while it waited in the queue" in error.message
    assert error.hint


@pytest.mark.parametrize("deadline", [5.0, 5, "5 s", "5000 ms", np.float32(5)])
def test_deadlines_count_from_now(
    opened: Open, product: str, latch: Latch, deadline: float | str
) -> None:
    latch.release()
    runtime = opened(m=product, listeners=[latch])
    before_ns = runtime.clock.now_ns()
    future = runtime.submit("m", {"x": row()}, deadline=deadline)
    after_ns = runtime.clock.now_ns()
    future.exception(WAIT_S)
    (submitted,) = latch.submitted
    assert before_ns + 5 * 10**9 <= submitted.deadline_ns <= after_ns + 5 * 10**9


def test_cancelling_in_the_queue(opened: Open, product: str, latch: Latch) -> None:
    runtime = opened(m=product, listeners=[latch])
    first, second = (runtime.submit("m", {"x": row()}) for _ in range(2))
    assert latch.reached.wait(WAIT_S)
    assert second.cancel()
    latch.release()
    assert isinstance(error_of(second), aegis_pipe.RequestCancelledError)
    assert first.result(WAIT_S)
    assert not first.cancel()
    assert not second.cancel()
    assert runtime.statistics().models[0].cancelled == 1


def test_cancelling_on_the_stream(opened: Open, latch: Latch) -> None:
    # In several segments: a request that runs is stopped where the next one would begin.
    runtime = opened("[streams]", 'max_block = "10 us"', m=SQUEEZENET, listeners=[latch])
    (spec,) = runtime.models["m"].inputs.values()
    inputs = {name: np.zeros(spec.shape, spec.dtype) for name in runtime.models["m"].inputs}
    running = runtime.submit("m", inputs)
    assert latch.reached.wait(WAIT_S)
    assert running.cancel()
    latch.release()
    assert isinstance(error_of(running), aegis_pipe.RequestCancelledError)
    assert len(runtime.infer("m", inputs)) == 1


def test_a_late_request_is_run_by_the_stand_in(
    write: Write, product: str, save: Save, latch: Latch
) -> None:
    small = save(
        "small", [helper.make_node("Neg", ["x"], ["y"])], {"x": FLOAT_ROW}, {"y": FLOAT_ROW}
    )
    manifest = aegis_pipe.load_manifest(write(m=product, small=small, other=product))
    models = (replace(manifest.models[0], late="degrade", degrade_to="small"), *manifest.models[1:])
    finished: list[Event] = []
    x = np.ones((1, 64), np.float32)
    with aegis_pipe.open_pipeline(
        replace(manifest, models=models), listeners=[finished.append, latch]
    ) as runtime:
        first = runtime.submit("other", {"x": x})
        assert latch.reached.wait(WAIT_S)
        late = runtime.submit("m", {"x": x}, deadline=0.0)
        latch.release()
        np.testing.assert_array_equal(late.result(WAIT_S)["y"], -x)
        first.result(WAIT_S)
        model = runtime.statistics().models[0]
        assert (model.submitted, model.completed, model.deadline_misses) == (1, 1, 1)
        assert model.reasons == {"degraded": 1}
    [end] = [each for each in finished if isinstance(each, RequestFinished) and each.reason]
    assert (end.model, end.outcome, end.reason) == ("m", "completed", "degraded")


def test_a_stand_in_with_other_inputs_is_refused(write: Write, product: str, save: Save) -> None:
    other = save(
        "other", [helper.make_node("Neg", ["z"], ["y"])], {"z": FLOAT_ROW}, {"y": FLOAT_ROW}
    )
    manifest = aegis_pipe.load_manifest(write(m=product, small=other))
    models = (replace(manifest.models[0], late="degrade", degrade_to="small"), manifest.models[1])
    with pytest.raises(aegis_pipe.PermanentError, match="`small` can not take over its requests"):
        aegis_pipe.open_pipeline(replace(manifest, models=models))
