"""Everyone gets the results of their own request, the same bits whatever else goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import aegis_pipe
from aegis_pipe.events import DecisionMade, Event
from aegis_pipe.scheduling.loop import OrchestrationLoop
from tests.drawn_models import drawn_model
from tests.unit.app.small_models import (
    DIGITS,
    FLOAT_ROW,
    SQUEEZENET,
    WAIT_S,
    WEIGHT,
    Open,
    Save,
    error_of,
    image,
    row,
)


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


def test_cutting_a_model_into_segments_changes_no_bit(opened: Open, tmp_path: Path) -> None:
    # With the weights it comes with, it gives the same for whatever goes in.
    onnx.save(drawn_model("squeezenet"), tmp_path / "squeezenet.onnx")
    squeezenet = str(tmp_path / "squeezenet.onnx")
    outputs, segments = [], []
    for max_block in ("1 h", "1 ms", "10 us"):
        decisions: list[DecisionMade] = []

        def note(event: Event, decisions: list[DecisionMade] = decisions) -> None:
            if isinstance(event, DecisionMade):
                decisions.append(event)

        runtime = opened("[streams]", f'max_block = "{max_block}"', m=squeezenet, listeners=[note])
        ((name, spec),) = runtime.models["m"].inputs.items()
        array = np.random.default_rng(4).random(spec.shape, np.float32)
        (output,) = runtime.infer("m", {name: array}).values()
        segments.append(len(decisions))
        (other,) = runtime.infer("m", {name: 1 - array}).values()
        runtime.close()
        assert output.tobytes() != other.tobytes()
        outputs.append(output.tobytes())
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
