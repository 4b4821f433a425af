"""A wake is never lost, whoever sets it and whenever it is cleared."""

import threading
import time

from aegis_pipe.clock import SystemClock, Wake


def test_it_is_set_until_it_is_cleared():
    wake = Wake()
    assert not wake.is_set()
    assert not wake.wait(0)
    for _ in range(2):
        wake.set()
        wake.set()
        assert wake.is_set()
        assert wake.wait()
        assert wake.wait(10)
        wake.clear()
        wake.clear()
        assert not wake.is_set()
        assert not wake.wait(0)


def test_a_clock_waits_for_it():
    wake, clock = Wake(), SystemClock()
    assert not clock.wait_until(clock.now_ns() + 1_000, wake)
    wake.set()
    assert clock.wait_until(None, wake)


def test_nothing_that_several_threads_hand_over_is_left_lying():
    wake, handed_over, count = Wake(), [], 4_000

    def hand_over(number):
        for each in range(count):
            handed_over.append((number, each))
            if not wake.is_set():
                wake.set()
            if each % 500 == 0:
                time.sleep(0)

    threads = [threading.Thread(target=hand_over, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    taken = 0
    while taken < 3 * count:
        # Were one lost, this would not end, and nobody comes to set it again.
        assert wake.wait(30), f"{taken} taken, {len(handed_over)} handed over"
        wake.clear()
        taken = len(handed_over)
    for thread in threads:
        thread.join()
