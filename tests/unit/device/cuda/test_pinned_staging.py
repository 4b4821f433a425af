"""A CUDA stream's staging memory, on host memory and a driver that does nothing until waited for.

Says that bytes arrive, in what order, and how much page-locked memory that takes; not how a GPU
copies.
"""

from __future__ import annotations

import ctypes
import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.faults import FaultWords
from aegis_pipe.device.cuda.region import CudaRegion
from aegis_pipe.device.cuda.staging import CudaStagedInputs, CudaStagingAhead
from aegis_pipe.device.cuda.stream import CudaStream


class HostDriver:
    """Holds page-locked memory and what is enqueued; `finish` does it."""

    def __init__(self) -> None:
        self.pinned: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.pinned_calls = 0
        self.places: list[Memory] = []
        self._enqueued: list[Callable[[], object]] = []

    def place(self, size_bytes: int) -> Memory:
        self.places.append(Memory(size_bytes))
        return self.places[-1]

    def allocate_pinned(self, size_bytes: int) -> int:
        self.pinned_calls += 1
        memory = ctypes.create_string_buffer(size_bytes)
        address = ctypes.addressof(memory)
        self.pinned[address] = memory
        return address

    def free_pinned(self, address: int) -> None:
        del self.pinned[address]

    def enqueue(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        self._enqueued.append(lambda: ctypes.memmove(target, source, size_bytes))

    def finish(self, stream: int = 0) -> None:
        while self._enqueued:
            self._enqueued.pop(0)()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostDriver]:
    host = HostDriver()
    for name, stand_in in {
        "allocate_pinned": host.allocate_pinned,
        "free_pinned": host.free_pinned,
        "enqueue_copy_to_device": host.enqueue,
        "enqueue_copy_to_host": host.enqueue,
        "synchronise_stream": host.finish,
        "stream_is_idle": lambda stream: True,
        "destroy_stream": lambda stream: None,
        "free": lambda address: None,
    }.items():
        monkeypatch.setattr(driver, name, stand_in)
    yield host
    for place in host.places:
        place.region.close()
    assert not host.pinned, "page-locked memory is left"


class Memory:
    """A region of "device" memory."""

    def __init__(self, size_bytes: int) -> None:
        self.bytes = np.zeros(size_bytes, np.uint8)
        self.region = CudaRegion(self.bytes.ctypes.data, size_bytes, None)


def request(stream: CudaStream, places: list[Memory], value: int) -> list[np.ndarray]:
    """Copy into every place and out again, as a request does; the arrays to be filled."""
    for place in places:
        stream.copy_in(np.full(place.bytes.size, value, np.uint8), place.region)
    results = [np.empty(place.bytes.size, np.uint8) for place in places]
    for place, result in zip(places, results, strict=True):
        stream.copy_out(place.region, result)
    return results


PLACES = (1000, 256, 1)
PLANNED_BYTES = 2 * (1024 + 256 + 256)


def test_what_is_planned_is_reserved_once_and_fits_exactly(host: HostDriver) -> None:
    places = [host.place(size) for size in PLACES]
    stream = CudaStream(0, 1, 0, FaultWords(), PLANNED_BYTES)
    assert stream.staging.reserved_bytes == PLANNED_BYTES
    for value in range(1, 200):
        results = request(stream, places, value)
        stream.synchronise()
        assert [result.min() for result in results] == [value] * 3
        assert [result.max() for result in results] == [value] * 3
    assert stream.staging.peak_bytes == stream.staging.reserved_bytes == PLANNED_BYTES
    assert host.pinned_calls == 1
    stream.close()


def test_more_than_was_planned_is_our_bug(host: HostDriver) -> None:
    place = host.place(1000)
    stream = CudaStream(0, 1, 0, FaultWords(), 512)
    with pytest.raises(AssertionError, match="may stage"):
        request(stream, [place], 1)
    stream.close()


def test_a_stream_that_copies_nothing_reserves_nothing(host: HostDriver) -> None:
    stream = CudaStream(0, 1, 0, FaultWords(), 0)
    stream.copy_in(np.empty(0, np.uint8), host.place(0).region)
    assert host.pinned_calls == 0
    stream.close()


