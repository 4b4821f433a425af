"""Streams and events: what runs after what."""

from __future__ import annotations

import threading

import numpy as np

from aegis_pipe.device.protocols import DeviceContext, DeviceEvent
from aegis_pipe.testing.device_checks.bench import (
    GRACE_S,
    PATIENCE_S,
    Adder,
    entered,
    held,
)


@entered
def check_copies_in_order(device: DeviceContext) -> None:
    """Check that a stream's copies happen one after the other, in the order they were given."""
    stream, region = device.create_stream(3), device.allocate(4096)
    assert stream.index == 3, "a stream knows its index"
    sources = [np.full(4096, value, np.uint8) for value in range(100)]
    results = [np.empty(4096, np.uint8) for _ in sources]
    for source, result in zip(sources, results, strict=True):
        stream.copy_in(source, region)
        stream.copy_out(region, result)
    stream.synchronise()
    for source, result in zip(sources, results, strict=True):
        assert np.array_equal(source, result), "copies of one stream overtook each other"


@entered
def check_empty_copies(device: DeviceContext) -> None:
    """Check that copies of nothing are fine."""
    stream, region = device.create_stream(0), device.allocate(0)
    nothing = np.empty((0, 4), np.float32)
    stream.copy_in(nothing, region)
    stream.copy_out(region, nothing)
    stream.synchronise()


@entered
def check_planned_staging(device: DeviceContext) -> None:
    """Check that a stream reserves the staging memory that was planned, and gets by with it."""
    sizes = (1, 1000, 4096)
    planned_bytes = 2 * sum(map(device.description.staged_bytes, sizes))
    stream = device.create_stream(0, staging_bytes=planned_bytes)
    regions = [device.allocate(size) for size in sizes]
    for value in range(20):
        for region in regions:
            stream.copy_in(np.full(region.size_bytes, value, np.uint8), region)
        results = [np.empty(size, np.uint8) for size in sizes]
        for region, result in zip(regions, results, strict=True):
            stream.copy_out(region, result)
        stream.synchronise()
        assert all((result == value).all() for result in results), "a staged copy is another one's"
        staging = stream.staging
        assert staging.reserved_bytes == planned_bytes, f"{planned_bytes} planned, but {staging}"
        assert staging.peak_bytes == planned_bytes, f"{planned_bytes} needed, but {staging}"


@entered
def check_staging_in_turns(device: DeviceContext) -> None:
    """Check that copies of two requests can be under way, and stay within what was planned."""
    sizes = (1, 1000, 4096)
    planned_bytes = 4 * sum(map(device.description.staged_bytes, sizes))
    stream = device.create_stream(0, staging_bytes=planned_bytes, staging_parts=2)
    regions = [device.allocate(size) for size in sizes]
    before: tuple[int, DeviceEvent, list[np.ndarray]] | None = None
    events = [device.create_event(), device.create_event()]
    for value in range(40):
        stream.begin_request()
        for region in regions:
            stream.copy_in(np.full(region.size_bytes, value, np.uint8), region)
        results = [np.empty(size, np.uint8) for size in sizes]
        for region, result in zip(regions, results, strict=True):
            stream.copy_out(region, result)
        event = events[value % 2]
        stream.record(event)
        if before is not None:
            # The next request's copies were given while this one's were not fetched yet.
            number, reached, fetched = before
            reached.synchronise()
            assert all((each == number).all() for each in fetched), "another request's copy"
        before = (value, event, results)
    stream.synchronise()
    staging = stream.staging
    assert staging.reserved_bytes == planned_bytes, f"{planned_bytes} planned, but {staging}"
    assert staging.peak_bytes == planned_bytes, f"{planned_bytes} needed, but {staging}"


@entered
def check_staging_ahead(device: DeviceContext) -> None:
    """Check that inputs staged ahead arrive, and are used only for the request that they are of."""
    size = max(1000, device.description.staged_ahead_min_bytes)
    ahead = device.reserve_staging_ahead(device.description.staged_bytes(size), 2)
    stream, region = device.create_stream(0), device.allocate(size)
    source, result = np.full(size, 1, np.uint8), np.empty(size, np.uint8)

    def comes_out() -> int:
        stream.copy_in(source, region)
        stream.copy_out(region, result)
        stream.synchronise()
        assert (result == result[0]).all(), "a copy is torn"
        return int(result[0])

    if ahead is None:
        assert not device.description.staged_bytes(size), "what is planned is not reserved"
        return
    for value in range(2, 20):
        source.fill(value)
        first = ahead.stage([source])
        source.fill(50 + value)
        second = ahead.stage([source])
        source.fill(100 + value)
        assert first is not None, "what was planned does not fit"
        assert second is not None, "what was planned does not fit"
        assert comes_out() == 100 + value, "what is not served is used"
        ahead.serve([second])
        assert comes_out() == 50 + value, "what was staged ahead is lost"
        ahead.serve([first])
        assert comes_out() == value, "what was staged ahead is lost"
        ahead.serve([])
        for staged in (first, second):
            ahead.give_back(staged)
            ahead.give_back(staged)
        third = ahead.stage([source])
        assert third is not None, "a place is not given back"
        ahead.give_back(third)
    assert ahead.stage([source, source]) is None, "more than was planned is staged"
    assert comes_out() == 119, "what could not be staged is lost"


