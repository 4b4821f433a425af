"""What every device has to do: run `check_device` against a new one, or each check by itself.

    @pytest.mark.parametrize("name", DEVICE_CHECKS)
    def test_device(name):
        DEVICE_CHECKS[name](open_my_device)

The checks use the protocols only, and the operators Add, Relu and Identity on float32. A check
that needs a kernel to fail, or to hold a stream still, uses a reference function; on a device
that refuses those, it checks the refusal and what can be seen without.
"""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar, cast

import ml_dtypes
import numpy as np

from aegis_pipe.device.protocols import (
    DeviceContext,
    DeviceGraph,
    DeviceStream,
    KernelCall,
    Region,
)
from aegis_pipe.errors import AegisError, KernelError, PermanentError, UnsupportedOperatorError
from aegis_pipe.kernel import KernelChoice, KernelRequest, ReferenceFunction
from aegis_pipe.tensor import TensorSpec

OpenDevice = Callable[[], DeviceContext]

DEVICE_CHECKS: dict[str, Callable[[OpenDevice], None]] = {}
"""Every check by name; each opens a context of its own and closes it."""

_PATIENCE_S = 60.0
"""Only a device that hangs is waited for so long."""

_GRACE_S = 0.1
"""How long a device gets to do what it must not."""


def check_device(open_device: OpenDevice) -> None:
    """Run every check; AssertionError says what a device does wrong."""
    for check in DEVICE_CHECKS.values():
        check(open_device)


def _check(
    body: Callable[[DeviceContext], None],
) -> Callable[[OpenDevice], None]:
    """Enter a check into the table, with a fresh device handed in and closed again."""

    def check(open_device: OpenDevice) -> None:
        with open_device() as device:
            keeper = _Keeper(device)
            body(cast(DeviceContext, keeper))

    check.__name__ = body.__name__
    check.__doc__ = body.__doc__
    DEVICE_CHECKS[body.__name__.removeprefix("check_")] = check
    return check


# --- Memory -----------------------------------------------------------------------------------


@_check
def check_description(device: DeviceContext) -> None:
    """Check that the facts are filled in and make sense."""
    facts = device.description
    assert facts.name, "a device has a name"
    assert facts.model, "a device says what it is"
    assert facts.memory_bytes > 0, "a device has memory"
    assert facts.compute_units > 0, "a device computes"
    alignment = facts.alignment_bytes
    assert alignment > 0, "alignment is at least one byte"
    assert alignment & (alignment - 1) == 0, f"alignment {alignment} is no power of two"


@_check
def check_sensors(device: DeviceContext) -> None:
    """Check that what the sensors say makes sense, and that they can be asked by any thread."""
    with ThreadPoolExecutor(2) as pool:
        for readings in pool.map(lambda _: device.read_sensors(), range(4)):
            if readings is not None:
                celsius = readings.temperature_celsius
                assert celsius is None or -50 < celsius < 150, "a temperature is in Celsius"
                domains = [domain for domain, _ in readings.clocks_hertz]
                assert len(set(domains)) == len(domains), "each clock is told once"
                assert all(0 <= hertz < 1e11 for _, hertz in readings.clocks_hertz), "in hertz"


@_check
def check_allocation(device: DeviceContext) -> None:
    """Check that memory comes zeroed, of the size asked for, and is counted."""
    for size_bytes in (0, 1, 63, 64, 65, 4097, 1_000_003):
        before = device.allocation_count
        region = device.allocate(size_bytes)
        assert device.allocation_count == before + 1, "each allocation counts once"
        assert region.size_bytes == size_bytes, "a region has the size that was asked for"
        assert not _bytes(device, region).any(), f"{size_bytes} bytes were not zeroed"
        region.close()


@_check
def check_reused_memory_is_zeroed(device: DeviceContext) -> None:
    """Check that what one owner wrote, the next does not see."""
    for _ in range(3):
        region = device.allocate(4096)
        assert not _bytes(device, region).any(), "memory still holds what its last owner wrote"
        device.write(region, np.full(4096, 255, np.uint8))
        region.close()


