"""The CPU passes what any device must, and the suite fails devices that do not."""

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.cpu.context import CpuContext
from aegis_pipe.device.cpu.event import CpuEvent
from aegis_pipe.device.cpu.graph import CpuGraph
from aegis_pipe.device.cpu.kernels.registry import KERNELS, CpuKernel, KernelTable
from aegis_pipe.device.cpu.region import CpuRegion, host_bytes
from aegis_pipe.device.cpu.stream import CpuStream
from aegis_pipe.device.protocols import (
    DeviceEvent,
    DeviceGraph,
    DeviceStream,
    KernelCall,
    Region,
    StagingStatistics,
)
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorSpec
from aegis_pipe.testing.check_device import DEVICE_CHECKS, check_device


def _minimal(operator: str, run: Callable[..., object], **offer: object) -> CpuKernel:
    """A kernel that calls a NumPy function with `out=`."""
    choice = KernelChoice(f"{operator.lower()}.minimal", **offer)

    def bind(request, choice, inputs, outputs, workspace):
        return lambda: run(*inputs, out=outputs[0])

    return CpuKernel((operator,), lambda request: choice, bind)


def _kernels() -> KernelTable:
    """The device's own kernels, with minimal ones for operators it lacks."""
    table = KernelTable()
    for operator in KERNELS.operators():
        for kernel in KERNELS.candidates(operator):
            table.register(CpuKernel((operator,), kernel.choose, kernel.bind))
    table.register(
        _minimal("Add", np.add, in_place=((0, 0), (1, 0))),
        _minimal("Relu", lambda x, out: np.maximum(x, 0, out=out), in_place=((0, 0),)),
        _minimal("Identity", np.copyto, view=(0, 0)),
    )
    return table


def open_cpu() -> CpuContext:
    return CpuContext(SystemClock(), kernels=_kernels())


@pytest.mark.parametrize("name", DEVICE_CHECKS)
def test_cpu(name: str) -> None:
    DEVICE_CHECKS[name](open_cpu)


def test_all_at_once() -> None:
    check_device(open_cpu)


# Each of these devices does one thing wrong; the named check has to notice.


def _forget_zeroing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = CpuRegion.reserve.__func__

    def reserve(cls, size_bytes):
        region = whole(cls, size_bytes)
        host_bytes(region).fill(1)
        return region

    monkeypatch.setattr(CpuRegion, "reserve", classmethod(reserve))


def _ignore_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    def view(self, offset_bytes, size_bytes):
        return CpuRegion(host_bytes(self)[max(0, offset_bytes) :][: max(0, size_bytes)], self)

    monkeypatch.setattr(CpuRegion, "view", view)


def _ignore_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuStream, "wait", lambda self, event: None)


def _wait_for_any_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(self, event):
        def poll():
            while not event.is_done():
                threading.Event().wait(0.001)

        self._put(False, poll)

    monkeypatch.setattr(CpuStream, "wait", wait)


def _mark_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(self, event):
        self._reach(event.renew(), self._now_ns, self._progress)

    monkeypatch.setattr(CpuStream, "record", record)


def _skip_marks_after_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuEvent, "synchronise", lambda self: None)
    put = CpuStream._put
    monkeypatch.setattr(CpuStream, "_put", lambda self, is_work, action: put(self, True, action))


def _run_after_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    put = CpuStream._put
    monkeypatch.setattr(CpuStream, "_put", lambda self, is_work, action: put(self, False, action))


def _forget_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuStream, "check", lambda self: None)


def _reverse_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    record = CpuContext.record
    monkeypatch.setattr(CpuContext, "record", lambda self, calls, **rest: record(self, calls[::-1]))


def _reverse_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    record = CpuContext.record

    def spoilt(self, calls, stream=None, forks=()):
        for fork in forks:
            first, end = min(map(min, fork)), max(map(max, fork)) + 1
            calls = [*calls[:first], *reversed(calls[first:end]), *calls[end:]]
        return record(self, calls, stream)

    monkeypatch.setattr(CpuContext, "record", spoilt)


def _stamp_in_the_past(monkeypatch: pytest.MonkeyPatch) -> None:
    times = CpuGraph.kernel_times
    monkeypatch.setattr(CpuGraph, "kernel_times", lambda self: times(self)[::-1])


