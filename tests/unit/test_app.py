"""The public interface through the real thing: files, CPU, threads, no stand-ins.

What depends on who is quicker is settled by a `Latch`, which holds the scheduling thread right
after it has started a request.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import aegis_pipe
from aegis_pipe.app import PRIORITY_MAX, unmet_wishes
from aegis_pipe.events import (
    DecisionMade,
    Event,
    RequestFinished,
    RequestSubmitted,
    SegmentFinished,
)
from aegis_pipe.manifest.model import BatchingSection, ServeSection
from aegis_pipe.scheduling.loop import OrchestrationLoop

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "manifests" / "quickstart" / "digits.onnx"
SQUEEZENET = "package://onnx/backend/test/data/light/light_squeezenet.onnx"
WAIT_S = 60

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((64, 64)).astype(np.float32)

Save = Callable[..., str]
Open = Callable[..., aegis_pipe.Runtime]


class Latch:
    """A listener that holds the scheduling thread once it has started a request."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.submitted: list[RequestSubmitted] = []
        self.reached = threading.Event()
        self._released = threading.Event()

    def __call__(self, event: Event) -> None:
        if isinstance(event, RequestSubmitted):
            self.submitted.append(event)
        if isinstance(event, DecisionMade) and event.kind == "start":
            self.started.append(event.request_id)
            self.reached.set()
            assert self._released.wait(WAIT_S)

    def release(self) -> None:
        self._released.set()


@pytest.fixture
def latch() -> Iterator[Latch]:
    held = Latch()
    yield held
    held.release()


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save a model; inputs and outputs are given as name=(element type, shape)."""

    def make(
        name: str,
        nodes: list[onnx.NodeProto],
        inputs: dict[str, tuple[int, list[int]]],
        outputs: dict[str, tuple[int, list[int]]],
        **weights: np.ndarray,
    ) -> str:
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info(key, *value) for key, value in inputs.items()],
            [helper.make_tensor_value_info(key, *value) for key, value in outputs.items()],
            [numpy_helper.from_array(array, key) for key, array in weights.items()],
        )
        opsets = [helper.make_opsetid("", 17)]
        onnx.save(
            helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / f"{name}.onnx"
        )
        return f"{name}.onnx"

    return make


FLOAT_ROW = (TensorProto.FLOAT, [1, 64])


@pytest.fixture
def product(save: Save) -> str:
    """`x` float32[1, 64] -> MatMul -> Relu -> `y` float32[1, 64]."""
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Relu", ["product"], ["y"]),
    ]
    return save("product", nodes, {"x": FLOAT_ROW}, {"y": FLOAT_ROW}, weight=WEIGHT)


@pytest.fixture
def take(save: Save) -> str:
    """`rows` int64[2] -> Gather from four rows -> `y` float32[2, 64]."""
    node = helper.make_node("Gather", ["table", "rows"], ["y"], name="look_up")
    rows, found = (TensorProto.INT64, [2]), (TensorProto.FLOAT, [2, 64])
    return save("take", [node], {"rows": rows}, {"y": found}, table=WEIGHT[:4])


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a manifest with these models (name=path) and more lines."""

    def make(*lines: str, **models: str) -> Path:
        path = tmp_path / "manifest.toml"
        text = ["manifest_version = 1", 'name = "test"', *lines]
        for name, file in models.items():
            text += ["[[models]]", f'name = "{name}"', f'path = "{file}"']
        path.write_text("\n".join(text), encoding="utf-8")
        return path

    return make


@pytest.fixture
def opened(write: Callable[..., Path]) -> Iterator[Open]:
    """Open a manifest of these models; closed at the end of the test."""
    with ExitStack() as stack:

        def make(*lines: str, listeners: Any = (), **models: str) -> aegis_pipe.Runtime:
            path = write(*lines, **models)
            return stack.enter_context(aegis_pipe.open_pipeline(path, listeners=listeners))

        yield make