@_check
def check_allocation_beyond_memory(device: DeviceContext) -> None:
    """Check that a size no machine has is a PermanentError, and the device works on."""
    before = device.allocation_count
    _assert_raises(PermanentError, lambda: device.allocate(1 << 60))
    assert device.allocation_count == before, "an allocation that failed is not counted"
    region = device.allocate(64)
    assert region.size_bytes == 64, "the device allocates after a refusal"
    region.close()


@_check
def check_views(device: DeviceContext) -> None:
    """Check that views share bytes with their owner, nest, and allocate nothing."""
    owner = device.allocate(256)
    before = device.allocation_count
    inner = owner.view(64, 128).view(32, 16)
    assert device.allocation_count == before, "a view allocates"
    device.write(inner, np.arange(1, 17, dtype=np.uint8))
    expected = np.zeros(256, np.uint8)
    expected[96:112] = np.arange(1, 17)
    assert np.array_equal(_bytes(device, owner), expected), "a view's bytes are its owner's"
    device.write(owner, np.full(256, 7, np.uint8))
    assert (_bytes(device, inner) == 7).all(), "an owner's bytes are its view's"
    assert owner.view(256, 0).size_bytes == 0, "an empty view at the end is within bounds"
    inner.close()
    assert (_bytes(device, owner) == 7).all(), "closing a view leaves its owner alone"
    owner.close()


@_check
def check_view_bounds(device: DeviceContext) -> None:
    """Check that views outside their region assert, nested ones too."""
    owner = device.allocate(128)
    part = owner.view(32, 64)
    for region, offset_bytes, size_bytes in (
        (owner, -1, 8),
        (owner, 0, 129),
        (owner, 128, 1),
        (owner, 8, -1),
        (part, 0, 65),
        (part, 64, 1),
    ):
        _assert_raises(AssertionError, partial(region.view, offset_bytes, size_bytes))
    owner.close()


def check_view_keeps_owner_alive(open_device: OpenDevice) -> None:
    """Check that memory stays while a view is held, even if nobody holds the owner."""
    with open_device() as device:
        view = device.allocate(64).view(0, 64)
        gc.collect()
        device.write(view, np.full(64, 5, np.uint8))
        assert (_bytes(device, view) == 5).all(), "a view lost its memory"
        # Closes the owner, which would warn if the view were forgotten first.
        device.close()


DEVICE_CHECKS["view_keeps_owner_alive"] = check_view_keeps_owner_alive


@_check
def check_round_trips(device: DeviceContext) -> None:
    """Check that what is written is read, for every kind of dtype, scalars and empty arrays."""
    for dtype in _DTYPES:
        for shape in ((3, 5), (), (0,), (2, 0, 3)):
            values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
            region = device.allocate(values.nbytes)
            device.write(region, values)
            result = np.empty_like(values)
            device.read(region, result)
            assert result.tobytes() == values.tobytes(), f"{values.dtype}{shape} changed"
            region.close()


@_check
def check_sizes_must_match(device: DeviceContext) -> None:
    """Check that copies between different sizes assert: they are a planner's bug."""
    region, stream = device.allocate(64), device.create_stream(0)
    small = np.zeros(63, np.uint8)
    _assert_raises(AssertionError, lambda: device.write(region, small))
    _assert_raises(AssertionError, lambda: device.read(region, small))
    _assert_raises(AssertionError, lambda: stream.copy_in(small, region))
    _assert_raises(AssertionError, lambda: stream.copy_out(region, small))


# --- Streams and events -----------------------------------------------------------------------


@_check
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


@_check
def check_empty_copies(device: DeviceContext) -> None:
    """Check that copies of nothing are fine."""
    stream, region = device.create_stream(0), device.allocate(0)
    nothing = np.empty((0, 4), np.float32)
    stream.copy_in(nothing, region)
    stream.copy_out(region, nothing)
    stream.synchronise()


@_check
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


@_check
def check_event_never_recorded(device: DeviceContext) -> None:
    """Check that an event nobody recorded is done, and holds nobody up."""
    event, stream = device.create_event(), device.create_stream(0)
    assert event.is_done(), "an event that was never recorded is done"
    event.synchronise()
    stream.wait(event)
    stream.synchronise()


@_check
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


