"""Bound kernels, recorded as one flat list and launched as one entry of a stream's queue."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterator, Sequence
from operator import length_hint
from typing import NoReturn

import numpy as np

from aegis_pipe.clock import Clock
from aegis_pipe.device.cpu.kernels import native
from aegis_pipe.device.cpu.kernels.native import NativeBatch, NativeCall
from aegis_pipe.device.cpu.stream import CpuStream
from aegis_pipe.device.protocols import DeviceStream, KernelCall
from aegis_pipe.errors import AegisError, KernelError
from aegis_pipe.record import record


@record()
class CpuKernelCall:
    """A kernel bound to its operands; `run` is None for a view, which has nothing to do."""

    kernel: str
    node: str
    run: Callable[[], None] | None


class CpuGraph:
    """A recorded list of calls; launching it allocates one queue entry and nothing else."""

    __slots__ = ("__weakref__", "_program")

    def __init__(self, calls: Sequence[KernelCall], clock: Clock) -> None:
        self._program: _Program | None = _Program([_own(call) for call in calls], clock)

    def launch(self, stream: DeviceStream, *, stamped: bool = False) -> None:
        """Enqueue the whole list; with `stamped`, also write each call's start and end."""
        assert isinstance(stream, CpuStream), f"{stream!r} belongs to another device"
        program = self._open_program()
        stream.enqueue(program.run_stamped if stamped else program.run)

    def kernel_times(self) -> bytes:
        """Copy the stamps of the last finished stamped launch: int64[calls, 2], nanoseconds."""
        return self._open_program().finished_stamps.tobytes()

    def close(self) -> None:
        """Let go of the calls; idempotent. Launches already enqueued still run."""
        self._program = None

    def _open_program(self) -> _Program:
        assert self._program is not None, "the graph is used after it was closed"
        return self._program


@record()
class _Stretch:
    """Consecutive calls that run as one: a single one, or any number of compiled kernels."""

    first: CpuKernelCall
    run: Callable[[], None]
    batch: NativeBatch | None
    """The compiled kernels, if that is what they are."""


class _Program:
    """What a launch runs."""

    def __init__(self, calls: Sequence[CpuKernelCall], clock: Clock) -> None:
        running = [call for call in calls if call.run is not None]
        self._stretches = _stretches(running)
        self._steps = tuple([stretch.run for stretch in self._stretches])
        self._is_compiled = all(stretch.batch is not None for stretch in self._stretches)
        # Views have a row of stamps like any other call, so rows match what was recorded.
        same = len(running) == len(calls)
        self._stamped_stretches = self._stretches if same else _stretches(calls)
        self._now_ns = clock.now_ns
        self.finished_stamps = array("q")
        # Two buffers, so that the finished one can be read while the next launch runs.
        self._stamps, self._spare_stamps = (array("q", bytes(16 * len(calls))) for _ in range(2))

    def run(self) -> None:
        """Call everything in order."""
        if self._is_compiled:
            self._run()
            return
        # Its stream's thread has set this, but it may run on the one that waits for it.
        with np.errstate(all="ignore"):
            self._run()

    def _run(self) -> None:
        steps = iter(self._steps)
        try:
            for step in steps:
                step()
        except Exception as error:
            _fail(error, _current(self._stretches, steps))

    def run_stamped(self) -> None:
        """Call everything in order; a call's end is the next one's start."""
        with np.errstate(all="ignore"):
            self._run_stamped()

    def _run_stamped(self) -> None:
        stretches = iter(self._stamped_stretches)
        now_ns, stamps, position = self._now_ns, self._stamps, 0
        address, _ = stamps.buffer_info()
        try:
            now = now_ns()
            for stretch in stretches:
                if stretch.batch is None:
                    stamps[position] = now
                    stretch.run()
                    stamps[position + 1] = now = now_ns()
                    position += 2
                else:
                    stretch.batch.run_stamped(address + position * stamps.itemsize)
                    position += 2 * len(stretch.batch)
                    now = stamps[position - 1]
        except Exception as error:
            _fail(error, _current(self._stamped_stretches, stretches))
        self.finished_stamps, self._stamps, self._spare_stamps = stamps, self._spare_stamps, stamps


def _stretches(calls: Sequence[CpuKernelCall]) -> tuple[_Stretch, ...]:
    """Group neighbours that the compiled library can run in one go; views go along."""
    stretches = []
    for is_native, group in itertools.groupby(calls, _runs_natively):
        together = list(group)
        runs = [call.run if isinstance(call.run, NativeCall) else None for call in together]
        if is_native and any(runs) and native.LIBRARY is not None:
            batch = NativeBatch(native.LIBRARY, runs)
            stretches.append(_Stretch(together[0], batch, batch))
        else:
            stretches += [_Stretch(call, call.run or _nothing, None) for call in together]
    return tuple(stretches)


def _runs_natively(call: CpuKernelCall) -> bool:
    return call.run is None or isinstance(call.run, NativeCall)


def _nothing() -> None:
    """Stand in for a view."""


def _current(stretches: Sequence[_Stretch], steps: Iterator[object]) -> CpuKernelCall:
    """Return the call whose step was taken last.

    Asking the iterator what is left keeps a counter out of the loop that every request runs.
    Of a stretch's compiled kernels none raises, and what one noted names its node: the first is the
    only one that can have failed without saying so.
    """
    return stretches[len(stretches) - length_hint(steps) - 1].first


def _fail(error: Exception, call: CpuKernelCall) -> NoReturn:
    """Raise what a call raised, as an AegisError that names the call."""
    where = f"node `{call.node}`, kernel `{call.kernel}`"
    hint = "check the values of the node's inputs; if they are valid, report this as a bug"
    if isinstance(error, AegisError):
        error.context = error.context or where
        error.hint = error.hint or hint
        raise error
    raise KernelError(
        f"the kernel failed with {type(error).__name__}: {error}",
        context=where,
        hint=hint,
    ) from error


def _own(call: KernelCall) -> CpuKernelCall:
    assert isinstance(call, CpuKernelCall), f"{call!r} belongs to another device"
    return call