def row(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 64)).astype(np.float32)


def image() -> np.ndarray:
    return np.random.default_rng(3).random((1, 1, 8, 8), np.float32)


def error_of(future: Future[Any]) -> BaseException:
    error = future.exception(WAIT_S)
    assert error is not None
    return error


# --- opening ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [Path, str, aegis_pipe.load_manifest])
def test_a_manifest_is_a_path_a_text_or_loaded(
    form: Callable[[Path], Any], write: Callable[..., Path], product: str
) -> None:
    with aegis_pipe.open_pipeline(form(write(m=product))) as runtime:
        (y,) = runtime.infer("m", {"x": row()}).values()
    np.testing.assert_allclose(y, np.maximum(row() @ WEIGHT, 0), rtol=1e-5, atol=1e-5)


def test_models_tell_their_inputs_and_outputs(opened: Open, product: str, take: str) -> None:
    runtime = opened(first=product, second=take)
    assert list(runtime.models) == ["first", "second"]
    inputs, outputs = runtime.models["second"].inputs, runtime.models["second"].outputs
    assert {name: str(spec) for name, spec in inputs.items()} == {"rows": "int64[2]"}
    assert {name: str(spec) for name, spec in outputs.items()} == {"y": "float32[2, 64]"}
    with pytest.raises(TypeError):
        runtime.models["third"] = runtime.models["first"]  # type: ignore[index]  # must not work


def test_a_manifest_with_problems_lists_them_all(write: Callable[..., Path]) -> None:
    path = write("[scheduler]", 'policy = "prioritty"', "queue_capacity = 0", m="gone.onnx")
    with pytest.raises(aegis_pipe.ManifestError) as caught:
        aegis_pipe.open_pipeline(path)
    assert {problem.path for problem in caught.value.problems} == {
        "scheduler.policy",
        "scheduler.queue_capacity",
        "models[0].path",
    }


def test_a_model_over_its_budget_is_refused_with_the_cause(
    write: Callable[..., Path], product: str
) -> None:
    # Twice: what was opened before the refusal must have been given back.
    path = write(m=product)
    path.write_text(path.read_text() + '\nmemory_budget = "16 KiB"\n')
    for _ in range(2):
        with pytest.raises(aegis_pipe.BudgetExceededError) as caught:
            aegis_pipe.open_pipeline(path)
    error = caught.value
    assert error.context == "model `m`"
    assert error.message.startswith("budget 16 KiB, needs 16.")
    assert "weights 16 KiB" in error.message
    assert error.hint.startswith("raise `memory_budget` to 17")
    assert error.hint.endswith("for model `m`")


def test_exporters_of_the_opentelemetry_sdk_get_the_spans(
    write: Callable[..., Path], product: str
) -> None:
    exporter = InMemorySpanExporter()
    with aegis_pipe.open_pipeline(write(m=product), span_exporters=[exporter]) as runtime:
        for _ in range(3):
            runtime.infer("m", {"x": row()})
    names = [span.name for span in exporter.get_finished_spans()]
    assert names.count("model.load m") == 1
    assert names.count("infer m") == names.count("execute") == 3
    assert {"FusedGemm", "stream 0", "queue.wait"} <= set(names)
    telemetry = runtime.report().telemetry
    assert telemetry is not None
    assert (telemetry.exported_spans, telemetry.dropped_spans) == (len(names), 0)


# --- what a caller hands in ---------------------------------------------------------------------


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


# --- queueing -----------------------------------------------------------------------------------


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


# --- the end ------------------------------------------------------------------------------------


def test_after_close_nothing_is_taken_and_closing_again_is_harmless(
    opened: Open, product: str
) -> None:
    runtime = opened(m=product)
    runtime.infer("m", {"x": row()})
    runtime.close()
    for call in (runtime.submit, runtime.infer):
        with pytest.raises(aegis_pipe.RuntimeStoppedError):
            call("m", {"x": row()})
    runtime.close()
    report = runtime.report()
    assert report.statistics.models[0].completed == 1
    assert report.statistics.allocations_after_start == 0