@_check
def check_event_order(device: DeviceContext) -> None:
    """Check that events of one stream are reached in order, and after the work before them."""
    adder, stream = _Adder(device, 1 << 16), device.create_stream(0)
    events = [device.create_event() for _ in range(20)]
    for event in events:
        adder.graph.launch(stream)
        stream.record(event)
    events[-1].synchronise()
    assert all(event.is_done() for event in events), "an event was overtaken by a later one"
    times = [event.completed_ns() for event in events]
    assert times == sorted(times), f"events were reached out of order: {times}"
    assert adder.total() == 20, "an event was reached before the work that came first"


@_check
def check_event_not_done_early(device: DeviceContext) -> None:
    """Check that an event waits for its stream, and a second record makes it wait anew."""
    stream, event = device.create_stream(0), device.create_event()
    stream.record(event)
    event.synchronise()
    with _held(device, stream) as is_held:
        stream.record(event)
        assert not (is_held and event.is_done()), "an event is done before its stream got there"
    event.synchronise()
    stream.synchronise()


@_check
def check_streams_run_apart(device: DeviceContext) -> None:
    """Check that a stream that is held up does not hold up another."""
    first, second = device.create_stream(0), device.create_stream(1)
    held_event, free_event = device.create_event(), device.create_event()
    with _held(device, first) as is_held:
        first.record(held_event)
        second.record(free_event)
        free_event.synchronise()
        assert not (is_held and held_event.is_done()), "an event of another stream was marked"
    first.synchronise()
    second.synchronise()


@_check
def check_wait_across_streams(device: DeviceContext) -> None:
    """Check that what one stream did before an event, another sees after waiting for it."""
    adder = _Adder(device, 1 << 16)
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


@_check
def check_wait_is_for_the_record_before(device: DeviceContext) -> None:
    """Check that a wait is for the record made before it, whatever is recorded afterwards."""
    first, second, third = (device.create_stream(index) for index in range(3))
    event, passed = device.create_event(), device.create_event()
    with _held(device, first) as is_held:
        first.record(event)
        second.wait(event)
        second.record(passed)
        third.record(event)
        event.synchronise()
        # A wait that is met wrongly gets some time to show it; a right one never fails here.
        threading.Event().wait(_GRACE_S)
        assert not (is_held and passed.is_done()), "a wait was met by a later record elsewhere"
    second.synchronise()
    assert passed.is_done(), "a wait outlived its record"


@_check
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
            assert called.wait(_PATIENCE_S), "the listener was not called"
        event.synchronise()
    stream.synchronise()
    device.set_progress_listener(None)
    calls = len(seen)
    stream.record(event)
    stream.synchronise()
    assert len(seen) == calls, "a listener that was taken away was called"
    assert all(seen), "the listener was called before the event was done"


# --- Kernels and graphs -----------------------------------------------------------------------


@_check
def check_kernels_compute(device: DeviceContext) -> None:
    """Check that select, bind, record and launch give the operator's result."""
    stream = device.create_stream(0)
    left = np.linspace(-2, 2, 1000, dtype=np.float32)
    right = np.linspace(1, -3, 1000, dtype=np.float32)
    a, b = _filled(device, left), _filled(device, right)
    total, kept = _like(device, left), _like(device, left)
    calls = [_bind(device, "Add", [a, b], total), _bind(device, "Relu", [total], kept)]
    assert all(call.kernel for call in calls), "a bound call names its kernel"
    device.record(calls).launch(stream)
    stream.synchronise()
    expected = np.maximum(left + right, 0)
    assert np.array_equal(_floats(device, kept), expected), "Relu(Add(a, b)) is wrong"
    assert np.array_equal(_floats(device, a), left), "a kernel wrote over its input"


