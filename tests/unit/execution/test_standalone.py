"""A graph that is run and waited for: on which thread, and with which results."""

import warnings
from collections.abc import Sequence
from contextlib import closing

import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.cpu.context import CpuContext
from aegis_pipe.device.cpu.stream import CpuStream, Entry
from aegis_pipe.execution.standalone import StandaloneGraph
from aegis_pipe.kernel import KernelChoice, KernelRequest
from tests.unit.execution.models import load

SMALL = "g (float[4] x) => (float[4] y) { a = Relu(x) y = Neg(a) }"
SHAPED = "g (float[2,3] x, float[3,2] w) => (float[2,2] y) { a = MatMul(x, w) y = Softmax(a) }"
FAR = "g (double[3] x) => (double[3] y) { y = Div(x, x) }"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_wakes_no_thread_without_need(threads: int) -> None:
    x = np.float32([-1, 0, 2, 3])
    handed_over: list[int] = []

    def hand_over(entries: Sequence[Entry]) -> None:
        handed_over.append(len(entries))
        CpuStream._hand_over(stream, entries)

    with (
        CpuContext(SystemClock(), threads=threads) as context,
        closing(context.create_stream(0)) as stream,
        StandaloneGraph(load(SMALL), context, stream, SystemClock()) as graph,
    ):
        stream._hand_over = hand_over
        for _ in range(3):
            assert graph.run({"x": x})["y"].tolist() == [0, 0, -2, -3]
        del stream._hand_over
    # With helpers: once for the copies and the segment together, once to wait for them.
    assert handed_over == ([] if threads == 1 else [3, 1] * 3)


def test_a_device_is_shown_all_requests_before_it_chooses() -> None:
    told: list[tuple[str, ...]] = []

    class Noting(CpuContext):
        def prepare(self, requests: Sequence[KernelRequest]) -> None:
            told.append(tuple(request.operator for request in requests))

        def select(self, request: KernelRequest) -> KernelChoice:
            told.append((request.operator,))
            return super().select(request)

    with (
        Noting(SystemClock()) as context,
        closing(context.create_stream(0)) as stream,
        StandaloneGraph(load(SHAPED), context, stream, SystemClock()) as graph,
    ):
        assert graph.kernels()
    assert told == [("MatMul", "Softmax"), ("MatMul",), ("Softmax",)]


def test_numbers_without_a_value_are_no_noise_on_the_thread_that_waits() -> None:
    x = np.array([0.0, 1.0, np.inf])
    with (
        CpuContext(SystemClock()) as context,
        closing(context.create_stream(0)) as stream,
        StandaloneGraph(load(FAR), context, stream, SystemClock()) as graph,
        warnings.catch_warnings(action="error"),
    ):
        found = graph.run({"x": x})["y"]
    assert np.array_equal(found, [np.nan, 1.0, np.nan], equal_nan=True)


def test_inputs_are_copied_as_by_a_request() -> None:
    x = np.float32([-1, 0, 2, 3])
    copies: list[int] = []
    with (
        CpuContext(SystemClock(), threads=1) as context,
        closing(context.create_stream(0)) as stream,
        StandaloneGraph(load(SMALL), context, stream, SystemClock()) as graph,
    ):
        expected = graph.run({"x": x})["y"].tolist()
        copy_in = stream.copy_in
        stream.copy_in = lambda array, region: (copies.append(array.nbytes), copy_in(array, region))  # type: ignore[method-assign, func-returns-value, assignment]
        graph.enqueue_inputs({"x": x})
        graph.run_on_device()
        y = np.empty(4, np.float32)
        context.read(graph._bound.outputs[0].region, y)
        del stream.copy_in
    assert copies == [x.nbytes]
    assert y.tolist() == expected
