"""What every device offers: six nouns.

    DeviceContext  opens the device, makes everything below, selects and binds kernels
    DeviceStream   runs what it is given in order
    DeviceEvent    a point in a stream that others can wait for
    DeviceGraph    a recorded list of kernel calls, launched as one
    Region         a piece of device memory; opaque outside its device
    KernelCall     a kernel bound to its operands' regions; takes nothing at run time

A method stands here only if every device can honour it; what some can not is declared in
`DeviceCapabilities`, whose zero value is the least able device. If a new device seems to need a
seventh noun, think again first. No raw handle leaves a device's folder.

Threads: contexts, streams and events may be used by one thread at a time (the loader at load,
the orchestration thread afterwards), but for `DeviceContext.read_sensors`. Device threads call back
only through the progress listener.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, Self, runtime_checkable

import numpy as np

from aegis_pipe.kernel import KernelChoice, KernelRequest

Fork = tuple[tuple[int, ...], ...]
"""A stretch of calls by their positions, in branches that may run side by side: each keeps its
order, all begin when everything before has ended, and what follows when all of them have."""


@dataclass(frozen=True, slots=True)
class DeviceCapabilities:
    """What a device can do beyond the protocols; all False or 0 is the least able."""

    graph_capture: bool = False
    """Recorded graphs are launched by the device itself, not replayed by the host."""
    async_copy: bool = False
    """Copies overlap with kernels of other streams."""
    stream_priorities: int = 0
    """Number of distinct stream priorities."""
    sm_partitions: int = 0
    """Number of multiprocessors that can be divided among streams."""
    channels_last: bool = False
    """Kernels for images are faster with channels in the last dimension."""
    fused_attention: bool = False
    """Attention of several heads is faster as one kernel than spelled out."""
    elementwise_chains: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Operators that one kernel runs after one another, and on which dtypes; empty: it can not."""
    fused_inverted_residuals: bool = False
    """Inverted residual blocks are faster as one kernel than as three convolutions."""
    quantised_residuals: bool = False
    """A convolution of bytes adds a residual on its way out."""
    product_endings: tuple[str, ...] = ()
    """Activations that a matrix product takes into its own kernel: `Gelu`, `FastGelu` and so on."""
    half_precision: bool = False
    """Kernels take float16 and bfloat16 at more than the speed of float32."""
    planar_convolutions: bool = False
    """A first convolution in half precision reads an image's planes as they come."""
    tf32: bool = False
    """Products of float32 round their operands to ten bits of mantissa if that is allowed."""
    steady_at_once: bool = False
    """A first launch takes as long as any other: it imports, compiles and faults in nothing."""
    watches_memory: bool = False
    """`watch` finds what kernels write outside of their places."""
    parallel_writes: bool = False
    """`write` may be called from several threads at once, for regions that do not overlap."""
    parallel_branches: bool = False
    """Recorded graphs run the branches of their forks side by side, and may be quicker for it."""
    notifies_progress: bool = False
    """Calls the progress listener when events complete; otherwise events have to be polled."""


