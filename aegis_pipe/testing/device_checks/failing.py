"""Errors: when they surface, and to whom."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from aegis_pipe.device.protocols import (
    DeviceContext,
)
from aegis_pipe.errors import KernelError, UnsupportedOperatorError
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec
from aegis_pipe.testing.device_checks.bench import (
    Adder,
    assert_raises,
    entered,
    fail,
    filled,
    host_call,
    like,
    read_floats,
)


@entered
def check_errors_surface_at_check(device: DeviceContext) -> None:
    """Check that an error is kept until the check, raised once, and the stream works on."""
    failing, adder = host_call(device, fail), Adder(device, 16)
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
        error = assert_raises(KernelError, stream.check)
        assert "host_call" in str(error), f"the error does not name its node: {error}"
        assert "not today" in str(error), f"the error does not tell its cause: {error}"
        stream.synchronise()
        assert adder.total() == before, "work enqueued after an error ran"
        adder.graph.launch(stream)
        stream.synchronise()
        assert adder.total() == before + 1, "the stream did not recover"


@entered
def check_first_error_wins(device: DeviceContext) -> None:
    """Check that of several errors the first is told, and one check forgets them all."""
    calls: list[int] = []

    def count_and_fail(_: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        calls.append(len(calls))
        raise ValueError(f"failure number {len(calls)}")

    failing, stream = host_call(device, count_and_fail), device.create_stream(0)
    if failing is None:
        return
    for number in (1, 2):
        for _ in range(3):
            failing.launch(stream)
        error = assert_raises(KernelError, stream.synchronise)
        assert f"failure number {number}" in str(error), f"not the first error: {error}"
        stream.synchronise()


@entered
def check_error_of_one_request(device: DeviceContext) -> None:
    """Check that an error is that of its own request, whichever of two on a stream failed."""
    failing, adder, stream = host_call(device, fail), Adder(device, 16), device.create_stream(0)
    first, second = device.create_event(), device.create_event()
    total = 0
    for _ in range(3):
        for fails in ((True, False), (False, True), (True, True), (False, False)):
            stream.begin_request()
            for event, does_fail in zip((first, second), fails, strict=True):
                if does_fail and failing is not None:
                    failing.launch(stream)
                else:
                    total += 1
                # Skipped behind an error of the same request, and of no other.
                adder.graph.launch(stream)
                stream.record(event)
                if event is first:
                    stream.begin_request()
            second.synchronise()
            for event, does_fail in zip((first, second), fails, strict=True):
                if does_fail and failing is not None:
                    assert_raises(KernelError, partial(stream.check, event))
                else:
                    stream.check(event)
            stream.check()
    stream.synchronise()
    assert adder.total() == total, "a request was stopped by another's error"


@entered
def check_error_of_one_stream(device: DeviceContext) -> None:
    """Check that an error stays with its stream; who waits for an event of it goes on."""
    failing, adder = host_call(device, fail), Adder(device, 16)
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
        assert_raises(KernelError, broken.synchronise)


@entered
def check_data_dependent_shape(device: DeviceContext) -> None:
    """Check that a reference function's shape that was not planned is a clear error."""
    graph = host_call(device, lambda _: [np.zeros(5, np.float32)])
    if graph is None:
        return
    stream = device.create_stream(0)
    graph.launch(stream)
    error = str(assert_raises(KernelError, stream.synchronise))
    for word in ("float32[5]", "float32[4]", "depends on data"):
        assert word in error, f"the error does not say {word}: {error}"


@entered
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
    x, y, stream = filled(device, values), like(device, values), device.create_stream(0)
    device.record([device.bind(request, choice, [x, None], [y], None)]).launch(stream)
    stream.synchronise()
    assert np.array_equal(read_floats(device, y), 2 * values), (
        "a reference function's result is lost"
    )
