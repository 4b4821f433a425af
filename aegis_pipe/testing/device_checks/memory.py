"""Memory: allocating, views, copies to and from the host."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from aegis_pipe.device.protocols import (
    DeviceContext,
)
from aegis_pipe.errors import PermanentError
from aegis_pipe.testing.device_checks.bench import (
    DEVICE_CHECKS,
    DTYPES,
    OpenDevice,
    assert_raises,
    entered,
    read_bytes,
)


@entered
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


@entered
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


@entered
def check_allocation(device: DeviceContext) -> None:
    """Check that memory comes zeroed, of the size asked for, and is counted."""
    for size_bytes in (0, 1, 63, 64, 65, 4097, 1_000_003):
        before = device.allocation_count
        region = device.allocate(size_bytes)
        assert device.allocation_count == before + 1, "each allocation counts once"
        assert region.size_bytes == size_bytes, "a region has the size that was asked for"
        assert not read_bytes(device, region).any(), f"{size_bytes} bytes were not zeroed"
        region.close()


@entered
def check_reused_memory_is_zeroed(device: DeviceContext) -> None:
    """Check that what one owner wrote, the next does not see."""
    for _ in range(3):
        region = device.allocate(4096)
        assert not read_bytes(device, region).any(), "memory still holds what its last owner wrote"
        device.write(region, np.full(4096, 255, np.uint8))
        region.close()


@entered
def check_allocation_beyond_memory(device: DeviceContext) -> None:
    """Check that a size no machine has is a PermanentError, and the device works on."""
    before = device.allocation_count
    assert_raises(PermanentError, lambda: device.allocate(1 << 60))
    assert device.allocation_count == before, "an allocation that failed is not counted"
    region = device.allocate(64)
    assert region.size_bytes == 64, "the device allocates after a refusal"
    region.close()


@entered
def check_views(device: DeviceContext) -> None:
    """Check that views share bytes with their owner, nest, and allocate nothing."""
    owner = device.allocate(256)
    before = device.allocation_count
    inner = owner.view(64, 128).view(32, 16)
    assert device.allocation_count == before, "a view allocates"
    device.write(inner, np.arange(1, 17, dtype=np.uint8))
    expected = np.zeros(256, np.uint8)
    expected[96:112] = np.arange(1, 17)
    assert np.array_equal(read_bytes(device, owner), expected), "a view's bytes are its owner's"
    device.write(owner, np.full(256, 7, np.uint8))
    assert (read_bytes(device, inner) == 7).all(), "an owner's bytes are its view's"
    assert owner.view(256, 0).size_bytes == 0, "an empty view at the end is within bounds"
    inner.close()
    assert (read_bytes(device, owner) == 7).all(), "closing a view leaves its owner alone"
    owner.close()


@entered
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
        assert_raises(AssertionError, partial(region.view, offset_bytes, size_bytes))
    owner.close()


def check_view_keeps_owner_alive(open_device: OpenDevice) -> None:
    """Check that memory stays while a view is held, even if nobody holds the owner."""
    with open_device() as device:
        view = device.allocate(64).view(0, 64)
        gc.collect()
        device.write(view, np.full(64, 5, np.uint8))
        assert (read_bytes(device, view) == 5).all(), "a view lost its memory"
        # Closes the owner, which would warn if the view were forgotten first.
        device.close()


DEVICE_CHECKS["view_keeps_owner_alive"] = check_view_keeps_owner_alive


@entered
def check_round_trips(device: DeviceContext) -> None:
    """Check that what is written is read, for every kind of dtype, scalars and empty arrays."""
    for dtype in DTYPES:
        for shape in ((3, 5), (), (0,), (2, 0, 3)):
            values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
            region = device.allocate(values.nbytes)
            device.write(region, values)
            result = np.empty_like(values)
            device.read(region, result)
            assert result.tobytes() == values.tobytes(), f"{values.dtype}{shape} changed"
            region.close()


@entered
def check_sizes_must_match(device: DeviceContext) -> None:
    """Check that copies between different sizes assert: they are a planner's bug."""
    region, stream = device.allocate(64), device.create_stream(0)
    small = np.zeros(63, np.uint8)
    assert_raises(AssertionError, lambda: device.write(region, small))
    assert_raises(AssertionError, lambda: device.read(region, small))
    assert_raises(AssertionError, lambda: stream.copy_in(small, region))
    assert_raises(AssertionError, lambda: stream.copy_out(region, small))
