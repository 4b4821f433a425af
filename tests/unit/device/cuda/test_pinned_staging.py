"""A CUDA stream's staging memory, on host memory and a driver that does nothing until waited for.

Says that bytes arrive, in what order, and how much page-locked memory that takes; not how a GPU
copies.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.faults import FaultWords
from aegis_pipe.device.cuda.region import CudaRegion
from aegis_pipe.device.cuda.staging import CudaStagingAhead
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


@pytest.fixture
def ahead(host: HostDriver) -> Iterator[CudaStagingAhead]:
    ahead = CudaStagingAhead()
    ahead.reserve(1024 + 256)
    yield ahead
    ahead.close()


def test_what_was_staged_ahead_is_not_copied_again(
    host: HostDriver, ahead: CudaStagingAhead
) -> None:
    places = [host.place(1000), host.place(10)]
    stream = CudaStream(0, 1, 0, FaultWords(), 0, ahead=ahead)  # with no room of its own
    sources = [np.full(place.bytes.size, 7, np.uint8) for place in places]
    assert ahead.stage(sources)
    for source, place in zip(sources, places, strict=True):
        source.fill(8)  # and nobody looks at it any more
        stream.copy_in(source, place.region)
    stream.synchronise()
    assert [place.bytes.min() for place in places] == [7, 7]
    assert host.pinned_calls == 1
    stream.close()


def test_it_is_in_use_until_its_stream_has_passed(
    host: HostDriver, ahead: CudaStagingAhead
) -> None:
    place = host.place(1000)
    streams = [CudaStream(number, 1, 0, FaultWords(), 1024, ahead=ahead) for number in range(2)]
    first, second = (np.full(1000, value, np.uint8) for value in (1, 2))
    assert ahead.stage([first])
    streams[0].copy_in(first, place.region)
    assert not ahead.stage([second])
    streams[1].synchronise()  # which is not the one that reads it
    host._enqueued.append(lambda: None)
    assert not ahead.stage([second])
    streams[0].synchronise()
    assert ahead.stage([second])
    for stream in streams:
        stream.close()


def test_what_was_forgotten_or_is_another_array_is_copied(
    host: HostDriver, ahead: CudaStagingAhead
) -> None:
    place = host.place(1000)
    stream = CudaStream(0, 1, 0, FaultWords(), 1024, ahead=ahead)
    source = np.full(1000, 1, np.uint8)
    assert ahead.stage([source])
    stream.copy_in(source.copy() + 1, place.region)
    stream.synchronise()
    assert place.bytes.min() == place.bytes.max() == 2
    ahead.forget()
    source.fill(3)
    stream.copy_in(source, place.region)
    stream.synchronise()
    assert place.bytes.min() == place.bytes.max() == 3
    assert not ahead.stage([source, source]), "more than it has room for"
    stream.close()
