"""An ordered queue of work on the GPU."""

from __future__ import annotations

import threading
import warnings
from collections import deque

import numpy as np

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.event import CudaEvent, event_handle_of
from aegis_pipe.device.cuda.faults import FaultWords
from aegis_pipe.device.cuda.region import address_of
from aegis_pipe.device.cuda.staging import CudaStagingAhead, PinnedStaging
from aegis_pipe.device.protocols import DeviceEvent, DeviceStream, Region, StagingStatistics
from aegis_pipe.errors import AegisError

_FIRST_STAGING_BYTES = 1 << 16
"""Where nobody planned it."""


class CudaStream:
    """A CUDA stream with its staging memory.

    What is copied out is in the staging memory first, and delivered when somebody learns that the
    stream got there: by an event recorded afterwards, or by `synchronise`.
    """

    def __init__(
        self,
        index: int,
        handle: int,
        context: int,
        faults: FaultWords,
        staging_bytes: int | None = None,
        *,
        staging_parts: int = 1,
        partition: int = 0,
        ahead: CudaStagingAhead | None = None,
    ) -> None:
        """`partition` is the context that the stream's kernels run in, if it has its own.

        `ahead`, which all streams share, is where inputs may be staged already.
        """
        self._index = index
        self._handle = handle
        self._context = context
        self._partition = partition
        self._faults = faults
        self._thread = threading.get_ident()
        self._order = 0
        self._ahead = CudaStagingAhead() if ahead is None else ahead
        self._is_planned = staging_bytes is not None
        if staging_bytes is None:
            staging_bytes = staging_parts * _FIRST_STAGING_BYTES
        # Requests use them in turns: what one copied stays while the next one's copies are made.
        self._parts = deque(
            PinnedStaging(staging_bytes // staging_parts) for _ in range(staging_parts)
        )
        self._staging = self._parts[0]

    @property
    def index(self) -> int:
        """Position in the stream pool."""
        return self._index

    def copy_in(self, source: np.ndarray, target: Region) -> None:
        """Enqueue a copy to the device; `source` may change as soon as this returns."""
        assert source.flags.c_contiguous, "host arrays of copies are C-contiguous"
        assert source.nbytes == target.size_bytes, f"{source.nbytes} host bytes go to {target!r}"
        handle, address = handle_of(self), address_of(target)
        if source.nbytes == 0:
            return
        staged = self._ahead.find(source, self, self._order + 1)
        if not staged:
            self._make_room(source.nbytes)
        self._order += 1
        if not staged:
            copy = self._staging.stage(source.nbytes, self._order, None)
            np.copyto(copy.bytes, source.reshape(-1).view(np.uint8))
            staged = copy.address
        driver.enqueue_copy_to_device(address, staged, source.nbytes, handle)

    def copy_out(self, source: Region, target: np.ndarray) -> None:
        """Enqueue a copy to the host; `target` (C-contiguous) is filled when done."""
        assert target.flags.c_contiguous, "host arrays of copies are C-contiguous"
        assert target.nbytes == source.size_bytes, f"{target.nbytes} host bytes from {source!r}"
        handle, address = handle_of(self), address_of(source)
        if target.nbytes == 0:
            return
        self._make_room(target.nbytes)
        self._order += 1
        copy = self._staging.stage(target.nbytes, self._order, target.reshape(-1).view(np.uint8))
        driver.enqueue_copy_to_host(copy.address, address, target.nbytes, handle)

    def begin_request(self) -> None:
        """Have what follows staged in the other part, if there are two; kernels go on anyway."""
        self._parts.rotate()
        self._staging = self._parts[0]

    def advance(self) -> int:
        """Return the position of what has just been enqueued."""
        self._order += 1
        return self._order

    def hold(self) -> None:
        """Do nothing: there is no thread to spare, and the GPU had better start at once."""

    def record(self, event: DeviceEvent) -> None:
        """Enqueue: mark the event when everything before has finished."""
        handle = handle_of(self)
        driver.record_event(_own(event).recorded(self, self._order), handle)

    def wait(self, event: DeviceEvent) -> None:
        """Enqueue: go on only once the event's latest record has been reached."""
        handle = handle_of(self)
        if _own(event).is_recorded:
            driver.wait_event(handle, event_handle_of(_own(event)))

    def synchronise(self) -> None:
        """Block until everything enqueued has finished, then `check`."""
        driver.synchronise_stream(handle_of(self))
        self.reached(self._order)
        # Waiting has raised what broke the context already.
        self._raise_fault(None)

    @property
    def staging(self) -> StagingStatistics:
        """The page-locked memory, and how much of it was needed so far."""
        return StagingStatistics(
            sum(part.capacity_bytes for part in self._parts),
            sum(part.peak_bytes for part in self._parts),
        )

    def check(self, event: DeviceEvent | None = None) -> None:
        """Raise the first error of the work since the last check, and forget it.

        Data that a kernel refused is a KernelError; what broke the context is a DeviceLostError,
        for ever: who saw an event reached was told of that by then.
        """
        if event is None:
            driver.stream_is_idle(handle_of(self))
        self._raise_fault(None if event is None else _own(event).order)

    def reached(self, order: int) -> None:
        """Deliver what was copied out up to a position that the stream is known to have passed."""
        for part in self._parts:
            part.retire(order)
        self._ahead.retire(self, order)

    def close(self) -> None:
        """Finish what is enqueued and release; idempotent."""
        if not self._handle:
            return
        handle = handle_of(self)
        try:
            driver.synchronise_stream(handle)
            self.reached(self._order)
        except AegisError:
            # A broken context finishes nothing, and who used the stream has been told.
            pass
        self._handle = 0
        driver.destroy_stream(handle)
        for part in self._parts:
            part.close()

    def __repr__(self) -> str:
        return f"<CudaStream {self._index}, {'open' if self._handle else 'closed'}>"

    def _raise_fault(self, until: int | None) -> None:
        error = self._faults.take(self._index, until)
        if error is not None:
            raise error

    def _make_room(self, size_bytes: int) -> None:
        if self._staging.has_room(size_bytes):
            return
        # What was enqueued may be through without anybody having looked.
        driver.synchronise_stream(self._handle)
        self.reached(self._order)
        if not self._staging.has_room(size_bytes):
            assert not self._is_planned, f"{size_bytes} bytes are more than {self!r} may stage"
            self._staging.grow(2 * size_bytes)

    def __del__(self) -> None:
        if getattr(self, "_handle", 0):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)


def handle_of(stream: CudaStream) -> int:
    """Return the driver's handle of an open stream, current context made sure of."""
    assert stream._handle, f"{stream!r} is used after it was closed"
    thread = threading.get_ident()
    if thread != stream._thread:
        # The driver keeps a current context per thread.
        driver.make_current(stream._context)
        stream._thread = thread
    return stream._handle


def partition_of(stream: DeviceStream | None) -> int:
    """Return the context that graphs for a stream are captured in; 0 for the device's own."""
    return stream._partition if isinstance(stream, CudaStream) else 0


def _own(event: DeviceEvent) -> CudaEvent:
    assert isinstance(event, CudaEvent), f"{event!r} belongs to another device"
    return event
