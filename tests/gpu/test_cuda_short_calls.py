"""Short calls of the driver keep the interpreter's lock, until CUPTI's threads may want it."""

from __future__ import annotations

import ctypes
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.errors import PermanentError

driver = pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.short_calls import ShortCalls  # noqa: E402

PYTHONS_OWN_S = 0.005


@contextmanager
def a_busy_thread() -> Iterator[None]:
    """Have another thread compute in Python all the time."""
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(number * number for number in range(1000))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def calls_that(*, gives_up: bool) -> ShortCalls:
    calls = ShortCalls()
    calls.find()
    if gives_up:
        calls.give_up_lock()
    return calls


def test_whoever_opens_another_device_does_not_have_the_lock_kept_again(
    context: DeviceContext,
) -> None:
    calls = calls_that(gives_up=True)
    launch = calls.launch_graph
    calls.find()
    assert calls.launch_graph is launch


@pytest.fixture
def graph(stream: int) -> Iterator[int]:
    """A launch of it takes longer than it takes another thread to wake up."""
    memory = driver.allocate(1 << 16)
    driver.begin_capture(stream)
    for value in range(64):
        driver.enqueue_fill(memory, value, 1 << 16, stream)
    launchable = driver.instantiate(driver.end_capture(stream))
    driver.upload_graph(launchable, stream)
    yield launchable
    driver.destroy_graph(launchable)
    driver.free(memory)


@pytest.mark.gpu_alone
def test_only_calls_that_give_the_lock_up_wait_for_a_busy_thread(
    stream: int, graph: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, given_up = calls_that(gives_up=False), calls_that(gives_up=True)

    def median_s(calls: ShortCalls) -> float:
        monkeypatch.setattr(driver, "_short", calls)
        times = []
        for _ in range(15):
            begin = time.perf_counter()
            driver.launch_graph(graph, stream)
            times.append(time.perf_counter() - begin)
            driver.synchronise_stream(stream)
        return statistics.median(times)

    before_s = sys.getswitchinterval()
    sys.setswitchinterval(PYTHONS_OWN_S)
    try:
        with a_busy_thread():
            waiting, running = median_s(given_up), median_s(kept)
    finally:
        sys.setswitchinterval(before_s)
    assert waiting > PYTHONS_OWN_S / 2, "another thread takes the lock when it can"
    assert running < waiting / 5


@pytest.mark.parametrize("gives_up", [False, True])
def test_short_calls_do_what_the_drivers_do(
    stream: int, monkeypatch: pytest.MonkeyPatch, gives_up: bool
) -> None:
    monkeypatch.setattr(driver, "_short", calls_that(gives_up=gives_up))
    first, last, elsewhere = (driver.create_event() for _ in range(3))
    other = driver.create_stream(0)
    memory, host = driver.allocate(1 << 20), driver.allocate_pinned(2 << 20)
    sent = np.random.default_rng(1).integers(0, 256, 1 << 20, np.uint8)
    found = np.frombuffer((ctypes.c_uint8 * (2 << 20)).from_address(host), np.uint8)
    found[: 1 << 20] = sent
    driver.record_event(first, stream)
    driver.enqueue_copy_to_device(memory, host, 1 << 20, stream)
    driver.record_event(elsewhere, stream)
    driver.wait_event(other, elsewhere)
    driver.enqueue_copy_to_host(host + (1 << 20), memory, 1 << 20, other)
    driver.record_event(last, other)
    driver.synchronise_event(last)
    np.testing.assert_array_equal(found[1 << 20 :], sent)
    assert driver.event_is_done(last)
    assert driver.stream_is_idle(stream)
    assert 0 < driver.elapsed_ns(first, last) < 10**9
    for event in (first, last, elsewhere):
        driver.destroy_event(event)
    driver.destroy_stream(other)
    driver.free(memory)
    driver.free_pinned(host)


def test_a_refused_short_call_says_which_and_why(stream: int) -> None:
    with pytest.raises(PermanentError, match=r"cuEventRecord failed: CUDA_ERROR_INVALID_HANDLE"):
        driver.record_event(0, stream)
    event = driver.create_event()
    with pytest.raises(PermanentError, match=r"cuEventElapsedTime failed"):
        driver.elapsed_ns(event, event)
    driver.destroy_event(event)
