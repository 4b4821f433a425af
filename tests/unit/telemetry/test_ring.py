from __future__ import annotations

import threading

from aegis_pipe.events import ListenerFailed
from aegis_pipe.telemetry.ring import EventRing


def event(number: int) -> ListenerFailed:
    return ListenerFailed(number, "", "")


def test_keeps_order_and_loses_nothing_below_capacity() -> None:
    ring = EventRing(3)
    for number in range(3):
        ring.append(event(number))
    assert ring.drain() == [event(0), event(1), event(2)]
    assert ring.drain() == []
    assert ring.dropped_count() == 0


def test_the_oldest_give_way_and_are_counted() -> None:
    ring = EventRing(3)
    for number in range(10):
        ring.append(event(number))
    assert ring.dropped_count() == 7
    assert ring.drain() == [event(7), event(8), event(9)]
    assert ring.dropped_count() == 7, "looking must not count"
    ring.append(event(10))
    assert (ring.dropped_count(), len(ring)) == (7, 1)


def test_every_event_of_many_threads_is_drained_or_counted() -> None:
    ring = EventRing(50)
    threads = [
        threading.Thread(target=lambda: [ring.append(event(i)) for i in range(5_000)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    drained = 0
    while any(thread.is_alive() for thread in threads):
        drained += len(ring.drain())
    drained += len(ring.drain())
    assert drained + ring.dropped_count() == 20_000


def test_each_thread_has_its_own_room_and_ended_ones_leave_only_their_count() -> None:
    ring = EventRing(10)
    ring.append(event(-1))

    def flood() -> None:
        for number in range(1_000):
            ring.append(event(number))

    for _ in range(20):
        thread = threading.Thread(target=flood)
        thread.start()
        thread.join()
    assert len(ring) == 1 + 20 * 10
    drained = ring.drain()
    assert drained[0] == event(-1), "a thread's flood must not cost another thread's events"
    assert len(drained) == 1 + 20 * 10
    assert ring.dropped_count() == 20 * 990
    assert len(ring._rings) == 1