@_check
def check_launch_order(device: DeviceContext) -> None:
    """Check that a thousand launches of two graphs that do not commute run in the order given."""
    stream = device.create_stream(0)
    up = np.ones(8, np.float32)
    down = -np.arange(8, dtype=np.float32)
    x, t = _like(device, up), _like(device, up)
    zeros, ups, downs = _like(device, up), _filled(device, up), _filled(device, down)
    rise = device.record([_bind(device, "Add", [x, ups], t), _bind(device, "Add", [t, zeros], x)])
    fall = device.record([_bind(device, "Add", [x, downs], t), _bind(device, "Relu", [t], x)])
    choices = random.Random(20)
    expected = np.zeros((1001, 8), np.float32)
    results = np.zeros((1001, 8), np.float32)
    for step in range(1000):
        if choices.random() < 0.5:
            rise.launch(stream)
            expected[step + 1] = expected[step] + up
        else:
            fall.launch(stream)
            expected[step + 1] = np.maximum(expected[step] + down, 0)
        stream.copy_out(x, results[step + 1])
    stream.synchronise()
    assert np.array_equal(results, expected), "calls or launches ran out of order"


@_check
def check_same_bits(device: DeviceContext) -> None:
    """Check that the same graph on the same bytes gives the same bits, every time."""
    stream = device.create_stream(0)
    numbers = np.random.default_rng(7)
    a, b = (_filled(device, numbers.standard_normal(5000, np.float32)) for _ in range(2))
    t, y = device.allocate(20_000), device.allocate(20_000)
    graph = device.record([_bind(device, "Add", [a, b], t), _bind(device, "Add", [t, a], y)])
    results = set()
    for _ in range(50):
        device.write(y, np.zeros(20_000, np.uint8))
        graph.launch(stream)
        stream.synchronise()
        results.add(_bytes(device, y).tobytes())
    assert len(results) == 1, f"50 launches gave {len(results)} different results"


@_check
def check_tracer(device: DeviceContext) -> None:
    """Check that a device's own profiler, if it has one, sees a stamped launch call by call."""
    adder, stream = _Adder(device, 1 << 12, amount=5), device.create_stream(0)
    try:
        tracer = device.trace_kernels()
    except PermanentError:
        return
    with tracer:
        for _ in range(3):
            tracer.take()
            adder.graph.launch(stream, stamped=True)
            seen = tracer.take()
            assert [len(kernels) for kernels in seen] == [1] * 10, f"ten kernels ran, not {seen}"
            assert all(duration > 0 for (duration,) in seen), f"kernels take time, not {seen}"


@_check
def check_stamps(device: DeviceContext) -> None:
    """Check that a stamped launch tells each call's start and end, within the launch."""
    adder, stream = _Adder(device, 1 << 12, amount=5), device.create_stream(0)
    before, after = device.create_event(), device.create_event()
    assert adder.graph.kernel_times() == b"", "times without a stamped launch"
    for _ in range(20):
        stream.record(before)
        adder.graph.launch(stream, stamped=True)
        stream.record(after)
        stream.synchronise()
        times = np.frombuffer(adder.graph.kernel_times(), np.int64).reshape(10, 2)
        stamps = times.reshape(-1).tolist()
        assert stamps == sorted(stamps), f"stamps go back: {stamps}"
        # Events' clock may be coarser than the stamps'.
        step_ns = device.description.event_step_ns
        first_ns, last_ns = before.completed_ns() - step_ns, after.completed_ns() + step_ns
        assert first_ns <= stamps[0], f"{stamps} begin before the launch, at {first_ns}"
        assert stamps[-1] <= last_ns, f"{stamps} end after the launch, at {last_ns}"
    last = adder.graph.kernel_times()
    adder.graph.launch(stream)
    stream.synchronise()
    assert adder.graph.kernel_times() == last, "a launch without stamps changed them"
    assert adder.total() == 105, "stamping changed the result"


@_check
def check_in_place(device: DeviceContext) -> None:
    """Check that a kernel that says it may write over an input does so rightly."""
    stream = device.create_stream(0)
    values = np.linspace(-1, 1, 100, dtype=np.float32)
    for operator, count, expected in (
        ("Relu", 1, np.maximum(values, 0)),
        ("Add", 2, values + values),
    ):
        spec = TensorSpec(values.dtype, values.shape)
        request = KernelRequest(operator, "in place", {}, (spec,) * count, (spec,))
        choice = device.select(request)
        for read, write in choice.in_place:
            assert write == 0, f"{operator} has one output"
            assert 0 <= read < count, f"{operator} has no input {read}"
            regions = [_filled(device, values) for _ in range(count)]
            call = device.bind(request, choice, regions, [regions[read]], _scratch(device, choice))
            device.record([call]).launch(stream)
            stream.synchronise()
            result = _floats(device, regions[read])
            assert np.array_equal(result, expected), f"{operator} in place is wrong"