def test_closing_finishes_what_was_taken(opened: Open, product: str, latch: Latch) -> None:
    runtime = opened(m=product, listeners=[latch])
    futures = [runtime.submit("m", {"x": row(i)}) for i in range(20)]
    assert latch.reached.wait(WAIT_S)
    latch.release()
    runtime.close()
    assert all(future.done() for future in futures)
    for i, future in enumerate(futures):
        expected = np.maximum(row(i) @ WEIGHT, 0)
        np.testing.assert_allclose(future.result()["y"], expected, rtol=1e-5, atol=1e-5)


def test_closing_while_others_submit_leaves_no_future_open(opened: Open, product: str) -> None:
    runtime = opened("[scheduler]", "queue_capacity = 100000", m=product)
    futures: list[list[Future[Any]]] = [[] for _ in range(4)]
    under_way = threading.Barrier(len(futures) + 1)

    def submit(own: list[Future[Any]]) -> None:
        own.append(runtime.submit("m", {"x": row()}))
        under_way.wait(WAIT_S)
        try:
            while True:
                own.append(runtime.submit("m", {"x": row()}))
        except aegis_pipe.RuntimeStoppedError:
            return

    threads = [threading.Thread(target=submit, args=(own,)) for own in futures]
    for thread in threads:
        thread.start()
    under_way.wait(WAIT_S)
    runtime.close()
    for thread in threads:
        thread.join(WAIT_S)
    everyone = [future for own in futures for future in own]
    assert all(future.done() for future in everyone)
    assert len({future.result()["y"].tobytes() for future in everyone}) == 1
    assert runtime.report().statistics.models[0].completed == len(everyone)


def test_full_collections_pass_over_what_a_runtime_is_made_of(opened: Open, product: str) -> None:
    """Searching all of a loaded model again and again would hold up requests."""
    runtime = opened(m=product)
    assert gc.get_freeze_count() > 10_000
    runtime.close()
    assert gc.get_freeze_count() == 0