@dataclass(frozen=True, slots=True)
class DeviceDescription:
    """Plain facts about an open device, for `doctor`, `plan` and traces."""

    name: str
    """`cpu`, `cuda:0`."""
    model: str
    """What the maker calls it."""
    memory_bytes: int
    compute_units: int
    alignment_bytes: int
    """Alignment of every planned tensor."""
    library_versions: tuple[tuple[str, str], ...] = ()
    staging_alignment_bytes: int = 0
    """Copies pass through host memory of their stream, each in a multiple of this; 0: straight."""
    staged_ahead_min_bytes: int = 0
    """Inputs of a request that take less are not worth being staged ahead."""
    event_step_ns: int = 0
    """How coarse the times of events are, and so how far they may be from stamps taken beside."""

    def staged_bytes(self, size_bytes: int) -> int:
        """Return what a copy of so many bytes takes of its stream's staging memory."""
        unit = self.staging_alignment_bytes
        return -(-size_bytes // unit) * unit if unit else 0


@dataclass(frozen=True, slots=True)
class DeviceReadings:
    """What a device's own sensors say at a moment."""

    temperature_celsius: int | None
    """None if it can not be read."""
    clocks_hertz: tuple[tuple[str, int], ...]
    """Present frequency by what runs at it (`sm`, `memory`); without those that can not be read."""


@dataclass(frozen=True, slots=True)
class StagingStatistics:
    """Host memory that a stream's copies pass through; all 0 where they go straight."""

    reserved_bytes: int = 0
    peak_bytes: int = 0
    """The most that was in use at once."""


@runtime_checkable
class Region(Protocol):
    """A piece of device memory; a view keeps its owner alive but does not own it."""

    @property
    def size_bytes(self) -> int:
        """Length in bytes."""
        ...

    def view(self, offset_bytes: int, size_bytes: int) -> Region:
        """Return a part of this region; out of bounds asserts."""
        ...

    def close(self) -> None:
        """Give the memory back, if this region owns it; idempotent."""
        ...


@runtime_checkable
class DeviceEvent(Protocol):
    """A point in a stream, reusable: each record forgets the one before."""

    def is_done(self) -> bool:
        """Return whether everything before the last record has finished; True if never recorded."""
        ...

    def synchronise(self) -> None:
        """Block until done."""
        ...

    def completed_ns(self) -> int:
        """Return when it was reached, on the host's clock; only once `is_done`."""
        ...

    def close(self) -> None:
        """Release; idempotent."""
        ...


class StagedInputs(Protocol):
    """Arrays whose bytes a `StagingAhead` has; a place of its memory."""


class StagingAhead(Protocol):
    """Host memory for the inputs of requests that wait, so that launching one copies nothing.

    Any thread stages and gives back; what is served belongs to the thread that launches.
    """

    def stage(self, sources: Sequence[np.ndarray]) -> StagedInputs | None:
        """Copy these arrays' bytes into a place of their own.

        None if that is not worth it, no place is free just now, or they are larger than planned:
        they are then copied when it is their turn.
        """
        ...

    def serve(self, staged: Sequence[StagedInputs]) -> None:
        """Have any stream's `copy_in` of these arrays, and of no others, take the bytes from here.

        Until the next call, which may have none.
        """
        ...

    def give_back(self, staged: StagedInputs) -> None:
        """Have the place back, which is free once copies that were enqueued from it are over.

        By one thread at a time; idempotent.
        """
        ...


@runtime_checkable
class DeviceStream(Protocol):
    """An ordered queue of work on the device. Errors of the work surface at `check`."""

    @property
    def index(self) -> int:
        """Position in the stream pool."""
        ...

    def copy_in(self, source: np.ndarray, target: Region) -> None:
        """Enqueue a copy to the device; `source` (C-contiguous) must stay unchanged until done.

        An array and a region that are copied have the same number of bytes, here and below.
        """
        ...

    def copy_out(self, source: Region, target: np.ndarray) -> None:
        """Enqueue a copy to the host; `target` (C-contiguous) is filled when done."""
        ...

    def begin_request(self) -> None:
        """Enqueue: what follows is of another request than what came before.

        An error before it stops nothing of what follows, and copies of both may be under way at
        once where the stream has staging memory in two parts. At most two requests are.
        """
        ...

    def hold(self) -> None:
        """Announce that `synchronise` follows: what is enqueued until then need not start sooner.

        For whoever runs something and waits for it; a device may spare a change of threads.
        """
        ...

    def record(self, event: DeviceEvent) -> None:
        """Enqueue: mark the event when everything before has finished."""
        ...

    def wait(self, event: DeviceEvent) -> None:
        """Enqueue: go on only once the event's latest record has been reached.

        The latest by now; recording it anew later changes nothing. Never recorded: goes on.
        """
        ...

    def synchronise(self) -> None:
        """Block until everything enqueued has finished, then `check`."""
        ...

    @property
    def staging(self) -> StagingStatistics:
        """The host memory that copies pass through, and how much of it was needed so far."""
        ...

    def check(self, event: DeviceEvent | None = None) -> None:
        """Raise the first error of the work since the last check (AegisError), and forget it.

        With an `event` of this stream that is done: of what was enqueued before its latest record;
        what the next request's work did is kept for a later check, as long as it launched other
        graphs. After an error the stream skips what else was enqueued for the same request until it
        is checked, even if its turn comes later; waits are kept and events still marked, so that
        nobody waits for ever.
        """
        ...

    def close(self) -> None:
        """Finish what is enqueued and release; idempotent."""
        ...


@runtime_checkable
class KernelCall(Protocol):
    """A kernel bound to memory; only its own device knows how to run it."""

    @property
    def kernel(self) -> str:
        """The chosen kernel's name."""
        ...


@runtime_checkable
class DeviceGraph(Protocol):
    """A recorded list of kernel calls at fixed addresses; launching it allocates nothing."""

    def launch(self, stream: DeviceStream, *, stamped: bool = False) -> None:
        """Enqueue the whole list; with `stamped`, also write each call's start and end."""
        ...

    def kernel_times(self) -> bytes:
        """Copy the stamps of the last finished stamped launch.

        int64[calls, 2] in native order: start and end in nanoseconds on the host's clock, one
        row per recorded call. Empty before the first.
        """
        ...

    def close(self) -> None:
        """Release; idempotent."""
        ...


class KernelTracer(Protocol):
    """The device's own profiler, to hold stamps against; it watches while it is entered.

    What runs meanwhile is slower; for one thread, and one tracer at a time.
    """

    def take(self) -> list[list[int]]:
        """Wait for the device; return the kernels that ran since, between each two stamps.

        One row a call that ran something, in order: the durations of its kernels in nanoseconds.
        Stamped launches only, and one since the last `take`.
        """
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


class DeviceChoices(Protocol):
    """What was measured once on this model of device, and is kept from process to process."""

    def remembered(self, what: str) -> Mapping[str, Any] | None:
        """Return what was chosen before for the same `what`, if anything."""
        ...

    def remember(self, what: str, choice: Mapping[str, Any]) -> None:
        """Keep a choice, of values that JSON knows."""
        ...


class DeviceContext(Protocol):
    """An open device. Owns what it makes: closing it closes everything, in order."""

    @property
    def description(self) -> DeviceDescription:
        """Facts about the device."""
        ...

    @property
    def capabilities(self) -> DeviceCapabilities:
        """What it can do beyond the protocols."""
        ...

    @property
    def allocation_count(self) -> int:
        """Device allocations since the context was opened; must not move after start-up."""
        ...

    @property
    def choices(self) -> DeviceChoices | None:
        """What was chosen by measurement; None if the device measures nothing."""
        ...

    def allocate(self, size_bytes: int) -> Region:
        """Reserve zeroed device memory, aligned to `description.alignment_bytes`.

        Raises a PermanentError with the sizes if the device has not that much.
        """
        ...

    def write(self, target: Region, source: np.ndarray | Callable[[np.ndarray], None]) -> None:
        """Copy host bytes into a region and wait; for loading only.

        `source` may also be who writes them: it is given uint8[size_bytes], and fills it.
        """
        ...

    def read(self, source: Region, target: np.ndarray) -> None:
        """Copy a region to the host and wait; for loading and tests only."""
        ...

    def create_stream(
        self,
        index: int,
        *,
        priority: int = 0,
        staging_bytes: int | None = None,
        staging_parts: int = 1,
        multiprocessors: int | None = None,
    ) -> DeviceStream:
        """Make a stream; higher `priority` is more urgent where the device has priorities.

        `staging_bytes` is the planned size of the host memory that its copies pass through, which
        is reserved now and never grows: copies under way that need more of it (see
        `DeviceDescription.staged_bytes`) assert. None, for loading and tools: it grows as needed.
        It is divided into `staging_parts` equal parts (1 or 2), which requests use in turns.
        With `multiprocessors` the stream has at least as many for itself, and no others. Raises
        PermanentError if the device has not that many left, or can not be divided.
        """
        ...

    def reserve_staging_ahead(self, place_bytes: int, places: int) -> StagingAhead | None:
        """Reserve host memory, as planned, in which the inputs of requests that wait are staged.

        Before the first stream; again, for other sizes, once all streams are closed. None where
        `place_bytes` is 0, as it is where copies go straight.
        """
        ...

    def create_event(self, *, is_announced: bool = True) -> DeviceEvent:
        """Make an event; the progress listener hears of it unless nobody has to act on it."""
        ...

    def prepare(self, requests: Sequence[KernelRequest]) -> None:
        """Begin what choosing kernels for these will wait for, such as compiling candidates.

        Returns at once, and chooses nothing: what `select` offers does not depend on it.
        """
        ...

    def select(self, request: KernelRequest) -> KernelChoice:
        """Offer a kernel; UnsupportedOperatorError names node, operator and alternatives."""
        ...

    def alternatives(self, request: KernelRequest) -> Sequence[KernelChoice]:
        """Offer what may be faster within a model than what `select` offers; often nothing.

        The same offers in the same order every time, told apart by kernel and variant. Measuring is
        for who asks.
        """
        ...

    def prepare_to_bind(self, offers: Sequence[tuple[KernelRequest, KernelChoice]]) -> None:
        """Begin what binding these will wait for, such as compiling them; returns at once."""
        ...

    def bind(
        self,
        request: KernelRequest,
        choice: KernelChoice,
        inputs: Sequence[Region | None],
        outputs: Sequence[Region | None],
        workspace: Region | None,
    ) -> KernelCall:
        """Fix a kernel to its operands; a packed constant's region holds the packed bytes.

        Regions have exactly the operands' sizes. A view is bound like any other choice, to input
        and output regions of the same bytes; its call runs nothing.
        """
        ...

    def watch(
        self,
        call: KernelCall,
        memory: Region,
        *,
        guards: Sequence[tuple[int, int]],
        written: Sequence[tuple[int, int]],
        blame: Callable[[int], NoReturn],
    ) -> KernelCall:
        """Return a call that runs this one and finds what it changes in `memory` but `written`.

        Spans are half-open, in bytes of `memory`. `guards` are filled first; `blame` raises for the
        first byte that changed. Needs the capability `watches_memory`; slow.
        """
        ...

    def record(
        self,
        calls: Sequence[KernelCall],
        stream: DeviceStream | None = None,
        forks: Sequence[Fork] = (),
    ) -> DeviceGraph:
        """Make one launchable unit out of bound calls, to run in this order.

        Calls of views cost nothing; each keeps its row in `kernel_times`. What runs on a stream
        with multiprocessors of its own has to be recorded for that `stream`. Branches of `forks`,
        which are in ascending order, write to nothing that another one reads or writes; without
        the capability `parallel_branches` they run like everything else.
        """
        ...

    def read_sensors(self) -> DeviceReadings | None:
        """Ask the device's sensors; None if it has none, they can not be reached, or it is closed.

        For any thread, also while others use the context; may take milliseconds.
        """
        ...

    def trace_kernels(self) -> KernelTracer:
        """Return the device's own profiler, not yet watching.

        Raises PermanentError if it has none, or it can not be reached.
        """
        ...

    def set_progress_listener(self, listener: Callable[[], None] | None) -> None:
        """Have `listener` called from device threads whenever an announced event was reached.

        By then the event `is_done`. Several threads may call at once; the listener is quick and
        does not raise. A device without `notifies_progress` never calls it.
        """
        ...

    def close(self) -> None:
        """Close streams, events, graphs and memory; idempotent."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
