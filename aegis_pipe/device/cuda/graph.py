"""Bound kernels, captured as CUDA graphs and launched with one driver call.

Every list of calls is captured twice: plain, and *stamped*, with a one-thread kernel between calls
that writes `%globaltimer`. A stamp costs less than a microsecond; a sampled request pays it, the
others do not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.early_starts import RecordedKernel, Span, to_be_ordered
from aegis_pipe.device.cuda.faults import FaultWord, FaultWords
from aegis_pipe.device.cuda.staging import pinned_bytes
from aegis_pipe.device.cuda.stream import CudaStream
from aegis_pipe.device.cuda.timeline import Timeline
from aegis_pipe.device.protocols import DeviceStream, KernelCall

Enqueue = Callable[[int], None]
"""Puts one kernel, bound to everything it needs, on the stream with this handle."""


@dataclass(frozen=True, slots=True, eq=False)
class WaitingLaunch:
    """An `Enqueue` of a kernel of our own that may be started before the one ahead has ended."""

    enqueue: Enqueue

    def __call__(self, stream: int) -> None:
        """Enqueue it."""
        self.enqueue(stream)


class Stamper(Protocol):
    """Enqueues a kernel that writes the GPU's time to an address."""

    def __call__(self, address: int, stream: int) -> None:
        """Enqueue it."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class CudaKernelCall:
    """A kernel bound to its operands; no launches for a view, which has nothing to do."""

    kernel: str
    node: str
    launches: tuple[Enqueue, ...]
    faults: tuple[FaultWord, ...] = ()
    unwaited: tuple[Span, ...] = ()
    """What a library's kernel may read before it waits for the one before it, if not constant."""
    written: tuple[Span, ...] = ()
    """Where its results and its workspace are."""


class CudaGraph:
    """A captured list of calls."""

    __slots__ = (
        "__weakref__",
        "_faults",
        "_has_stamps",
        "_is_open",
        "_plain",
        "_rows",
        "_stamp_memory",
        "_stamped",
        "_stamps",
        "_timeline",
        "_words",
    )

    def __init__(
        self,
        calls: Sequence[KernelCall],
        capture_stream: int,
        stamper: Stamper,
        timeline: Timeline,
        faults: FaultWords,
    ) -> None:
        own = [_own(call) for call in calls]
        self._timeline = timeline
        self._faults = faults
        self._words = tuple(word for call in own for word in call.faults)
        self._has_stamps = False
        self._is_open = True
        working = [bool(call.launches) for call in own]
        # A view begins and ends where the call after it begins.
        ends = np.cumsum([0, *working])
        self._rows = np.stack([ends[:-1], ends[1:]], axis=1)
        count = int(ends[-1]) + 1
        self._stamp_memory = driver.allocate_pinned(8 * count)
        self._stamps = pinned_bytes(self._stamp_memory, 8 * count).view(np.int64)
        self._plain = self._stamped = 0
        busy = [call for call in own if call.launches]
        if busy:
            self._plain = _capture(capture_stream, busy, lambda _: None)
            self._stamped = _capture(
                capture_stream,
                busy,
                lambda row: stamper(self._stamp_memory + 8 * row, capture_stream),
            )

    def launch(self, stream: DeviceStream, *, stamped: bool = False) -> None:
        """Enqueue the whole list; with `stamped`, also write each call's start and end."""
        assert isinstance(stream, CudaStream), f"{stream!r} belongs to another device"
        assert self._is_open, "the graph is used after it was closed"
        handle = stream.handle
        self._has_stamps |= stamped
        launchable = self._stamped if stamped else self._plain
        if launchable:
            driver.launch_graph(launchable, handle)
            if self._words:
                self._faults.launched(stream.index, id(self), self._words, stream.advance())

    def kernel_times(self) -> bytes:
        """Copy the stamps of the last finished stamped launch: int64[calls, 2], nanoseconds."""
        if not self._has_stamps or not len(self._rows):
            return b""
        times: np.ndarray = self._stamps[self._rows] + self._timeline.stamp_offset_ns
        return times.astype(np.int64).tobytes()

    def close(self) -> None:
        """Release; idempotent."""
        if not self._is_open:
            return
        self._is_open = False
        self._faults.forget(id(self))
        for launchable in (self._plain, self._stamped):
            if launchable:
                driver.destroy_graph(launchable)
        self._stamps = np.empty(0, np.int64)
        driver.free_pinned(self._stamp_memory)

    def __del__(self) -> None:
        if getattr(self, "_is_open", False):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)


def _capture(stream: int, calls: Sequence[CudaKernelCall], stamp: Callable[[int], None]) -> int:
    """Return a launchable of the calls, with `stamp` called before the first and after each."""
    # Of every node the call and the launch that it is of; none of a stamp.
    owners: list[tuple[CudaKernelCall, Enqueue] | None] = []

    def note(owner: tuple[CudaKernelCall, Enqueue] | None) -> None:
        owners.extend([owner] * (driver.captured_count(stream) - len(owners)))

    driver.begin_capture(stream)
    try:
        stamp(0)
        note(None)
        for row, call in enumerate(calls, start=1):
            for enqueue in call.launches:
                enqueue(stream)
                note((call, enqueue))
            stamp(row)
            note(None)
    except BaseException:
        # The capture has to end, whatever happened within.
        driver.abandon_capture(stream)
        raise
    graph = driver.end_capture(stream)
    early = driver.early_starts(graph)
    if early is None:
        # Who reads what before whom has ended is known of chains only.
        driver.order_fully(graph, None)
    else:
        recorded = [_recorded(*each) for each in zip(owners, early, strict=True)]
        driver.order_fully(graph, to_be_ordered(recorded))
    launchable = driver.instantiate(graph)
    driver.upload_graph(launchable, stream)
    driver.synchronise_stream(stream)
    return launchable


def _recorded(owner: tuple[CudaKernelCall, Enqueue] | None, starts_early: bool) -> RecordedKernel:
    if owner is None:
        return RecordedKernel(starts_early)
    call, enqueue = owner
    waits = isinstance(enqueue, WaitingLaunch)
    return RecordedKernel(starts_early, waits, () if waits else call.unwaited, call.written)


def _own(call: KernelCall) -> CudaKernelCall:
    assert isinstance(call, CudaKernelCall), f"{call!r} belongs to another device"
    return call
