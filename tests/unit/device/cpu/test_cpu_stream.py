import logging
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.cpu.event import CpuEvent, Mark
from aegis_pipe.device.cpu.graph import CpuGraph, CpuKernelCall
from aegis_pipe.device.cpu.stream import CpuStream, Progress
from aegis_pipe.errors import KernelError

CLOCK = SystemClock()
PATIENCE_S = 60.0


def _stream(index: int = 0) -> CpuStream:
    return CpuStream(index, CLOCK, Progress())


@pytest.fixture
def stream() -> Iterator[CpuStream]:
    made = _stream()
    yield made
    made.close()


def _stream_threads() -> list[str]:
    names = (thread.name for thread in threading.enumerate())
    return sorted(name for name in names if name.startswith("aegis-cpu-stream"))


def test_thread_is_named_and_stops() -> None:
    streams = [_stream(index) for index in (2, 5)]
    assert _stream_threads() == ["aegis-cpu-stream-2", "aegis-cpu-stream-5"]
    for stream in streams:
        stream.close()
        stream.close()
    assert _stream_threads() == []


def test_forgotten_stream_warns_and_its_thread_stops() -> None:
    stream = _stream(7)
    thread = next(one for one in threading.enumerate() if one.name == "aegis-cpu-stream-7")
    with pytest.warns(ResourceWarning, match="unclosed <CpuStream 7, open"):
        del stream
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_use_after_close_asserts(stream: CpuStream) -> None:
    stream.close()
    for misuse in (stream.synchronise, lambda: stream.record(CpuEvent()), stream.enqueue):
        arguments = (print,) if misuse == stream.enqueue else ()
        with pytest.raises(AssertionError, match="used after it was closed"):
            misuse(*arguments)


