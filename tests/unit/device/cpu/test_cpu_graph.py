from collections.abc import Iterator

import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.cpu.graph import CpuGraph, CpuKernelCall
from aegis_pipe.device.cpu.kernels import compiled_elementwise, native
from aegis_pipe.device.cpu.stream import CpuStream, Progress
from aegis_pipe.errors import KernelError


class TickingClock(SystemClock):
    """One nanosecond later at every look."""

    def __init__(self) -> None:
        self.ticks = 0

    def now_ns(self) -> int:
        self.ticks += 1
        return self.ticks


@pytest.fixture
def stream() -> Iterator[CpuStream]:
    made = CpuStream(0, SystemClock(), Progress())
    yield made
    made.close()


def _calls(log: list[str], *names: str) -> list[CpuKernelCall]:
    return [CpuKernelCall("log", name, lambda name=name: log.append(name)) for name in names]


VIEW = CpuKernelCall("view", "reshape", None)


def _times(graph: CpuGraph) -> list[list[int]]:
    return np.frombuffer(graph.kernel_times(), np.int64).reshape(-1, 2).tolist()


@pytest.mark.parametrize("stamped", [False, True])
def test_calls_run_in_order_and_views_do_not(stream: CpuStream, stamped: bool) -> None:
    log: list[str] = []
    graph = CpuGraph([VIEW, *_calls(log, "a", "b"), VIEW, *_calls(log, "c")], SystemClock())
    graph.launch(stream, stamped=stamped)
    graph.launch(stream, stamped=stamped)
    stream.synchronise()
    assert log == ["a", "b", "c"] * 2


def test_a_call_ends_where_the_next_begins(stream: CpuStream) -> None:
    log: list[str] = []
    graph = CpuGraph([*_calls(log, "a"), VIEW, *_calls(log, "b")], TickingClock())
    assert graph.kernel_times() == b""
    for first in (1, 5):
        graph.launch(stream, stamped=True)
        stream.synchronise()
        assert _times(graph) == [
            [first, first + 1],
            [first + 1, first + 2],
            [first + 2, first + 3],
        ]


def test_failed_launch_leaves_the_last_stamps(stream: CpuStream) -> None:
    fail_from_now_on: list[int] = []

    def fail() -> None:
        if fail_from_now_on:
            raise ValueError

    graph = CpuGraph([CpuKernelCall("k", "n", fail)], TickingClock())
    graph.launch(stream, stamped=True)
    stream.synchronise()
    before = graph.kernel_times()
    fail_from_now_on.append(1)
    graph.launch(stream, stamped=True)
    with pytest.raises(KernelError):
        stream.synchronise()
    assert graph.kernel_times() == before


@pytest.mark.parametrize("stamped", [False, True])
@pytest.mark.parametrize("position", range(4))
def test_an_error_names_its_call(stream: CpuStream, position: int, stamped: bool) -> None:
    log: list[str] = []
    calls = _calls(log, "a", "b", "c", "d")
    calls[position] = CpuKernelCall("divide.numpy", "quotient", lambda: print(1 // 0))
    graph = CpuGraph([VIEW, *calls, VIEW], SystemClock())
    graph.launch(stream, stamped=stamped)
    with pytest.raises(KernelError) as caught:
        stream.synchronise()
    assert caught.value.context == "node `quotient`, kernel `divide.numpy`"
    assert "ZeroDivisionError: integer division or modulo by zero" in caught.value.message
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert log == ["a", "b", "c", "d"][:position]


def test_closed_graph_asserts_but_finishes_what_was_launched(stream: CpuStream) -> None:
    log: list[str] = []
    graph = CpuGraph(_calls(log, "a"), SystemClock())
    graph.launch(stream)
    graph.close()
    graph.close()
    stream.synchronise()
    assert log == ["a"]
    with pytest.raises(AssertionError, match="closed"):
        graph.launch(stream)


def test_calls_of_other_devices_assert() -> None:
    with pytest.raises(AssertionError, match="another device"):
        CpuGraph(["not a call"], SystemClock())


@pytest.mark.skipif(native.LIBRARY is None, reason=f"compiled kernels {native.STATUS}")
@pytest.mark.parametrize("stamped", [False, True])
def test_compiled_kernels_run_between_others(stream: CpuStream, stamped: bool) -> None:
    x = np.linspace(-1, 1, 40, dtype=np.float32)
    y, z, w = (np.empty_like(x) for _ in range(3))
    compiled = [
        CpuKernelCall("native.map", "n", _native("negate", x, y)),
        VIEW,
        CpuKernelCall("native.map", "n", _native("relu", y, z)),
        CpuKernelCall("double", "n", lambda: np.multiply(z, 2, out=w)),
        CpuKernelCall("native.map", "n", _native("negate", w, w)),
    ]
    graph = CpuGraph([VIEW, *compiled, VIEW], SystemClock())
    graph.launch(stream, stamped=stamped)
    stream.synchronise()
    assert w.tobytes() == (-2 * np.maximum(-x, 0)).tobytes()
    if stamped:
        times = np.array(_times(graph))
        assert times.shape == (7, 2)
        assert (np.diff(times.reshape(-1)) >= 0).all()


def _native(function: str, x: np.ndarray, y: np.ndarray) -> native.NativeCall:
    arguments = compiled_elementwise._Map(x.ctypes.data, y.ctypes.data, x.size, 0, 0)
    return native.NativeCall(native.LIBRARY, f"aegis_{function}", arguments, (x, y))