@entered
def check_event_never_recorded(device: DeviceContext) -> None:
    """Check that an event nobody recorded is done, and holds nobody up."""
    event, stream = device.create_event(), device.create_stream(0)
    assert event.is_done(), "an event that was never recorded is done"
    event.synchronise()
    stream.wait(event)
    stream.synchronise()


@entered
def check_event_record_again(device: DeviceContext) -> None:
    """Check that an event can be recorded again and again; its time only goes forward."""
    event, stream = device.create_event(), device.create_stream(0)
    last_ns = 0
    for _ in range(100):
        stream.record(event)
        event.synchronise()
        assert event.is_done(), "a synchronised event is done"
        assert event.completed_ns() >= last_ns, "a later record was reached earlier"
        last_ns = event.completed_ns()


@entered
def check_event_order(device: DeviceContext) -> None:
    """Check that events of one stream are reached in order, and after the work before them."""
    adder, stream = Adder(device, 1 << 16), device.create_stream(0)
    events = [device.create_event() for _ in range(20)]
    for event in events:
        adder.graph.launch(stream)
        stream.record(event)
    events[-1].synchronise()
    assert all(event.is_done() for event in events), "an event was overtaken by a later one"
    times = [event.completed_ns() for event in events]
    assert times == sorted(times), f"events were reached out of order: {times}"
    assert adder.total() == 20, "an event was reached before the work that came first"


@entered
def check_event_not_done_early(device: DeviceContext) -> None:
    """Check that an event waits for its stream, and a second record makes it wait anew."""
    stream, event = device.create_stream(0), device.create_event()
    stream.record(event)
    event.synchronise()
    with held(device, stream) as is_held:
        stream.record(event)
        assert not (is_held and event.is_done()), "an event is done before its stream got there"
    event.synchronise()
    stream.synchronise()


@entered
def check_streams_run_apart(device: DeviceContext) -> None:
    """Check that a stream that is held up does not hold up another."""
    first, second = device.create_stream(0), device.create_stream(1)
    held_event, free_event = device.create_event(), device.create_event()
    with held(device, first) as is_held:
        first.record(held_event)
        second.record(free_event)
        free_event.synchronise()
        assert not (is_held and held_event.is_done()), "an event of another stream was marked"
    first.synchronise()
    second.synchronise()


@entered
def check_wait_across_streams(device: DeviceContext) -> None:
    """Check that what one stream did before an event, another sees after waiting for it."""
    adder = Adder(device, 1 << 16)
    writer, reader = device.create_stream(0), device.create_stream(1)
    written, seen = device.create_event(), device.create_event()
    results = [np.empty(adder.values.size_bytes // 4, np.float32) for _ in range(20)]
    for result in results:
        writer.wait(seen)
        for _ in range(5):
            adder.graph.launch(writer)
        writer.record(written)
        reader.wait(written)
        reader.copy_out(adder.values, result)
        reader.record(seen)
    writer.synchronise()
    reader.synchronise()
    for number, result in enumerate(results, start=1):
        assert (result == 5 * number).all(), f"round {number} saw {np.unique(result)}"


@entered
def check_wait_is_for_the_record_before(device: DeviceContext) -> None:
    """Check that a wait is for the record made before it, whatever is recorded afterwards."""
    first, second, third = (device.create_stream(index) for index in range(3))
    event, passed = device.create_event(), device.create_event()
    with held(device, first) as is_held:
        first.record(event)
        second.wait(event)
        second.record(passed)
        third.record(event)
        event.synchronise()
        # A wait that is met wrongly gets some time to show it; a right one never fails here.
        threading.Event().wait(GRACE_S)
        assert not (is_held and passed.is_done()), "a wait was met by a later record elsewhere"
    second.synchronise()
    assert passed.is_done(), "a wait outlived its record"


@entered
def check_progress_listener(device: DeviceContext) -> None:
    """Check that the listener is called when an event was reached, and not once it is gone."""
    stream, event = device.create_stream(0), device.create_event()
    called = threading.Event()
    seen: list[bool] = []

    def listener() -> None:
        seen.append(event.is_done())
        called.set()

    device.set_progress_listener(listener)
    for _ in range(50):
        called.clear()
        stream.record(event)
        if device.capabilities.notifies_progress:
            assert called.wait(PATIENCE_S), "the listener was not called"
        event.synchronise()
    stream.synchronise()
    calls = len(seen)
    stream.record(device.create_event(is_announced=False))
    stream.synchronise()
    assert len(seen) == calls, "the listener was called for an event that is not announced"
    device.set_progress_listener(None)
    stream.record(event)
    stream.synchronise()
    assert len(seen) == calls, "a listener that was taken away was called"
    assert all(seen), "the listener was called before the event was done"
