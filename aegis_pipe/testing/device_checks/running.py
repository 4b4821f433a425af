"""Kernels and graphs: results, order, stamps, and nothing allocated."""

from __future__ import annotations

import random

import numpy as np

from aegis_pipe.device.protocols import (
    DeviceContext,
)
from aegis_pipe.errors import PermanentError, UnsupportedOperatorError
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec
from aegis_pipe.testing.device_checks.bench import (
    Adder,
    assert_raises,
    bind,
    entered,
    filled,
    like,
    read_bytes,
    read_floats,
    scratch,
)


@entered
def check_kernels_compute(device: DeviceContext) -> None:
    """Check that select, bind, record and launch give the operator's result."""
    stream = device.create_stream(0)
    left = np.linspace(-2, 2, 1000, dtype=np.float32)
    right = np.linspace(1, -3, 1000, dtype=np.float32)
    a, b = filled(device, left), filled(device, right)
    total, kept = like(device, left), like(device, left)
    calls = [bind(device, "Add", [a, b], total), bind(device, "Relu", [total], kept)]
    assert all(call.kernel for call in calls), "a bound call names its kernel"
    device.record(calls).launch(stream)
    stream.synchronise()
    expected = np.maximum(left + right, 0)
    assert np.array_equal(read_floats(device, kept), expected), "Relu(Add(a, b)) is wrong"
    assert np.array_equal(read_floats(device, a), left), "a kernel wrote over its input"


@entered
def check_launch_order(device: DeviceContext) -> None:
    """Check that a thousand launches of two graphs that do not commute run in the order given."""
    stream = device.create_stream(0)
    up = np.ones(8, np.float32)
    down = -np.arange(8, dtype=np.float32)
    x, t = like(device, up), like(device, up)
    zeros, ups, downs = like(device, up), filled(device, up), filled(device, down)
    rise = device.record([bind(device, "Add", [x, ups], t), bind(device, "Add", [t, zeros], x)])
    fall = device.record([bind(device, "Add", [x, downs], t), bind(device, "Relu", [t], x)])
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


@entered
def check_branches(device: DeviceContext) -> None:
    """Check that branches begin behind what is before their fork, and end ahead of what follows."""
    stream = device.create_stream(0)
    zeros = np.zeros(1 << 18, np.float32)
    x, a, b, c, d, e, f, g = (like(device, zeros) for _ in range(8))
    ones = filled(device, zeros + 1)
    calls = [
        bind(device, "Add", [x, ones], a),
        *[bind(device, "Add", [a, a], b), bind(device, "Add", [b, b], c)],
        bind(device, "Relu", [a], d),
        *[bind(device, "Add", [a, ones], e), bind(device, "Add", [e, a], f)],
        *[bind(device, "Add", [c, d], g), bind(device, "Add", [g, f], x)],
    ]
    branches = ((1, 2), (3,), (4, 5))
    graph = device.record(calls, forks=[branches])
    for _ in range(20):
        device.write(x, zeros.view(np.uint8))
        expected = 0
        for launch in range(8):
            graph.launch(stream, stamped=launch % 2 == 1)
            expected = 7 * (expected + 1) + 1
        stream.synchronise()
        found = read_floats(device, x)
        assert (found == expected).all(), f"branches ran out of order: {np.unique(found)}"
    times = np.frombuffer(graph.kernel_times(), np.int64).reshape(len(calls), 2).tolist()
    for branch in branches:
        stamps = [*times[0], *(stamp for call in branch for stamp in times[call]), *times[6]]
        assert stamps == sorted(stamps), f"stamps of a branch go back: {stamps}"
    only = device.record(calls[3:5], forks=[((0,), (1,))])
    only.launch(stream)
    stream.synchronise()
    after = read_floats(device, e) - read_floats(device, a)
    assert (after == 1).all(), "a graph of two branches is wrong"


@entered
def check_same_bits(device: DeviceContext) -> None:
    """Check that the same graph on the same bytes gives the same bits, every time."""
    stream = device.create_stream(0)
    numbers = np.random.default_rng(7)
    a, b = (filled(device, numbers.standard_normal(5000, np.float32)) for _ in range(2))
    t, y = device.allocate(20_000), device.allocate(20_000)
    graph = device.record([bind(device, "Add", [a, b], t), bind(device, "Add", [t, a], y)])
    results = set()
    for _ in range(50):
        device.write(y, np.zeros(20_000, np.uint8))
        graph.launch(stream)
        stream.synchronise()
        results.add(read_bytes(device, y).tobytes())
    assert len(results) == 1, f"50 launches gave {len(results)} different results"


@entered
def check_tracer(device: DeviceContext) -> None:
    """Check that a device's own profiler, if it has one, sees a stamped launch call by call."""
    adder, stream = Adder(device, 1 << 12, amount=5), device.create_stream(0)
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


@entered
def check_stamps(device: DeviceContext) -> None:
    """Check that a stamped launch tells each call's start and end, within the launch."""
    adder, stream = Adder(device, 1 << 12, amount=5), device.create_stream(0)
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


@entered
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
            regions = [filled(device, values) for _ in range(count)]
            call = device.bind(request, choice, regions, [regions[read]], scratch(device, choice))
            device.record([call]).launch(stream)
            stream.synchronise()
            result = read_floats(device, regions[read])
            assert np.array_equal(result, expected), f"{operator} in place is wrong"


@entered
def check_views_bind(device: DeviceContext) -> None:
    """Check that a view runs nothing and has its row; if Identity is no view, it copies."""
    stream = device.create_stream(0)
    values = np.linspace(-1, 1, 100, dtype=np.float32)
    x, y = filled(device, values), like(device, values)
    spec = TensorSpec(values.dtype, values.shape)
    request = KernelRequest("Identity", "same", {}, (spec,), (spec,))
    choice = device.select(request)
    assert choice.view in (None, (0, 0)), f"Identity has no positions {choice.view}"
    same = x if choice.view else like(device, values)
    identity = device.bind(request, choice, [x], [same], scratch(device, choice))
    graph = device.record([identity, bind(device, "Relu", [same], y)])
    graph.launch(stream, stamped=True)
    stream.synchronise()
    assert np.array_equal(read_floats(device, y), np.maximum(values, 0)), (
        "Relu(Identity(x)) is wrong"
    )
    assert len(graph.kernel_times()) == 2 * 16, "every recorded call has its row of stamps"


@entered
def check_empty_graph(device: DeviceContext) -> None:
    """Check that a graph of nothing can be launched."""
    stream = device.create_stream(0)
    graph = device.record([])
    graph.launch(stream, stamped=True)
    stream.synchronise()
    assert graph.kernel_times() == b"", "stamps of no calls"


@entered
def check_unsupported_operator(device: DeviceContext) -> None:
    """Check that the refusal names the node, the operator and what is close to it."""
    spec = TensorSpec(np.dtype(np.float32), (4,))
    request = KernelRequest("Reluu", "node_17", {}, (spec,), (spec,))
    text = str(assert_raises(UnsupportedOperatorError, lambda: device.select(request)))
    for word in ("node_17", "Reluu", "`Relu`"):
        assert word in text, f"the refusal does not name {word}: {text}"


@entered
def check_no_allocation_after_start(device: DeviceContext) -> None:
    """Check that launches, copies, records and waits allocate nothing on the device."""
    adder, event = Adder(device, 256), device.create_event()
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