def test_two_runtimes_beside_each_other(opened: Open, product: str, take: str) -> None:
    one = opened(m=product)
    other = opened(m=take)
    futures = [
        (one.submit("m", {"x": row(i)}), other.submit("m", {"rows": np.array([i, 0])}))
        for i in range(4)
    ]
    one.close()
    for i, (first, second) in enumerate(futures):
        expected = np.maximum(row(i) @ WEIGHT, 0)
        np.testing.assert_allclose(first.result(WAIT_S)["y"], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(second.result(WAIT_S)["y"], WEIGHT[[i, 0]])


def test_everyone_gets_their_own_result(opened: Open, product: str) -> None:
    runtime = opened("[streams]", "count = 3", m=product)

    def check(first: int) -> None:
        rows = [row(first + i) for i in range(40)]
        futures = [runtime.submit("m", {"x": x}) for x in rows]
        for x, future in zip(rows, futures, strict=True):
            expected = np.maximum(x @ WEIGHT, 0)
            np.testing.assert_allclose(future.result(WAIT_S)["y"], expected, rtol=1e-5, atol=1e-5)

    with ThreadPoolExecutor(5) as callers:
        for done in [callers.submit(check, 100 * caller) for caller in range(5)]:
            done.result(WAIT_S)


# --- failures -----------------------------------------------------------------------------------


def test_a_refusing_kernel_fails_its_own_request_only(opened: Open, take: str) -> None:
    runtime = opened(m=take)
    good = {"rows": np.array([3, -4])}
    futures = [
        runtime.submit("m", {"rows": np.array([0, 9])} if i % 2 else good) for i in range(10)
    ]
    for i, future in enumerate(futures):
        if i % 2:
            error = error_of(future)
            assert isinstance(error, aegis_pipe.KernelError)
            assert "look_up" in error.context
            assert error.hint
        else:
            np.testing.assert_array_equal(future.result(WAIT_S)["y"], WEIGHT[[3, 0]])
    figures = runtime.statistics().models[0]
    assert (figures.completed, figures.failed) == (5, 5)


# --- memory -------------------------------------------------------------------------------------


def test_weights_of_several_files_are_stored_once(opened: Open, save: Save, product: str) -> None:
    nodes = [
        helper.make_node("MatMul", ["a", "other_name"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["b"]),
    ]
    tanh = save("tanh", nodes, {"a": FLOAT_ROW}, {"b": FLOAT_ROW}, other_name=WEIGHT)
    runtime = opened(one=product, two=tanh, three=product)
    assert runtime.plan.weights_bytes == WEIGHT.nbytes
    assert runtime.plan.saved_bytes >= 2 * WEIGHT.nbytes
    expected = row() @ WEIGHT
    relu = np.maximum(expected, 0)
    np.testing.assert_allclose(runtime.infer("one", {"x": row()})["y"], relu, 1e-5, 1e-5)
    np.testing.assert_allclose(
        runtime.infer("two", {"a": row()})["b"], np.tanh(expected), 1e-5, 1e-5
    )
    np.testing.assert_allclose(runtime.infer("three", {"x": row()})["y"], relu, 1e-5, 1e-5)


def test_outputs_may_be_inputs_and_constants(opened: Open, save: Save) -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Identity", ["table"], ["copy"]),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    table = (TensorProto.FLOAT, [64, 64])
    outputs = {"x": FLOAT_ROW, "same": FLOAT_ROW, "table": table, "copy": table, "y": FLOAT_ROW}
    runtime = opened(m=save("through", nodes, {"x": FLOAT_ROW}, outputs, table=WEIGHT))
    for seed in (1, 2):
        found = runtime.infer("m", {"x": row(seed)})
        assert list(found) == list(outputs)
        for name in ("x", "same"):
            np.testing.assert_array_equal(found[name], row(seed))
        for name in ("table", "copy"):
            np.testing.assert_array_equal(found[name], WEIGHT)
        np.testing.assert_array_equal(found["y"], np.maximum(row(seed), 0))
        # The next request must not see what a caller does to its results.
        for array in found.values():
            array[:] = -1


def test_a_model_without_inputs_and_without_work(opened: Open, save: Save) -> None:
    node = helper.make_node("Identity", ["table"], ["y"])
    path = save("constant", [node], {}, {"y": (TensorProto.FLOAT, [64, 64])}, table=WEIGHT)
    np.testing.assert_array_equal(opened(m=path).infer("m", {})["y"], WEIGHT)


# --- the same bits ------------------------------------------------------------------------------


@contextmanager
def kept_busy(runtime: aegis_pipe.Runtime, model: str) -> Iterator[None]:
    """Keep two requests of a model under way, from another thread."""
    stop = threading.Event()
    information = runtime.models[model]
    inputs = {name: np.ones(spec.shape, spec.dtype) for name, spec in information.inputs.items()}
    first = [runtime.submit(model, inputs) for _ in range(2)]

    def submit() -> None:
        futures = first
        while not stop.is_set():
            futures = [*futures[1:], runtime.submit(model, inputs)]
            futures[0].result(WAIT_S)

    thread = threading.Thread(target=submit)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def results(runtime: aegis_pipe.Runtime, count: int) -> set[bytes]:
    """Return the different results of the same request, in parallel as far as it goes."""
    futures = [runtime.submit("digits", {"image": image()}) for _ in range(count)]
    return {
        b"".join(array.tobytes() for array in future.result(WAIT_S).values()) for future in futures
    }


def test_the_same_request_gives_the_same_bits_whatever_goes_on(opened: Open) -> None:
    runtime = opened(digits=str(DIGITS))
    found = results(runtime, 200)
    runtime.close()
    runtime = opened("[streams]", "count = 2", digits=str(DIGITS), busy=SQUEEZENET)
    found |= results(runtime, 50)
    with kept_busy(runtime, "busy"):
        found |= results(runtime, 20)
    assert len(found) == 1


def test_cutting_a_model_into_segments_changes_no_bit(opened: Open) -> None:
    outputs, segments = [], []
    for max_block in ("1 h", "1 ms", "10 us"):
        decisions: list[DecisionMade] = []

        def note(event: Event, decisions: list[DecisionMade] = decisions) -> None:
            if isinstance(event, DecisionMade):
                decisions.append(event)

        runtime = opened("[streams]", f'max_block = "{max_block}"', m=SQUEEZENET, listeners=[note])
        ((name, spec),) = runtime.models["m"].inputs.items()
        array = np.random.default_rng(4).random(spec.shape, np.float32)
        (output,) = runtime.infer("m", {name: array}).values()
        runtime.close()
        outputs.append(output.tobytes())
        segments.append(len(decisions))
    assert segments[0] == 1
    assert 1 < segments[1] <= segments[2]
    assert len(set(outputs)) == 1


def test_listening_wakes_the_scheduler_no_more_often(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    wakes: list[None] = []
    wake = OrchestrationLoop.wake

    def count(loop: OrchestrationLoop) -> None:
        wakes.append(None)
        wake(loop)

    monkeypatch.setattr(OrchestrationLoop, "wake", count)
    counts, segments = [], 0
    for listeners in ([], [lambda event: None]):
        runtime = opened("[streams]", 'max_block = "10 us"', m=SQUEEZENET, listeners=listeners)
        ((name, spec),) = runtime.models["m"].inputs.items()
        segments = runtime._gate.revision.installation.segments["m"]
        wakes.clear()
        runtime.infer("m", {name: np.zeros(spec.shape, spec.dtype)})
        counts.append((segments, len(wakes)))
        runtime.close()
    # Once for the request, and once for each of its segments.
    assert counts == [(segments, 1 + segments) for segments, _ in counts]
    assert segments > 1


# --- what this version does not do yet ----------------------------------------------------------


def test_keys_that_do_nothing_yet_are_told(write: Callable[..., Path], product: str) -> None:
    manifest = aegis_pipe.load_manifest(write(m=product))
    assert unmet_wishes(manifest) == ()
    wishing = replace(manifest, serve=ServeSection(http="127.0.0.1:8000"))
    (line,) = unmet_wishes(wishing)
    assert "does not listen" in line


def test_a_precision_that_is_not_there_is_refused(write: Callable[..., Path], product: str) -> None:
    manifest = aegis_pipe.load_manifest(write(m=product))
    half = replace(manifest, models=(replace(manifest.models[0], precision="fp16"),))
    with pytest.raises(aegis_pipe.PermanentError, match="precision `fp16` is not supported by cpu"):
        aegis_pipe.open_pipeline(half)


def test_a_model_that_can_not_be_warmed_up_runs_all_the_same(save: Save, opened: Open) -> None:
    nodes = [
        helper.make_node("Sub", ["rows", "base"], ["shifted"]),
        helper.make_node("Gather", ["table", "shifted"], ["y"], name="look_up"),
    ]
    inputs, outputs = {"rows": (TensorProto.INT64, [2])}, {"y": (TensorProto.FLOAT, [2, 64])}
    base = np.array([1000, 1000], np.int64)
    model = save("shifted", nodes, inputs, outputs, table=WEIGHT[:4], base=base)
    runtime = opened(m=model)
    rows = runtime.infer("m", {"rows": np.array([1003, 1000])})["y"]
    np.testing.assert_array_equal(rows, WEIGHT[[3, 0]])


@pytest.mark.parametrize(("policy", "groups"), [("fairness", 1), ("edf", 2), ("priority", 3)])
def test_models_share_memory_unless_the_policy_may_pause_one_for_the_other(
    write: Callable[..., Path], product: str, policy: str, groups: int
) -> None:
    manifest = aegis_pipe.load_manifest(write(a=product, b=product, c=product))
    models = tuple(
        replace(model, priority=priority, deadline_ns=deadline_ns, weight=1.0 + priority)
        for model, priority, deadline_ns in zip(
            manifest.models, (0, 1, 2), (10**11, 10**11, None), strict=True
        )
    )
    scheduler = replace(manifest.scheduler, policy=policy)
    with aegis_pipe.open_pipeline(replace(manifest, models=models, scheduler=scheduler)) as runtime:
        x = np.ones(runtime.models["a"].inputs["x"].shape, np.float32)
        found = [runtime.submit(model, {"x": x}) for model in ("a", "b", "c")]
        for future in found:
            expected = np.maximum(x @ WEIGHT, 0)
            np.testing.assert_allclose(future.result(WAIT_S)["y"], expected, rtol=1e-4)
        plan = runtime.plan
        assert plan.arena_bytes == groups * plan.models[0].arena_bytes


def batching(manifest: aegis_pipe.Manifest, max_batch: int, **changes: Any) -> aegis_pipe.Manifest:
    section = replace(
        manifest.models[0],
        shapes={"x": (1, 64)},
        batching=BatchingSection(max_batch),
        **changes,
    )
    return replace(manifest, models=(section, *manifest.models[1:]))


@pytest.fixture
def rows(save: Save) -> str:
    """`x` float32[N, 64] -> MatMul -> Softmax -> `y` float32[N, 64]."""
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Softmax", ["product"], ["y"], axis=-1),
    ]
    row: Any = (TensorProto.FLOAT, ["N", 64])
    return save("rows", nodes, {"x": row}, {"y": row}, weight=WEIGHT)


def test_requests_that_wait_run_together_with_the_results_they_have_alone(
    write: Callable[..., Path], rows: str, product: str, latch: Latch
) -> None:
    manifest = batching(aegis_pipe.load_manifest(write(m=rows, other=product)), 6)
    events: list[Event] = []
    inputs = [RNG.standard_normal((1, 64)).astype(np.float32) for _ in range(9)]
    with aegis_pipe.open_pipeline(manifest, listeners=[events.append, latch]) as runtime:
        first = runtime.submit("other", {"x": inputs[0]})
        assert latch.reached.wait(WAIT_S)
        futures = [runtime.submit("m", {"x": x}) for x in inputs]
        futures[2].cancel()
        latch.release()
        first.result(WAIT_S)
        for number, (x, future) in enumerate(zip(inputs, futures, strict=True)):
            if number == 2:
                with pytest.raises(aegis_pipe.RequestCancelledError):
                    future.result(WAIT_S)
                continue
            expected = x @ WEIGHT
            expected = np.exp(expected - expected.max())
            np.testing.assert_allclose(
                future.result(WAIT_S)["y"], expected / expected.sum(), rtol=1e-4, atol=1e-7
            )
        assert runtime.statistics().allocations_after_start == 0
        assert set(runtime.models) == {"m", "other"}
        with pytest.raises(aegis_pipe.InvalidInputError, match="no model `m@4`"):
            runtime.submit("m@4", {"x": inputs[0]})
    ran = [each.model for each in events if isinstance(each, SegmentFinished)]
    # Eight are wanted: six in a variant for six, two in one for two.
    assert ran == ["other", *["m@6"] * 6, *["m@2"] * 2]


def test_variants_share_the_weights_and_the_plan_has_them(
    write: Callable[..., Path], rows: str
) -> None:
    manifest = aegis_pipe.load_manifest(write(m=rows))
    alone = replace(manifest, models=(replace(manifest.models[0], shapes={"x": (1, 64)}),))
    plan, alone_plan = (
        aegis_pipe.app.plan_deployment(each) for each in (batching(manifest, 8), alone)
    )
    assert [each.name for each in plan.variants] == ["m@2", "m@4", "m@8"]
    assert plan.memory.weights_bytes == alone_plan.memory.weights_bytes
    assert plan.memory.arena_bytes > alone_plan.memory.arena_bytes


def test_a_model_whose_rows_influence_each_other_is_refused(
    write: Callable[..., Path], save: Save
) -> None:
    row: Any = (TensorProto.FLOAT, ["N", 64])
    nodes = [helper.make_node("Softmax", ["x"], ["y"], axis=0)]
    manifest = aegis_pipe.load_manifest(write(m=save("mixing", nodes, {"x": row}, {"y": row})))
    with pytest.raises(aegis_pipe.PermanentError, match=r"row 0 of output `y` is another one") as e:
        aegis_pipe.open_pipeline(batching(manifest, 2))
    assert "model `m`, `batching`" in str(e.value)


def test_a_model_without_an_open_batch_dimension_is_refused(
    write: Callable[..., Path], product: str
) -> None:
    manifest = batching(aegis_pipe.load_manifest(write(m=product)), 2)
    with pytest.raises(aegis_pipe.PermanentError, match="`batching`"):
        aegis_pipe.open_pipeline(manifest)


def test_a_late_request_is_run_by_the_stand_in(
    write: Callable[..., Path], product: str, save: Save, latch: Latch
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


def test_a_stand_in_with_other_inputs_is_refused(
    write: Callable[..., Path], product: str, save: Save
) -> None:
    other = save(
        "other", [helper.make_node("Neg", ["z"], ["y"])], {"z": FLOAT_ROW}, {"y": FLOAT_ROW}
    )
    manifest = aegis_pipe.load_manifest(write(m=product, small=other))
    models = (replace(manifest.models[0], late="degrade", degrade_to="small"), manifest.models[1])
    with pytest.raises(aegis_pipe.PermanentError, match="`small` can not take over its requests"):
        aegis_pipe.open_pipeline(replace(manifest, models=models))


def _policies() -> dict[str, int]:
    """Return how the system schedules each of this process's threads, by name."""
    return {
        thread.name: os.sched_getscheduler(thread.native_id or 0)
        for thread in threading.enumerate()
    }


def test_what_serves_requests_runs_in_real_time_and_telemetry_does_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "real-time.toml"
    path.write_text(
        f"""
manifest_version = 1
name = "real-time"
[streams]
threads = 2
real_time = 1
[telemetry]
file = "traces.jsonl"
[[models]]
name = "digits"
path = "{DIGITS}"
[[pipelines]]
name = "read"
source = {{ kind = "synthetic", like = "digits", rate = "100/s" }}
stages = [{{ name = "infer", model = "digits" }}]
"""
    )
    before = os.sched_getscheduler(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        os.sched_setscheduler(0, before, os.sched_param(0))
    except PermissionError:
        with pytest.raises(aegis_pipe.PermanentError, match="schedule in real time") as refused:
            aegis_pipe.open_pipeline(path)
        assert "rtprio" in refused.value.hint
        return
    with aegis_pipe.open_pipeline(path) as runtime:
        runtime.start_pipelines()
        runtime.infer("digits", {"image": np.zeros((1, 1, 8, 8), np.float32)})
        policies = _policies()
        tasks = [os.sched_getscheduler(int(task)) for task in os.listdir("/proc/self/task")]
    assert os.sched_getscheduler(0) == before
    in_real_time = {name for name, policy in policies.items() if policy == os.SCHED_FIFO}
    assert {"aegis-cpu-stream-0", "read-source"} < in_real_time, policies
    # A team's helpers are not Python's.
    assert len([policy for policy in tasks if policy == os.SCHED_FIFO]) > len(in_real_time)
    assert not [name for name in in_real_time if "telemetry" in name or name == "MainThread"]
    assert [name for name in policies if "telemetry" in name], policies
