import gc

import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.errors import PermanentError
from aegis_pipe.events import EventHub, MemoryAllocated, MemoryReleased
from aegis_pipe.memory import DeviceMemoryPool, PoolStatistics


class HostRegion:
    """Host bytes; enough of a device for a pool."""

    def __init__(self, array):
        self.array = array
        self.closed = False

    @property
    def size_bytes(self):
        return self.array.nbytes

    def view(self, offset_bytes, size_bytes):
        assert 0 <= offset_bytes <= offset_bytes + size_bytes <= self.array.nbytes
        return HostRegion(self.array[offset_bytes : offset_bytes + size_bytes])

    def close(self):
        self.closed = True


class HostContext:
    def __init__(self):
        self.regions = []

    @property
    def allocation_count(self):
        return len(self.regions)

    def allocate(self, size_bytes):
        self.regions.append(HostRegion(np.zeros(size_bytes, np.uint8)))
        return self.regions[-1]


@pytest.fixture
def context():
    return HostContext()


@pytest.fixture
def events():
    return []


@pytest.fixture
def pool(context, events):
    with DeviceMemoryPool(
        context, "weights", 4096, hub=EventHub(events.append), clock=SystemClock()
    ) as pool:
        yield pool


def test_one_allocation_serves_all_places(pool, context):
    pool.reserve()
    first = pool.place("a", 0, 1024, "detector")
    second = pool.place("b", 1024, 512, "detector")
    second.region.array[:] = 7
    assert context.allocation_count == 1
    assert (first.size_bytes, second.size_bytes) == (1024, 512)
    assert context.regions[0].array[1020:1028].tolist() == [0] * 4 + [7] * 4


def test_placing_and_closing_are_events(pool, events):
    pool.reserve()
    with pool.place("a", 256, 100, "detector") as buffer:
        assert [type(each) for each in events] == [MemoryAllocated]
    buffer.close()
    pool.place("b", 0, 8, "classifier")
    pool.close()
    assert [(type(each), *each[1:]) for each in events] == [
        (MemoryAllocated, "weights", "detector", "a", 256, 100),
        (MemoryReleased, "weights", "detector", "a", 256, 100),
        (MemoryAllocated, "weights", "classifier", "b", 0, 8),
        (MemoryReleased, "weights", "classifier", "b", 0, 8),
    ]


def test_statistics_and_repr(pool, context):
    assert repr(pool) == (
        "<DeviceMemoryPool `weights`: 0 B reserved, 0 buffers of 0 B up to 0 B, open>"
    )
    pool.reserve()
    shared = pool.place("b", 1024, 2048, "n")
    pool.place("a", 0, 2048, "m")
    pool.seal()
    assert pool.statistics() == PoolStatistics(4096, 4096, 3072, 2, 0)
    assert repr(pool) == (
        "<DeviceMemoryPool `weights`: 4 KiB reserved, 2 buffers of 4 KiB up to 3 KiB, sealed>"
    )
    assert repr(shared) == "<DeviceBuffer `b` of `n`: 2 KiB at 1024>"
    context.allocate(1)
    assert pool.statistics().allocations_since_seal == 1
    pool.close()
    assert pool.statistics() == PoolStatistics(0, 0, 3072, 0, 1)


def test_a_sealed_pool_refuses_to_grow(pool, context):
    pool.reserve()
    pool.seal()
    with pytest.raises(PermanentError, match="pool `weights` is sealed and can not place `late`"):
        pool.place("late", 0, 8, "m")
    with pytest.raises(PermanentError, match="pool `weights` is sealed and can not reserve"):
        pool.reserve()
    pool.seal()
    assert context.allocation_count == 1


def test_a_closed_pool_frees_once_and_refuses(pool, context):
    pool.reserve()
    buffer = pool.place("a", 0, 8, "m")
    pool.close()
    pool.close()
    assert context.regions[0].closed
    with pytest.raises(PermanentError, match="pool `weights` is closed and can not place"):
        pool.place("a", 0, 8, "m")
    with pytest.raises(AssertionError, match="used after it was closed"):
        _ = buffer.region


@pytest.mark.parametrize(("offset", "size"), [(-8, 8), (4090, 8), (0, 4097)])
def test_a_place_outside_is_our_bug(pool, offset, size):
    pool.reserve()
    with pytest.raises(AssertionError):
        pool.place("a", offset, size, "m")


def test_it_is_reserved_before_it_is_used_and_once(pool):
    with pytest.raises(AssertionError, match="not reserved"):
        pool.place("a", 0, 8, "m")
    pool.reserve()
    with pytest.raises(AssertionError, match="reserved twice"):
        pool.reserve()


def test_an_empty_pool_still_places_empty_tensors(context):
    with DeviceMemoryPool(context, "arena", 0, hub=EventHub(), clock=SystemClock()) as pool:
        pool.reserve()
        assert pool.place("nothing", 0, 0, "m").size_bytes == 0


def test_a_leaked_pool_warns(context):
    def leak():
        pool = DeviceMemoryPool(context, "leaky", 8, hub=EventHub(), clock=SystemClock())
        pool.reserve()
        del pool
        gc.collect()

    with pytest.warns(ResourceWarning, match=r"`leaky`.* was not closed"):
        leak()