@_check
def check_views_bind(device: DeviceContext) -> None:
    """Check that a view runs nothing and has its row; if Identity is no view, it copies."""
    stream = device.create_stream(0)
    values = np.linspace(-1, 1, 100, dtype=np.float32)
    x, y = _filled(device, values), _like(device, values)
    spec = TensorSpec(values.dtype, values.shape)
    request = KernelRequest("Identity", "same", {}, (spec,), (spec,))
    choice = device.select(request)
    assert choice.view in (None, (0, 0)), f"Identity has no positions {choice.view}"
    same = x if choice.view else _like(device, values)
    identity = device.bind(request, choice, [x], [same], _scratch(device, choice))
    graph = device.record([identity, _bind(device, "Relu", [same], y)])
    graph.launch(stream, stamped=True)
    stream.synchronise()
    assert np.array_equal(_floats(device, y), np.maximum(values, 0)), "Relu(Identity(x)) is wrong"
    assert len(graph.kernel_times()) == 2 * 16, "every recorded call has its row of stamps"


@_check
def check_empty_graph(device: DeviceContext) -> None:
    """Check that a graph of nothing can be launched."""
    stream = device.create_stream(0)
    graph = device.record([])
    graph.launch(stream, stamped=True)
    stream.synchronise()
    assert graph.kernel_times() == b"", "stamps of no calls"


@_check
def check_unsupported_operator(device: DeviceContext) -> None:
    """Check that the refusal names the node, the operator and what is close to it."""
    spec = TensorSpec(np.dtype(np.float32), (4,))
    request = KernelRequest("Reluu", "node_17", {}, (spec,), (spec,))
    text = str(_assert_raises(UnsupportedOperatorError, lambda: device.select(request)))
    for word in ("node_17", "Reluu", "`Relu`"):
        assert word in text, f"the refusal does not name {word}: {text}"


@_check
def check_no_allocation_after_start(device: DeviceContext) -> None:
    """Check that launches, copies, records and waits allocate nothing on the device."""
    adder, event = _Adder(device, 256), device.create_event()
    first, second = device.create_stream(0), device.create_stream(1)
    host = np.zeros(256, np.float32)
    counts = set()
    for _ in range(300):
        first.copy_in(host, adder.values)
        adder.graph.launch(first, stamped=True)
        first.record(event)
        second.wait(event)
        second.copy_out(adder.values, host)
        second.synchronise()
        counts.add(device.allocation_count)
    assert len(counts) == 1, f"work on streams allocated: {sorted(counts)}"
    assert (host == 300).all(), "300 rounds of adding one"


# --- Errors -----------------------------------------------------------------------------------


@_check
def check_errors_surface_at_check(device: DeviceContext) -> None:
    """Check that an error is kept until the check, raised once, and the stream works on."""
    failing, adder = _host_call(device, _fail), _Adder(device, 16)
    stream, event = device.create_stream(0), device.create_event()
    stream.check()
    if failing is None:
        return
    for stamped in (False, True):
        before = adder.total()
        failing.launch(stream, stamped=stamped)
        adder.graph.launch(stream)
        stream.record(event)
        event.synchronise()
        assert event.is_done(), "an event after an error is marked"
        adder.graph.launch(stream)
        error = _assert_raises(KernelError, stream.check)
        assert "host_call" in str(error), f"the error does not name its node: {error}"
        assert "not today" in str(error), f"the error does not tell its cause: {error}"
        stream.synchronise()
        assert adder.total() == before, "work enqueued after an error ran"
        adder.graph.launch(stream)
        stream.synchronise()
        assert adder.total() == before + 1, "the stream did not recover"