def test_without_a_plan_it_grows(host: HostDriver) -> None:
    place = host.place(1 << 20)
    stream = CudaStream(0, 1, 0, FaultWords())
    (result,) = request(stream, [place], 7)
    stream.synchronise()
    assert (result == 7).all()
    assert stream.staging.peak_bytes >= 1 << 20
    stream.close()


def test_a_request_that_was_given_up_half_way_leaves_room_for_the_next(host: HostDriver) -> None:
    places = [host.place(size) for size in PLACES]
    stream = CudaStream(0, 1, 0, FaultWords(), PLANNED_BYTES)
    stream.copy_in(np.zeros(1000, np.uint8), places[0].region)  # and nobody records an event
    results = request(stream, places, 3)
    stream.synchronise()
    assert [result.max() for result in results] == [3] * 3
    assert host.pinned_calls == 1
    stream.close()


PLACE = 1 << 17


@pytest.fixture
def ahead(host: HostDriver) -> Iterator[CudaStagingAhead]:
    """Two places."""
    ahead = CudaStagingAhead()
    ahead.reserve(PLACE, 2)
    yield ahead
    ahead.close()


def staged(ahead: CudaStagingAhead, *sources: np.ndarray) -> CudaStagedInputs:
    inputs = ahead.stage(sources)
    assert inputs is not None
    return inputs


def full(value: int, size_bytes: int = 1 << 16) -> np.ndarray:
    return np.full(size_bytes, value, np.uint8)


def test_what_was_staged_ahead_is_not_copied_again(
    host: HostDriver, ahead: CudaStagingAhead
) -> None:
    places = [host.place(1 << 16), host.place(10)]
    stream = CudaStream(0, 1, 0, FaultWords(), 0, ahead=ahead)  # with no room of its own
    sources = [full(7, place.bytes.size) for place in places]
    ahead.serve([staged(ahead, *sources)])
    for source, place in zip(sources, places, strict=True):
        source.fill(8)  # and nobody looks at it any more
        stream.copy_in(source, place.region)
    stream.synchronise()
    assert [place.bytes.min() for place in places] == [7, 7]
    assert [place.bytes.max() for place in places] == [7, 7]
    assert host.pinned_calls == 1
    stream.close()


def test_a_place_is_in_use_until_its_stream_has_passed(
    host: HostDriver, ahead: CudaStagingAhead
) -> None:
    place = host.place(1 << 16)
    streams = [CudaStream(number, 1, 0, FaultWords(), 1 << 16, ahead=ahead) for number in range(2)]
    first, second = full(1), full(2)
    inputs, other = staged(ahead, first), staged(ahead, second)
    assert ahead.stage([second]) is None, "there are two places"
    ahead.give_back(other)
    ahead.serve([inputs])
    streams[0].copy_in(first, place.region)
    ahead.serve([])
    ahead.give_back(inputs)  # its request is over, but not its copy
    other = staged(ahead, second)
    streams[1].synchronise()  # which is not the one that copies
    assert ahead.stage([second]) is None
    host._enqueued.append(lambda: None)
    streams[0].synchronise()
    ahead.give_back(inputs)
    third = staged(ahead, second)
    assert ahead.stage([second]) is None, "a place was given back twice"
    ahead.give_back(other)
    ahead.give_back(third)
    for stream in streams:
        stream.close()


def test_places_come_back_in_the_order_of_their_copies(
    host: HostDriver, ahead: CudaStagingAhead
) -> None:
    """Of two requests on a stream, the end of the first says nothing of the second."""
    stream, places = CudaStream(0, 1, 0, FaultWords(), 0, ahead=ahead), []
    for value in (1, 2):
        source = full(value)
        places.append(host.place(1 << 16))
        ahead.serve([staged(ahead, source)])
        stream.copy_in(source, places[-1].region)
    stream.reached(1)
    third = staged(ahead, full(3))
    assert ahead.stage([full(4)]) is None, "the second copy is still to come"
    stream.synchronise()
    assert places[1].bytes.min() == places[1].bytes.max() == 2
    ahead.give_back(third)
    ahead.give_back(staged(ahead, full(4)))
    stream.close()


