from __future__ import annotations

import threading
import time

import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.telemetry.lull import FRESH_NS, QUIET_NS, Lull
from aegis_pipe.testing.virtual_clock import VirtualClock

LONG_S = 60.0


def until(seconds: float) -> float:
    return time.monotonic() + seconds


def test_while_nobody_is_watched_there_always_is_one() -> None:
    assert Lull(SystemClock()).wait(until(-1))


def test_while_a_request_runs_there_is_none() -> None:
    lull = Lull(SystemClock())
    lull.watch(lambda: None)
    assert not lull.wait(until(0.01))


@pytest.mark.parametrize(
    ("age_ns", "is_lull"),
    [(0, True), (FRESH_NS, True), (FRESH_NS + 1, False), (QUIET_NS - 1, False), (QUIET_NS, True)],
)
def test_it_is_young_or_has_lasted(age_ns: int, is_lull: bool) -> None:
    clock = VirtualClock()
    lull = Lull(clock)
    lull.watch(lambda: clock.now_ns() - age_ns)
    assert lull.wait(until(0)) == is_lull


def test_who_waits_is_told() -> None:
    clock = SystemClock()
    since_ns: list[int] = []
    lull = Lull(clock)
    lull.watch(lambda: since_ns[0] if since_ns else None)
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append(lull.wait(until(LONG_S)))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    while found == [] and any(thread.is_alive() for thread in threads):
        # More than once, as each begins to wait when it gets to it; and each time a new lull.
        since_ns[:] = [clock.now_ns()]
        lull.tell()
        time.sleep(0.001)
    for thread in threads:
        thread.join(LONG_S)
    assert found == [True] * 3


def test_at_the_end_nobody_waits() -> None:
    lull = Lull(SystemClock())
    lull.watch(lambda: None)
    waiting = threading.Thread(target=lull.wait, args=(until(LONG_S),))
    waiting.start()
    lull.end()
    waiting.join(LONG_S / 2)
    assert not waiting.is_alive()
    assert lull.wait(until(LONG_S))