@_check
def check_first_error_wins(device: DeviceContext) -> None:
    """Check that of several errors the first is told, and one check forgets them all."""
    calls: list[int] = []

    def count_and_fail(_: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        calls.append(len(calls))
        raise ValueError(f"failure number {len(calls)}")

    failing, stream = _host_call(device, count_and_fail), device.create_stream(0)
    if failing is None:
        return
    for number in (1, 2):
        for _ in range(3):
            failing.launch(stream)
        error = _assert_raises(KernelError, stream.synchronise)
        assert f"failure number {number}" in str(error), f"not the first error: {error}"
        stream.synchronise()


@_check
def check_error_of_one_stream(device: DeviceContext) -> None:
    """Check that an error stays with its stream; who waits for an event of it goes on."""
    failing, adder = _host_call(device, _fail), _Adder(device, 16)
    broken, sound = device.create_stream(0), device.create_stream(1)
    event = device.create_event()
    if failing is not None:
        failing.launch(broken)
    broken.record(event)
    sound.wait(event)
    adder.graph.launch(sound)
    sound.synchronise()
    assert adder.total() == 1, "a sound stream was stopped by another's error"
    if failing is not None:
        _assert_raises(KernelError, broken.synchronise)


@_check
def check_data_dependent_shape(device: DeviceContext) -> None:
    """Check that a reference function's shape that was not planned is a clear error."""
    graph = _host_call(device, lambda _: [np.zeros(5, np.float32)])
    if graph is None:
        return
    stream = device.create_stream(0)
    graph.launch(stream)
    error = str(_assert_raises(KernelError, stream.synchronise))
    for word in ("float32[5]", "float32[4]", "depends on data"):
        assert word in error, f"the error does not say {word}: {error}"


@_check
def check_reference_result(device: DeviceContext) -> None:
    """Check that a reference function's result arrives, on devices that call those."""
    spec = TensorSpec(np.dtype(np.float32), (4,))

    def double(operands: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        assert operands[0] is not None, "an operand that is there"
        assert operands[1] is None, "an operand that is left out"
        return [operands[0] + operands[0]]

    request = KernelRequest("HostCall", "double", {}, (spec, None), (spec,), reference=double)
    try:
        choice = device.select(request)
    except UnsupportedOperatorError:
        return
    assert choice.is_reference, "a reference kernel says that it is one"
    values = np.arange(4, dtype=np.float32)
    x, y, stream = _filled(device, values), _like(device, values), device.create_stream(0)
    device.record([device.bind(request, choice, [x, None], [y], None)]).launch(stream)
    stream.synchronise()
    assert np.array_equal(_floats(device, y), 2 * values), "a reference function's result is lost"


# --- Closing ----------------------------------------------------------------------------------


@_check
def check_close_is_idempotent(device: DeviceContext) -> None:
    """Check that closing twice is closing once, for everything, in any order."""
    adder, stream, event = _Adder(device, 16), device.create_stream(0), device.create_event()
    adder.graph.launch(stream)
    for _ in range(2):
        stream.close()
        event.close()
        adder.graph.close()
        adder.values.close()
    device.close()
    device.close()


@_check
def check_close_finishes_work(device: DeviceContext) -> None:
    """Check that a stream that is closed finishes what was enqueued."""
    adder, stream, event = _Adder(device, 1 << 14), device.create_stream(0), device.create_event()
    for _ in range(50):
        adder.graph.launch(stream)
    stream.record(event)
    stream.close()
    assert event.is_done(), "an event was not marked when its stream closed"
    assert adder.total() == 50, "work was lost when its stream closed"


@_check
def check_context_closes_all(device: DeviceContext) -> None:
    """Check that closing the context closes what it made, streams first."""
    adder, stream = _Adder(device, 16), device.create_stream(0)
    host = np.zeros(16, np.float32)
    adder.graph.launch(stream)
    stream.copy_out(adder.values, host)
    device.close()
    assert (host == 1).all(), "work was lost when its context closed"
    misuses: tuple[Callable[[], object], ...] = (
        lambda: stream.copy_out(adder.values, host),
        lambda: adder.graph.launch(stream),
        lambda: device.read(adder.values, host),
        lambda: device.allocate(16),
        lambda: device.create_stream(1),
        device.create_event,
        lambda: device.record([]),
    )
    for misuse in misuses:
        _assert_raises((AssertionError, AegisError), misuse)


# --- Tools ------------------------------------------------------------------------------------


class _Keeper:
    """Stands for a device and keeps what it makes, which would warn if it were dropped unclosed."""

    _MAKERS = frozenset(("allocate", "create_stream", "create_event", "record"))

    def __init__(self, device: DeviceContext) -> None:
        self._device = device
        self._kept: list[object] = []

    def __getattr__(self, name: str) -> object:
        attribute = getattr(self._device, name)
        return partial(self._make, attribute) if name in self._MAKERS else attribute

    def _make(self, maker: Callable[..., object], *args: object, **options: object) -> object:
        made = maker(*args, **options)
        self._kept.append(made)
        return made


_DTYPES = tuple(
    np.dtype(name) for name in ("f4", "f8", "f2", "i1", "u1", "i8", "?", ml_dtypes.bfloat16)
)


class _Adder:
    """A graph that adds `amount` to every element of a region, in two calls each."""

    def __init__(self, device: DeviceContext, count: int, *, amount: int = 1) -> None:
        self._device = device
        halves = _filled(device, np.full(count, 0.5, np.float32))
        self.values, spare = device.allocate(4 * count), device.allocate(4 * count)
        there = _bind(device, "Add", [self.values, halves], spare)
        back = _bind(device, "Add", [spare, halves], self.values)
        self.graph = device.record([there, back] * amount)

    def total(self) -> float:
        """Return what every element holds."""
        values = _floats(self._device, self.values)
        assert (values == values[0]).all(), f"elements differ: {np.unique(values)}"
        return float(values[0])


def _bind(
    device: DeviceContext, operator: str, inputs: Sequence[Region], output: Region
) -> KernelCall:
    """Select and bind a float32 kernel on vectors."""
    spec = TensorSpec(np.dtype(np.float32), (output.size_bytes // 4,))
    request = KernelRequest(operator, f"{operator} node", {}, (spec,) * len(inputs), (spec,))
    choice = device.select(request)
    return device.bind(request, choice, inputs, [output], _scratch(device, choice))


def _scratch(device: DeviceContext, choice: KernelChoice) -> Region | None:
    return device.allocate(choice.workspace_bytes) if choice.workspace_bytes else None


def _filled(device: DeviceContext, values: np.ndarray) -> Region:
    region = device.allocate(values.nbytes)
    device.write(region, values)
    return region


def _like(device: DeviceContext, values: np.ndarray) -> Region:
    return device.allocate(values.nbytes)


def _bytes(device: DeviceContext, region: Region) -> np.ndarray:
    result = np.empty(region.size_bytes, np.uint8)
    device.read(region, result)
    return result


def _floats(device: DeviceContext, region: Region) -> np.ndarray:
    return _bytes(device, region).view(np.float32)


def _host_call(device: DeviceContext, function: ReferenceFunction) -> DeviceGraph | None:
    """Return a graph that calls a reference function, or None on a device that refuses those."""
    spec = TensorSpec(np.dtype(np.float32), (4,))
    request = KernelRequest("HostCall", "host_call", {}, (), (spec,), reference=function)
    try:
        choice = device.select(request)
    except UnsupportedOperatorError:
        return None
    output = device.allocate(spec.size_bytes)
    return device.record([device.bind(request, choice, [], [output], None)])


def _fail(_: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
    raise ValueError("not today")


@contextmanager
def _held(device: DeviceContext, stream: DeviceStream) -> Iterator[bool]:
    """Hold a stream still for the body; yields whether this device can be held."""
    release = threading.Event()

    def hold(_: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        assert release.wait(_PATIENCE_S), "the check that held this stream never let it go"
        return [np.zeros(4, np.float32)]

    graph = _host_call(device, hold)
    try:
        if graph is not None:
            graph.launch(stream)
        yield graph is not None
    finally:
        release.set()


_Error = TypeVar("_Error", bound=Exception)


def _assert_raises(
    expected: type[_Error] | tuple[type[_Error], ...], action: Callable[[], object]
) -> _Error:
    try:
        action()
    except expected as error:
        return error
    raise AssertionError(f"no {expected} was raised")