def test_error_is_raised_once_and_work_is_skipped_until_checked(stream: CpuStream) -> None:
    done: list[str] = []
    reached = CpuEvent()
    stream.enqueue(lambda: 1 // 0)
    stream.enqueue(lambda: done.append("after the error"))
    stream.record(reached)
    reached.synchronise()
    assert done == []
    with pytest.raises(ZeroDivisionError):
        stream.check()
    stream.check()
    stream.enqueue(lambda: done.append("after the check"))
    stream.synchronise()
    assert done == ["after the check"]


def test_what_came_before_the_check_is_skipped_though_its_turn_comes_later(
    stream: CpuStream,
) -> None:
    other, gate = _stream(1), threading.Event()
    held, failed = CpuEvent(), CpuEvent()
    done: list[str] = []
    other.enqueue(lambda: gate.wait(PATIENCE_S))
    other.record(held)
    stream.enqueue(lambda: 1 // 0)
    stream.record(failed)
    stream.wait(held)
    stream.enqueue(lambda: done.append("before the check"))
    failed.synchronise()
    with pytest.raises(ZeroDivisionError):
        stream.check()
    stream.enqueue(lambda: done.append("after the check"))
    gate.set()
    stream.synchronise()
    other.close()
    assert done == ["after the check"]


def test_unchecked_error_is_logged_at_close(caplog: pytest.LogCaptureFixture) -> None:
    stream = _stream(3)
    stream.enqueue(lambda: 1 // 0)
    with caplog.at_level(logging.WARNING):
        stream.close()
    assert "CpuStream 3, closed" in caplog.text
    assert "integer division or modulo by zero" in caplog.text


def test_listener_error_is_not_lost() -> None:
    progress = Progress()
    stream, event = CpuStream(0, CLOCK, progress), CpuEvent()

    def listener() -> None:
        raise RuntimeError("a listener must not raise")

    progress.listener = listener
    stream.record(event)
    with pytest.raises(RuntimeError, match="must not raise"):
        stream.synchronise()
    assert event.is_done()
    stream.close()


def test_floating_point_warnings_are_no_noise(stream: CpuStream) -> None:
    target = np.zeros(3, np.float32)
    stream.enqueue(lambda: np.divide(np.float32([1, 0, -1]), np.float32(0), out=target))
    stream.synchronise()
    assert np.array_equal(target, np.float32([np.inf, np.nan, -np.inf]), equal_nan=True)


def test_nothing_of_the_last_entry_stays_referenced(stream: CpuStream) -> None:
    array = np.zeros(1000)
    alive = weakref.ref(array)
    stream.enqueue(array.sum)
    stream.synchronise()
    del array
    # The mark of `synchronise` may be met before the thread has let go of it, the next one not.
    stream.synchronise()
    assert alive() is None


def test_event_time_needs_a_reached_record() -> None:
    event = CpuEvent()
    with pytest.raises(AssertionError, match="never recorded"):
        event.completed_ns()
    mark = event.renew()
    with pytest.raises(AssertionError, match="not done"):
        event.completed_ns()
    mark.reach(12)
    assert event.completed_ns() == 12
    event.close()
    with pytest.raises(AssertionError, match="closed"):
        event.renew()


def test_many_threads_wait_for_one_mark() -> None:
    mark, through = Mark(), []
    threads = [threading.Thread(target=lambda: (mark.wait(), through.append(1))) for _ in range(20)]
    for thread in threads:
        thread.start()
    mark.reach(1)
    for thread in threads:
        thread.join(PATIENCE_S)
    mark.wait()
    assert len(through) == 20


def test_interrupt_reaches_the_main_thread_only(stream: CpuStream) -> None:
    interrupted, done = threading.Event(), []

    def interrupt_once(*_: object) -> None:
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    def work() -> None:
        # Again and again: a signal that comes just before the main thread blocks does not wake it.
        while not interrupted.wait(0.01):
            os.kill(os.getpid(), signal.SIGINT)
        done.append("work")

    def launch_and_wait() -> None:
        stream.enqueue(work)
        stream.synchronise()

    before = signal.signal(signal.SIGINT, interrupt_once)
    try:
        with pytest.raises(KeyboardInterrupt):
            launch_and_wait()
        stream.synchronise()
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == ["work"]


def test_crash_of_the_main_thread_ends_the_process() -> None:
    script = """
import threading
from aegis_pipe.clock import SystemClock
from aegis_pipe.device.cpu.context import CpuContext
context = CpuContext(SystemClock())
stream = context.create_stream(0)
stream.enqueue(threading.Event().wait)
raise SystemExit("crashed")
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert run.returncode == 1
    assert "crashed" in run.stderr


def test_ten_thousand_launches_on_two_streams() -> None:
    streams = [_stream(0), _stream(1)]
    values = [np.zeros(16, np.int64) for _ in streams]
    orders: list[list[int]] = [[], []]
    graphs = [
        CpuGraph([CpuKernelCall("add", "n", _adder(value, order))], CLOCK)
        for value, order in zip(values, orders, strict=True)
    ]
    events = [CpuEvent(), CpuEvent()]
    for step in range(10_000):
        for graph, stream in zip(graphs, streams, strict=True):
            graph.launch(stream, stamped=step % 7 == 0)
        if step % 100 == 0:
            streams[0].record(events[0])
            streams[1].wait(events[0])
            streams[1].record(events[1])
            streams[0].wait(events[1])
    for stream in streams:
        stream.synchronise()
        stream.close()
    for value, order in zip(values, orders, strict=True):
        assert (value == 10_000).all()
        assert order == list(range(1, 10_001))


def _adder(value: np.ndarray, order: list[int]):
    def add() -> None:
        np.add(value, 1, out=value)
        order.append(int(value[0]))

    return add


def test_memory_stays_flat_over_launches(stream: CpuStream) -> None:
    value = np.zeros(16)
    call = CpuKernelCall("add", "n", lambda: np.add(value, 1, out=value))
    graph, event, host = CpuGraph([call] * 5, CLOCK), CpuEvent(), np.zeros(16)
    region_like = np.zeros(16)

    def rounds(count: int) -> int:
        for _ in range(count):
            stream.enqueue(lambda: np.copyto(region_like, host))
            graph.launch(stream, stamped=True)
            stream.record(event)
            stream.wait(event)
            event.synchronise()
        stream.synchronise()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = rounds(100)
        after = rounds(2000)
    finally:
        tracemalloc.stop()
    assert after - before < 2000, "less than a byte per round"


def test_kernel_error_survives_the_thread(stream: CpuStream) -> None:
    def refuse() -> None:
        raise KernelError("index 7 is out of range", hint="use smaller indices")

    graph = CpuGraph([CpuKernelCall("gather.numpy", "pick", refuse)], CLOCK)
    for _ in range(3):
        graph.launch(stream)
        with pytest.raises(KernelError) as caught:
            stream.synchronise()
        assert caught.value.context == "node `pick`, kernel `gather.numpy`"
        assert caught.value.message == "index 7 is out of range"
        assert caught.value.hint == "use smaller indices"


def _thread_of_held_work(stream: CpuStream) -> int:
    threads: list[int] = []
    stream.hold()
    stream.enqueue(lambda: threads.append(threading.get_ident()))
    assert threads == []
    stream.synchronise()
    (thread,) = threads
    return thread


def test_held_work_of_an_idle_stream_runs_on_the_thread_that_waits(stream: CpuStream) -> None:
    assert _thread_of_held_work(stream) == threading.get_ident()


def test_held_work_of_a_team_runs_on_the_threads_of_the_team() -> None:
    stream = CpuStream(0, CLOCK, Progress(), threads=2)
    assert _thread_of_held_work(stream) != threading.get_ident()
    stream.close()


def test_held_work_comes_after_what_was_enqueued_before(stream: CpuStream) -> None:
    gate, event = threading.Event(), CpuEvent()
    done: list[int] = []
    stream.enqueue(lambda: gate.wait(PATIENCE_S))
    stream.enqueue(lambda: done.append(1))
    stream.hold()
    stream.enqueue(lambda: done.append(2))
    stream.record(event)
    assert not event.is_done()
    threading.Timer(0.05, gate.set).start()
    stream.synchronise()
    assert done == [1, 2]
    assert event.is_done()


def test_an_error_of_held_work_is_raised_once_and_the_rest_is_skipped(stream: CpuStream) -> None:
    done: list[str] = []
    for _ in range(2):
        stream.hold()
        stream.enqueue(lambda: 1 // 0)
        stream.enqueue(lambda: done.append("after the error"))
        with pytest.raises(ZeroDivisionError):
            stream.synchronise()
    stream.hold()
    stream.enqueue(lambda: done.append("after the check"))
    stream.synchronise()
    assert done == ["after the check"]


def test_held_work_that_nobody_waited_for_is_finished_at_close() -> None:
    stream, done = _stream(), list[int]()
    stream.hold()
    stream.enqueue(lambda: done.append(1))
    stream.close()
    assert done == [1]