def test_only_what_is_served_is_taken(host: HostDriver, ahead: CudaStagingAhead) -> None:
    place = host.place(1 << 16)
    stream = CudaStream(0, 1, 0, FaultWords(), 1 << 16, ahead=ahead)
    source = full(1)
    inputs = [staged(ahead, source), staged(ahead, source)]

    def arrives(array: np.ndarray, value: int) -> None:
        stream.copy_in(array, place.region)
        stream.synchronise()
        assert place.bytes.min() == place.bytes.max() == value

    source.fill(3)
    arrives(source, 3)  # nothing is served
    ahead.serve(inputs[:1])
    arrives(source.copy() + 1, 4)  # another array
    arrives(source, 1)
    ahead.serve([])
    arrives(source, 3)
    for each in inputs:
        ahead.give_back(each)
    stream.close()


def test_what_is_too_small_or_too_large_is_copied_in_its_turn(
    host: HostDriver, ahead: CudaStagingAhead
) -> None:
    assert ahead.stage([full(1, 60_000)]) is None
    assert ahead.stage([full(1, PLACE), full(1, 1)]) is None
    both = [staged(ahead, full(1, PLACE - 256), full(1, 1)), staged(ahead, full(1, PLACE))]
    for each in both:
        ahead.give_back(each)


def test_there_are_no_places_before_they_are_reserved_nor_after(host: HostDriver) -> None:
    ahead = CudaStagingAhead()
    assert ahead.stage([full(1)]) is None
    ahead.reserve(PLACE, 1)
    ahead.give_back(staged(ahead, full(1)))
    ahead.reserve(0, 1)
    assert ahead.stage([full(1)]) is None
    assert not host.pinned
    ahead.close()


def test_memory_is_not_given_back_under_somebody_who_copies_into_it(
    host: HostDriver, ahead: CudaStagingAhead
) -> None:
    inputs = staged(ahead, full(1))
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(ahead.close)
        with pytest.raises(TimeoutError):
            closing.result(timeout=0.1)
        assert len(host.pinned) == 1
        assert ahead.stage([full(1)]) is None, "a place is taken from memory that is closing"
        ahead.give_back(inputs)
        closing.result(timeout=5)
    assert not host.pinned


def test_what_a_broken_context_never_copied_is_not_waited_for(
    host: HostDriver, ahead: CudaStagingAhead
) -> None:
    stream = CudaStream(0, 1, 0, FaultWords(), 0, ahead=ahead)
    source, place = full(1), host.place(1 << 16)
    ahead.serve([staged(ahead, source)])
    stream.copy_in(source, place.region)
    ahead.close()
    assert not host.pinned
    host._enqueued.clear()
    stream.close()


def test_many_threads_stage_while_one_copies(host: HostDriver, ahead: CudaStagingAhead) -> None:
    """Each request's own bytes arrive, places come back, and sizes may change in between."""
    stream, place = CudaStream(0, 1, 0, FaultWords(), PLACE, ahead=ahead), host.place(1 << 16)
    waiting: queue.SimpleQueue[tuple[np.ndarray, CudaStagedInputs | None, int]]
    waiting = queue.SimpleQueue()
    ends = threading.Event()

    def hand_in(seed: int) -> None:
        for number in itertools.count(seed):
            if ends.is_set():
                return
            source = full(number % 250)
            inputs = ahead.stage([source])
            if number % 3:
                if inputs is not None:
                    source.fill(251)  # so that a copy from there is seen
                waiting.put((source, inputs, number % 250))
            elif inputs is not None:
                ahead.give_back(inputs)  # a full queue, say

    with ThreadPoolExecutor(4) as pool:
        senders = [pool.submit(hand_in, 50 * seed) for seed in range(4)]
        taken = 0
        try:
            for number in range(600):
                source, inputs, value = waiting.get(timeout=10)
                ahead.serve([] if inputs is None else [inputs])
                stream.copy_in(source, place.region)
                ahead.serve([])
                stream.synchronise()
                assert place.bytes.min() == place.bytes.max() == value
                taken += inputs is not None
                if number % 100 == 99:
                    while not waiting.empty():
                        *_, inputs, _ = waiting.get()
                        if inputs is not None:
                            ahead.give_back(inputs)
        finally:
            ends.set()
        for sender in senders:
            sender.result(timeout=10)
    while not waiting.empty():
        *_, inputs, _ = waiting.get()
        if inputs is not None:
            ahead.give_back(inputs)
    assert taken > 0
    assert host.pinned_calls == 2, "the stream's and the places"
    stream.close()