def _shifted(monkeypatch: pytest.MonkeyPatch, shift_ns: int) -> None:
    times = CpuGraph.kernel_times

    def kernel_times(self):
        return (np.frombuffer(times(self), np.int64) + shift_ns).tobytes()

    monkeypatch.setattr(CpuGraph, "kernel_times", kernel_times)


def _stamp_out_of_order(monkeypatch: pytest.MonkeyPatch) -> None:
    times = CpuGraph.kernel_times

    def kernel_times(self):
        rows = np.frombuffer(times(self), np.int64).reshape(-1, 2)
        # The first and the last stay: only the order between them is wrong.
        return rows[[0, *range(len(rows) - 2, 0, -1), len(rows) - 1][: len(rows)]].tobytes()

    monkeypatch.setattr(CpuGraph, "kernel_times", kernel_times)


class _FixedTracer:
    def __init__(self, calls: int) -> None:
        self._rows = [[100]] * calls

    def take(self):
        return self._rows

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass


def _trace_all_but_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuContext, "trace_kernels", lambda self: _FixedTracer(9))


def _leave_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuContext, "set_progress_listener", _set_once)


def _set_once(self: CpuContext, listener: Callable[[], None] | None) -> None:
    self._progress.listener = self._progress.listener or listener


def _allocate_per_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    copy_in = CpuStream.copy_in
    open_contexts: list[CpuContext] = []
    create = CpuContext.create_stream

    def create_stream(self, index, **options):
        open_contexts.append(self)
        return create(self, index, **options)

    def copy_in_badly(self, source, target):
        open_contexts[-1].allocate(16).close()
        copy_in(self, source, target)

    monkeypatch.setattr(CpuContext, "create_stream", create_stream)
    monkeypatch.setattr(CpuStream, "copy_in", copy_in_badly)


def _stage_what_nobody_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuStream, "staging", StagingStatistics(256, 256))


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("planned_staging", _stage_what_nobody_planned),
        ("allocation", _forget_zeroing),
        ("view_bounds", _ignore_bounds),
        ("wait_across_streams", _ignore_waits),
        ("wait_is_for_the_record_before", _wait_for_any_record),
        ("event_not_done_early", _mark_at_once),
        ("errors_surface_at_check", _skip_marks_after_errors),
        ("errors_surface_at_check", _run_after_errors),
        ("errors_surface_at_check", _forget_errors),
        ("launch_order", _reverse_graphs),
        ("branches", _reverse_branches),
        ("branches", _stamp_out_of_order),
        ("stamps", _stamp_in_the_past),
        ("stamps", _stamp_out_of_order),
        ("stamps", lambda monkeypatch: _shifted(monkeypatch, -1_000_000_000)),
        ("stamps", lambda monkeypatch: _shifted(monkeypatch, 1_000_000_000)),
        ("tracer", _trace_all_but_one),
        ("progress_listener", _leave_listener),
        ("no_allocation_after_start", _allocate_per_launch),
    ],
)
def test_suite_notices(
    name: str,
    spoil: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(monkeypatch)
    with pytest.raises(AssertionError):
        DEVICE_CHECKS[name](open_cpu)


@pytest.mark.parametrize("sign", [1, -1])
def test_stamps_may_leave_the_launch_by_the_step_of_events(
    sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = CpuContext.description.fget
    step_ns = 2_000_000_000
    monkeypatch.setattr(
        CpuContext,
        "description",
        property(lambda self: replace(described(self), event_step_ns=step_ns)),
    )
    _shifted(monkeypatch, sign * step_ns // 2)
    DEVICE_CHECKS["stamps"](open_cpu)


def test_a_tracer_that_sees_every_call_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuContext, "trace_kernels", lambda self: _FixedTracer(10))
    DEVICE_CHECKS["tracer"](open_cpu)


def test_classes_follow_the_protocols() -> None:
    with open_cpu() as device:
        region, stream, event = device.allocate(8), device.create_stream(0), device.create_event()
        graph = device.record([])
        assert isinstance(region, Region)
        assert isinstance(stream, DeviceStream)
        assert isinstance(event, DeviceEvent)
        assert isinstance(graph, DeviceGraph)
        spec = TensorSpec(np.dtype(np.float32), (2,))
        request = KernelRequest("Relu", "n", {}, (spec,), (spec,))
        call = device.bind(request, device.select(request), [region], [region], None)
        assert isinstance(call, KernelCall)
        device.close()
