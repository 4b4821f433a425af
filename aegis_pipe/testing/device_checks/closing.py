"""Closing: once, after the work, all of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from aegis_pipe.device.protocols import (
    DeviceContext,
)
from aegis_pipe.errors import AegisError
from aegis_pipe.testing.device_checks.bench import (
    Adder,
    assert_raises,
    entered,
)


@entered
def check_close_is_idempotent(device: DeviceContext) -> None:
    """Check that closing twice is closing once, for everything, in any order."""
    adder, stream, event = Adder(device, 16), device.create_stream(0), device.create_event()
    adder.graph.launch(stream)
    for _ in range(2):
        stream.close()
        event.close()
        adder.graph.close()
        adder.values.close()
    device.close()
    device.close()


@entered
def check_close_finishes_work(device: DeviceContext) -> None:
    """Check that a stream that is closed finishes what was enqueued."""
    adder, stream, event = Adder(device, 1 << 14), device.create_stream(0), device.create_event()
    for _ in range(50):
        adder.graph.launch(stream)
    stream.record(event)
    stream.close()
    assert event.is_done(), "an event was not marked when its stream closed"
    assert adder.total() == 50, "work was lost when its stream closed"


@entered
def check_context_closes_all(device: DeviceContext) -> None:
    """Check that closing the context closes what it made, streams first."""
    adder, stream = Adder(device, 16), device.create_stream(0)
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
        assert_raises((AssertionError, AegisError), misuse)
