import threading

import pytest

from aegis_pipe.testing.virtual_clock import VirtualClock


def test_time_passes_only_when_told():
    clock = VirtualClock(5)
    assert clock.now_ns() == clock.now_ns() == 5
    clock.advance(10)
    assert clock.now_ns() == clock.to_unix_ns(15) == 15


def test_calls_happen_on_their_instant_in_order():
    clock, seen = VirtualClock(), []
    for name, instant_ns in (("c", 20), ("a", 10), ("b", 10), ("never", 21)):
        clock.call_at(instant_ns, lambda name=name: seen.append((name, clock.now_ns())))
    clock.advance_to(20)
    assert seen == [("a", 10), ("b", 10), ("c", 20)]
    assert clock.next_call_ns() == 21


def test_waiting_jumps_to_the_wake_or_to_the_instant():
    clock, wake = VirtualClock(), threading.Event()
    clock.call_at(10, lambda: None)
    clock.call_at(20, wake.set)
    assert not clock.wait_until(15, wake)
    assert clock.now_ns() == 15
    assert clock.wait_until(100, wake)
    assert clock.now_ns() == 20
    assert clock.wait_until(None, wake)
    assert clock.now_ns() == 20


def test_waiting_for_ever_is_noticed():
    with pytest.raises(AssertionError, match="nothing is going to happen"):
        VirtualClock().wait_until(None, threading.Event())


def test_the_past_is_out_of_reach():
    clock = VirtualClock(10)
    with pytest.raises(AssertionError, match="9 is past, it is 10"):
        clock.advance_to(9)
    with pytest.raises(AssertionError, match="9 is past"):
        clock.call_at(9, lambda: None)
