from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.telemetry import sinks
from aegis_pipe.telemetry.lull import Lull
from aegis_pipe.telemetry.sinks import BATCH_MIN_SPANS, BATCH_SPANS, SinkFeeder, SinkReport
from aegis_pipe.telemetry.spans import Span


def make_traces(count: int, size: int = 1, first: int = 0) -> list[list[Span]]:
    return [
        [Span(first + i, j, 0, False, "s", 0, 1, {}, "", False, (), ()) for j in range(size)]
        for i in range(1, count + 1)
    ]


class MemorySink:
    """Keeps what it gets; fails where `answers` says so; waits where `gate` is closed."""

    where = "memory"
    problem = "said no"

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)
        self.batches: list[Sequence[Span]] = []
        self.tried = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.is_closed = False

    def open(self) -> None:
        pass

    def export(self, batch: Sequence[Span]) -> bool:
        self.tried.set()
        self.gate.wait()
        is_taken = self.answers.pop(0) if self.answers else True
        if is_taken:
            self.batches.append(batch)
        return is_taken

    def close(self) -> None:
        self.is_closed = True
        self.gate.set()


def offer(feeder: SinkFeeder, traces: list[list[Span]]) -> None:
    for trace in traces:
        feeder.offer(trace)
    feeder.wake()


def start(sink: MemorySink, capacity: int = 100_000) -> SinkFeeder:
    feeder = SinkFeeder(sink, capacity, Lull(SystemClock()))
    feeder.start()
    return feeder


def test_everything_arrives_in_order_and_in_batches() -> None:
    sink = MemorySink()
    feeder = start(sink)
    traces = make_traces(5 * BATCH_SPANS + 5)
    offer(feeder, traces)
    assert feeder.close(10) == SinkReport("memory", len(traces), 0, 0)
    assert [[span] for batch in sink.batches for span in batch] == traces
    sizes = [len(batch) for batch in sink.batches]
    # Large while much waits, and never tiny but for what is left.
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == BATCH_SPANS
    assert BATCH_MIN_SPANS in sizes
    assert min(sizes[:-1]) == BATCH_MIN_SPANS
    assert sink.is_closed


def test_a_failed_batch_is_not_tried_again_and_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "PAUSE_MIN_S", 0.0001)
    monkeypatch.setattr(sinks, "PAUSE_MAX_S", 0.0001)
    monkeypatch.setattr(sinks, "BATCHES_A_BACKLOG", 1)
    sink = MemorySink(False, True, False, True)
    feeder = start(sink, capacity=10 * BATCH_SPANS)
    offer(feeder, make_traces(3 * BATCH_SPANS))
    while len(sink.batches) < 1 or sink.answers[:1] == [False]:
        threading.Event().wait(0.001)
    while feeder._failed_exports < 2:
        threading.Event().wait(0.001)
    offer(feeder, make_traces(1))
    while len(sink.batches) < 2:
        threading.Event().wait(0.001)
    report = feeder.close(10)
    assert report == SinkReport("memory", BATCH_SPANS + 1, 2 * BATCH_SPANS, 2)
    # Of this module alone: an exporter that another test ran out of time for may still complain.
    (record,) = [record for record in caplog.records if record.name == sinks.__name__]
    assert record.levelno == logging.WARNING
    assert "said no" in record.getMessage()


def test_a_dead_sink_is_not_tried_again_at_the_end() -> None:
    sink = MemorySink(*[False] * 100)
    feeder = start(sink)
    offer(feeder, make_traces(5 * BATCH_SPANS))
    assert sink.tried.wait(10)
    assert feeder.close(10) == SinkReport("memory", 0, 5 * BATCH_SPANS, 1)


def test_closing_does_not_wait_for_a_stuck_sink() -> None:
    sink = MemorySink()
    sink.gate.clear()
    feeder = start(sink)
    offer(feeder, make_traces(3))
    assert sink.tried.wait(10)
    assert feeder.close(0.01) == SinkReport("memory", 0, 3, 0)
    assert sink.is_closed


def test_beyond_the_capacity_the_oldest_traces_are_dropped_whole() -> None:
    sink = MemorySink()
    sink.gate.clear()
    feeder = start(sink, capacity=10)
    offer(feeder, make_traces(1))
    assert sink.tried.wait(10)
    offer(feeder, make_traces(8, size=3, first=100))
    sink.gate.set()
    assert feeder.close(10) == SinkReport("memory", 1 + 3 * 3, 5 * 3, 0)
    assert [span.trace_id for span in sink.batches[-1]] == [106] * 3 + [107] * 3 + [108] * 3


def test_batches_hold_whole_traces() -> None:
    sink = MemorySink()
    feeder = start(sink)
    size = BATCH_MIN_SPANS - 1
    offer(feeder, make_traces(3, size=size))
    assert feeder.close(10).dropped_spans == 0
    assert [len(batch) for batch in sink.batches] == [2 * size, size]


def test_batches_wait_for_a_lull_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[None] = [None]
    lull = Lull(SystemClock())
    lull.watch(lambda: running[0] if running else 0)
    sink = MemorySink()
    feeder = SinkFeeder(sink, 100_000, lull)
    monkeypatch.setattr(sinks, "PATIENCE_S", 60.0)
    feeder.start()
    offer(feeder, make_traces(3))
    assert not sink.tried.wait(0.05), "exported while a request ran"
    running.clear()
    lull.tell()
    assert sink.tried.wait(10), "not exported although nothing ran"
    running.append(None)
    monkeypatch.setattr(sinks, "PATIENCE_S", 0.01)
    sink.tried.clear()
    offer(feeder, make_traces(3))
    assert sink.tried.wait(10), "exported never, as something ran all the time"
    assert feeder.close(10) == SinkReport("memory", 6, 0, 0)


def test_a_sink_that_raises_is_heard_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    class BrokenSink(MemorySink):
        def export(self, batch: Sequence[Span]) -> bool:
            raise ValueError("broken")

    feeder = start(BrokenSink())
    offer(feeder, make_traces(4))
    assert feeder.close(10) == SinkReport("memory", 0, 4, 0)
    assert "no longer goes to memory" in caplog.text
