"""What the checks share: the table they enter, and small graphs to look at a device with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
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
from aegis_pipe.errors import UnsupportedOperatorError
from aegis_pipe.kernel import KernelChoice, KernelRequest, ReferenceFunction
from aegis_pipe.tensor import TensorSpec

OpenDevice = Callable[[], DeviceContext]

DEVICE_CHECKS: dict[str, Callable[[OpenDevice], None]] = {}
"""Every check by name; each opens a context of its own and closes it."""

PATIENCE_S = 60.0
"""Only a device that hangs is waited for so long."""

GRACE_S = 0.1
"""How long a device gets to do what it must not."""


def entered(
    body: Callable[[DeviceContext], None],
) -> Callable[[OpenDevice], None]:
    """Enter a check into the table, with a fresh device handed in and closed again."""

    def check(open_device: OpenDevice) -> None:
        with open_device() as device:
            keeper = Keeper(device)
            body(cast(DeviceContext, keeper))

    check.__name__ = body.__name__
    check.__doc__ = body.__doc__
    DEVICE_CHECKS[body.__name__.removeprefix("check_")] = check
    return check


class Keeper:
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


DTYPES = tuple(
    np.dtype(name) for name in ("f4", "f8", "f2", "i1", "u1", "i8", "?", ml_dtypes.bfloat16)
)


class Adder:
    """A graph that adds `amount` to every element of a region, in two calls each."""

    def __init__(self, device: DeviceContext, count: int, *, amount: int = 1) -> None:
        self._device = device
        halves = filled(device, np.full(count, 0.5, np.float32))
        self.values, spare = device.allocate(4 * count), device.allocate(4 * count)
        there = bind(device, "Add", [self.values, halves], spare)
        back = bind(device, "Add", [spare, halves], self.values)
        self.graph = device.record([there, back] * amount)

    def total(self) -> float:
        """Return what every element holds."""
        values = read_floats(self._device, self.values)
        assert (values == values[0]).all(), f"elements differ: {np.unique(values)}"
        return float(values[0])


def bind(
    device: DeviceContext, operator: str, inputs: Sequence[Region], output: Region
) -> KernelCall:
    """Select and bind a float32 kernel on vectors."""
    spec = TensorSpec(np.dtype(np.float32), (output.size_bytes // 4,))
    request = KernelRequest(operator, f"{operator} node", {}, (spec,) * len(inputs), (spec,))
    choice = device.select(request)
    return device.bind(request, choice, inputs, [output], scratch(device, choice))


def scratch(device: DeviceContext, choice: KernelChoice) -> Region | None:
    """Return the workspace a kernel asks for, or None."""
    return device.allocate(choice.workspace_bytes) if choice.workspace_bytes else None


def filled(device: DeviceContext, values: np.ndarray) -> Region:
    """Return a new region holding these values."""
    region = device.allocate(values.nbytes)
    device.write(region, values)
    return region


def like(device: DeviceContext, values: np.ndarray) -> Region:
    """Return a new region as large as these values."""
    return device.allocate(values.nbytes)


def read_bytes(device: DeviceContext, region: Region) -> np.ndarray:
    """Return a copy of a region, uint8[size]."""
    result = np.empty(region.size_bytes, np.uint8)
    device.read(region, result)
    return result


def read_floats(device: DeviceContext, region: Region) -> np.ndarray:
    """Return a copy of a region, float32[size / 4]."""
    return read_bytes(device, region).view(np.float32)


def host_call(device: DeviceContext, function: ReferenceFunction) -> DeviceGraph | None:
    """Return a graph that calls a reference function, or None on a device that refuses those."""
    spec = TensorSpec(np.dtype(np.float32), (4,))
    request = KernelRequest("HostCall", "host_call", {}, (), (spec,), reference=function)
    try:
        choice = device.select(request)
    except UnsupportedOperatorError:
        return None
    output = device.allocate(spec.size_bytes)
    return device.record([device.bind(request, choice, [], [output], None)])


def fail(_: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
    """Raise what a reference function may raise."""
    raise ValueError("not today")


@contextmanager
def held(device: DeviceContext, stream: DeviceStream) -> Iterator[bool]:
    """Hold a stream still for the body; yields whether this device can be held."""
    release = threading.Event()

    def hold(_: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        assert release.wait(PATIENCE_S), "the check that held this stream never let it go"
        return [np.zeros(4, np.float32)]

    graph = host_call(device, hold)
    try:
        if graph is not None:
            graph.launch(stream)
        yield graph is not None
    finally:
        release.set()


_Error = TypeVar("_Error", bound=Exception)


def assert_raises(
    expected: type[_Error] | tuple[type[_Error], ...], action: Callable[[], object]
) -> _Error:
    """Return the error the action raises; AssertionError if it raises none of these."""
    try:
        action()
    except expected as error:
        return error
    raise AssertionError(f"no {expected} was raised")
