"""Bound kernels, captured as CUDA graphs and launched with one driver call.

Every list of calls is captured twice: plain, and *stamped*, with a one-thread kernel between calls
that writes `%globaltimer`. A stamp costs less than a microsecond; a sampled request pays it, the
others do not.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.early_starts import Span
from aegis_pipe.device.cuda.faults import FaultWord, FaultWords
from aegis_pipe.device.cuda.recording import (
    Recorded,
    Strand,
    difference,
    stamp_rows,
    strands_of,
    wanted_edges,
)
from aegis_pipe.device.cuda.staging import pinned_bytes
from aegis_pipe.device.cuda.stream import CudaStream, handle_of
from aegis_pipe.device.cuda.timeline import Timeline
from aegis_pipe.device.protocols import DeviceStream, Fork, KernelCall

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
        replace_fills: Callable[[int], None],
        timeline: Timeline,
        faults: FaultWords,
        forks: Sequence[Fork] = (),
    ) -> None:
        own = [_own(call) for call in calls]
        self._timeline = timeline
        self._faults = faults
        self._words = tuple(word for call in own for word in call.faults)
        self._has_stamps = False
        self._is_open = True
        strands = strands_of(len(own), forks)
        is_busy = [bool(call.launches) for call in own]
        self._rows, count = stamp_rows(strands, is_busy)
        self._stamp_memory = driver.allocate_pinned(8 * count)
        self._stamps = pinned_bytes(self._stamp_memory, 8 * count).view(np.int64)
        self._plain = self._stamped = 0
        if any(is_busy):
            self._plain = _capture(capture_stream, own, strands, None, replace_fills)
            self._stamped = _capture(
                capture_stream,
                own,
                strands,
                lambda row: stamper(self._stamp_memory + 8 * row, capture_stream),
                replace_fills,
            )

    def launch(self, stream: DeviceStream, *, stamped: bool = False) -> None:
        """Enqueue the whole list; with `stamped`, also write each call's start and end."""
        assert isinstance(stream, CudaStream), f"{stream!r} belongs to another device"
        assert self._is_open, "the graph is used after it was closed"
        handle = handle_of(stream)
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


def _capture(
    stream: int,
    calls: Sequence[CudaKernelCall],
    strands: Sequence[Strand],
    stamp: Callable[[int], None] | None,
    replace_fills: Callable[[int], None],
) -> int:
    """Return a launchable of the calls, with `stamp` called where `stamp_rows` says.

    `replace_fills` has kernels in place of a recorded graph's fills.
    """
    launches: list[Recorded] = []
    stamps = itertools.count()
    noted = 0

    def note(strand: int, call: CudaKernelCall | None, enqueue: Enqueue | None) -> None:
        nonlocal noted
        count = driver.captured_count(stream) - noted
        noted += count
        waits = isinstance(enqueue, WaitingLaunch)
        unwaited = () if call is None or waits else call.unwaited
        written = () if call is None else call.written
        launches.append(Recorded(strand, count, waits, unwaited, written))

    driver.begin_capture(stream)
    try:
        for number, strand in enumerate(strands):
            if stamp and strand.is_stamped:
                stamp(next(stamps))
                note(number, None, None)
            for call in (calls[position] for position in strand.calls):
                for enqueue in call.launches:
                    enqueue(stream)
                    note(number, call, enqueue)
                if stamp and call.launches:
                    stamp(next(stamps))
                    note(number, None, None)
    except BaseException:
        # The capture has to end, whatever happened within.
        driver.abandon_capture(stream)
        raise
    graph = driver.end_capture(stream)
    replace_fills(graph)
    nodes, edges = driver.recorded(graph)
    wanted = wanted_edges(nodes, edges, launches, strands)
    driver.replace_edges(graph, difference(edges, wanted), difference(wanted, edges))
    launchable = driver.instantiate(graph)
    driver.upload_graph(launchable, stream)
    driver.synchronise_stream(stream)
    return launchable


def _own(call: KernelCall) -> CudaKernelCall:
    assert isinstance(call, CudaKernelCall), f"{call!r} belongs to another device"
    return call
