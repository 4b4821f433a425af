"""The CPU as a device: a thread or a team a stream, compiled and NumPy kernels, host memory."""

from __future__ import annotations

import difflib
import itertools
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn, Self, TypeVar

import numpy as np

from aegis_pipe.clock import Clock
from aegis_pipe.device.cpu.event import CpuEvent
from aegis_pipe.device.cpu.graph import CpuGraph, CpuKernelCall
from aegis_pipe.device.cpu.kernels import compiled_elementwise_chains, native
from aegis_pipe.device.cpu.kernels.native import NativeCall
from aegis_pipe.device.cpu.kernels.product_endings import ENDINGS
from aegis_pipe.device.cpu.kernels.registry import KERNELS, CpuKernel, KernelTable
from aegis_pipe.device.cpu.machine import BlasThreads, Machine, library_versions
from aegis_pipe.device.cpu.reference import bind_reference, choose_reference
from aegis_pipe.device.cpu.region import ALIGNMENT_BYTES, CpuRegion, host_bytes
from aegis_pipe.device.cpu.stream import CpuStream, Progress, bytes_of
from aegis_pipe.device.cpu.watching import Spans, watched
from aegis_pipe.device.protocols import (
    DeviceCapabilities,
    DeviceDescription,
    DeviceEvent,
    DeviceGraph,
    DeviceReadings,
    DeviceStream,
    Fork,
    KernelCall,
    Region,
    StagingAhead,
)
from aegis_pipe.errors import (
    DeviceUnavailableError,
    PermanentError,
    UnsupportedOperatorError,
)
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorSpec

_UNCHECKED_BYTES_MAX = 2 << 20
"""Asking the machine what is free takes longer than reserving so little."""

_Resource = CpuRegion | CpuStream | CpuEvent | CpuGraph
_AnyResource = TypeVar("_AnyResource", CpuRegion, CpuStream, CpuEvent, CpuGraph)


class CpuContext:
    """An open CPU device.

    `threads` is the number of threads that run one stream's kernels: a team of each stream's own
    for the compiled ones, and for BLAS a limit that holds for the whole process while the context
    is open (see `BlasThreads`). Keep streams times threads at or below
    `description.compute_units`.
    """

    def __init__(self, clock: Clock, *, threads: int = 1, kernels: KernelTable = KERNELS) -> None:
        assert threads > 0, f"threads must be at least 1, not {threads}"
        self._clock = clock
        self._threads = threads
        self._kernels = kernels
        self._machine = Machine()
        self._progress = Progress()
        self._allocation_count = 0
        # Weak, so that what is dropped unclosed warns at once; by number, so that the order of
        # closing is the order of making.
        self._resources: weakref.WeakValueDictionary[int, _Resource]
        self._resources = weakref.WeakValueDictionary()
        self._numbers = itertools.count()
        self._blas: BlasThreads | None = BlasThreads(threads)
        self._description = _describe(self._machine, self._blas)

    @property
    def description(self) -> DeviceDescription:
        """Facts about the device."""
        return self._description

    @property
    def capabilities(self) -> DeviceCapabilities:
        """Copies run on their stream's thread; graphs are replayed by the host."""
        return DeviceCapabilities(
            async_copy=True,
            notifies_progress=True,
            channels_last=native.LIBRARY is not None,
            fused_attention=native.LIBRARY is not None,
            elementwise_chains=compiled_elementwise_chains.STEPS,
            fused_inverted_residuals=native.LIBRARY is not None,
            product_endings=ENDINGS if native.LIBRARY is not None else (),
            steady_at_once=True,
            parallel_writes=True,
            watches_memory=True,
        )

    @property
    def allocation_count(self) -> int:
        """Calls of `allocate` since the context was opened."""
        return self._allocation_count

    @property
    def choices(self) -> None:
        """None: nothing is chosen by measurement."""
        return None

    def allocate(self, size_bytes: int) -> CpuRegion:
        """Reserve zeroed memory; PermanentError if the machine has not that much to give."""
        self._assert_open()
        if size_bytes > _UNCHECKED_BYTES_MAX:
            available = self._machine.available_bytes
            if size_bytes > available:
                raise _out_of_memory(size_bytes, available)
        try:
            region = CpuRegion.reserve(size_bytes)
        except MemoryError as error:
            raise _out_of_memory(size_bytes, self._machine.available_bytes) from error
        self._allocation_count += 1
        return self._own(region)

    def write(self, target: Region, source: np.ndarray | Callable[[np.ndarray], None]) -> None:
        """Copy host bytes into a region, or have `source` write them there; for loading only."""
        if callable(source):
            source(host_bytes(target))
            return
        np.copyto(host_bytes(target), bytes_of(source, target))

    def read(self, source: Region, target: np.ndarray) -> None:
        """Copy a region to the host and wait; for loading and tests only."""
        np.copyto(bytes_of(target, source), host_bytes(source))

    def create_stream(
        self,
        index: int,
        *,
        priority: int = 0,
        staging_bytes: int | None = None,
        staging_parts: int = 1,
        multiprocessors: int | None = None,
    ) -> DeviceStream:
        """Make a stream with a thread of its own; all have the same priority, none stages."""
        self._assert_open()
        if multiprocessors is not None:
            raise PermanentError(
                "a CPU has no multiprocessors to divide among streams",
                context="streams.sm",
                hint='leave `sm` out, or set `kind = "cuda"`',
            )
        return self._own(CpuStream(index, self._clock, self._progress, self._threads))

    def reserve_staging_ahead(self, place_bytes: int, places: int) -> StagingAhead | None:
        """Return None: copies go straight."""
        assert not place_bytes, f"{place_bytes} bytes are to be staged where nothing is"
        return None

    def create_event(self, *, is_announced: bool = True) -> DeviceEvent:
        """Make an event; the progress listener hears of it unless nobody has to act on it."""
        self._assert_open()
        return self._own(CpuEvent(is_announced=is_announced))

    def prepare(self, requests: Sequence[KernelRequest]) -> None:
        """Do nothing: kernels are compiled when this package is built."""

    def select(self, request: KernelRequest) -> KernelChoice:
        """Offer the first kernel that takes the request, else its reference function.

        Raises UnsupportedOperatorError if there is neither.
        """
        for kernel in self._kernels.candidates(request.operator):
            choice = kernel.choose(request)
            if choice is not None:
                choice = self._for_team(kernel, choice)
                # So that binding does not choose again.
                request.notes["chosen"] = (choice, kernel)
                return choice
        reference = choose_reference(request)
        if reference is None:
            raise self._unsupported(request)
        return reference

    def alternatives(self, request: KernelRequest) -> Sequence[KernelChoice]:
        """Offer nothing: what a kernel takes does not depend on its neighbours."""
        return ()

    def prepare_to_bind(self, offers: Sequence[tuple[KernelRequest, KernelChoice]]) -> None:
        """Do nothing: kernels are compiled when this package is built."""

    def bind(
        self,
        request: KernelRequest,
        choice: KernelChoice,
        inputs: Sequence[Region | None],
        outputs: Sequence[Region | None],
        workspace: Region | None,
    ) -> KernelCall:
        """Fix a kernel to its operands; a view's call has nothing to run."""
        self._assert_open()
        reads = _input_arrays(request, choice, inputs)
        writes = [
            _array(region, spec) for region, spec in zip(outputs, request.outputs, strict=True)
        ]
        if choice.view is not None:
            _assert_same_bytes(reads[choice.view[0]], writes[choice.view[1]], request)
            return CpuKernelCall(choice.kernel, request.node, None)
        if choice.is_reference:
            return CpuKernelCall(
                choice.kernel, request.node, bind_reference(request, reads, writes)
            )
        scratch = _workspace(workspace, choice)
        run = self._kernel_of(request, choice).bind(request, choice, reads, writes, scratch)
        if isinstance(run, NativeCall):
            run.weigh(choice.cost)
        return CpuKernelCall(choice.kernel, request.node, run)

    def watch(
        self,
        call: KernelCall,
        memory: Region,
        *,
        guards: Spans,
        written: Spans,
        blame: Callable[[int], NoReturn],
    ) -> KernelCall:
        """Have a call compare memory before and after it, and `blame` what it should not change."""
        assert isinstance(call, CpuKernelCall), f"{call!r} belongs to another device"
        return watched(call, host_bytes(memory), guards=guards, written=written, blame=blame)

    def record(
        self,
        calls: Sequence[KernelCall],
        stream: DeviceStream | None = None,
        forks: Sequence[Fork] = (),
    ) -> DeviceGraph:
        """Make one launchable unit out of bound calls, to run in this order."""
        self._assert_open()
        return self._own(CpuGraph(calls, self._clock))

    def read_sensors(self) -> DeviceReadings | None:
        """Return None: processors have no sensors that every machine shows."""
        return None

    def trace_kernels(self) -> NoReturn:
        """Refuse: stamps of a processor are readings of the host's clock."""
        raise PermanentError(
            "the cpu has no profiler of its own: its stamps are the host's clock, read before and "
            "after each kernel",
            context="cpu",
            hint='only a GPU\'s stamps need to be validated: write `kind = "cuda"`',
        )

    def set_progress_listener(self, listener: Callable[[], None] | None) -> None:
        """Have `listener` called on a stream's thread whenever an event was reached."""
        self._progress.listener = listener

    def close(self) -> None:
        """Finish and close the streams, then everything else; idempotent."""
        if self._blas is None:
            return
        remaining = list(self._resources.values())
        for resource in sorted(remaining, key=lambda one: not isinstance(one, CpuStream)):
            resource.close()
        self._blas.close()
        self._blas = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._blas is None else "open"
        return f"<CpuContext {self._description.model}, {state}>"

    def __del__(self) -> None:
        if getattr(self, "_blas", None) is not None:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def _assert_open(self) -> None:
        assert self._blas is not None, f"{self!r} is used after it was closed"

    def _own(self, resource: _AnyResource) -> _AnyResource:
        self._resources[next(self._numbers)] = resource
        return resource

    def _for_team(self, kernel: CpuKernel, choice: KernelChoice) -> KernelChoice:
        """Give every thread a workspace, if threads share the kernel's work."""
        if not kernel.shares_work or not choice.workspace_bytes or self._threads == 1:
            return choice
        return replace(choice, workspace_bytes=choice.workspace_bytes * self._threads)

    def _kernel_of(self, request: KernelRequest, choice: KernelChoice) -> CpuKernel:
        offer, kernel = request.notes.get("chosen", (None, None))
        if offer is choice and isinstance(kernel, CpuKernel):
            return kernel
        # The choice was taken from elsewhere; choosing is pure.
        for kernel in self._kernels.candidates(request.operator):
            offer = kernel.choose(request)
            if offer is not None and offer.kernel == choice.kernel:
                return kernel
        raise AssertionError(f"kernel {choice.kernel} was not offered for {request.operator}")

    def _unsupported(self, request: KernelRequest) -> UnsupportedOperatorError:
        known = self._kernels.operators()
        where = f"node `{request.node}`"
        if request.operator in known:
            operands = ", ".join("-" if spec is None else str(spec) for spec in request.inputs)
            return UnsupportedOperatorError(
                f"no kernel of the CPU runs `{request.operator}` on ({operands}) "
                "with these attributes",
                context=where,
                hint="convert the model to dtypes and attributes that it runs, such as float32",
            )
        near = difflib.get_close_matches(request.operator, known, n=3)
        alternatives = " or ".join(f"`{name}`" for name in near)
        return UnsupportedOperatorError(
            f"the CPU has no kernel for operator `{request.operator}`",
            context=where,
            hint=f"did you mean {alternatives}?"
            if near
            else "export the model without this operator, or register a kernel for it",
        )


def _describe(machine: Machine, blas: BlasThreads) -> DeviceDescription:
    return DeviceDescription(
        name="cpu",
        model=machine.processor,
        memory_bytes=machine.memory_bytes,
        compute_units=machine.core_count,
        alignment_bytes=ALIGNMENT_BYTES,
        library_versions=library_versions(blas),
    )


def _out_of_memory(size_bytes: int, available_bytes: int) -> PermanentError:
    return PermanentError(
        f"{_mebibytes(size_bytes)} were asked for, but only "
        f"{_mebibytes(available_bytes)} of memory are available",
        context="cpu",
        hint="load fewer or smaller models, free memory, or raise the memory limit of the process",
    )


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.1f} MiB"


def _array(region: Region | None, spec: TensorSpec | None) -> np.ndarray | None:
    """View a region as the tensor it holds; None where the operand is left out."""
    if region is None or spec is None:
        return None
    assert region.size_bytes == spec.size_bytes, f"{spec} is bound to {region!r}"
    return host_bytes(region).view(spec.dtype).reshape(spec.shape)


def _input_arrays(
    request: KernelRequest, choice: KernelChoice, regions: Sequence[Region | None]
) -> list[np.ndarray | None]:
    arrays: list[np.ndarray | None] = []
    for position, (region, spec) in enumerate(zip(regions, request.inputs, strict=True)):
        packed = choice.packed.get(position)
        if packed is None or region is None:
            arrays.append(_array(region, spec))
        else:
            assert region.size_bytes == packed.size_bytes, f"{packed.layout} in {region!r}"
            arrays.append(host_bytes(region))
    return arrays


def _workspace(region: Region | None, choice: KernelChoice) -> np.ndarray | None:
    if region is None:
        assert choice.workspace_bytes == 0, f"{choice.kernel} is bound without its workspace"
        return None
    assert region.size_bytes == choice.workspace_bytes, f"{choice.kernel}'s workspace: {region!r}"
    return host_bytes(region)


def _assert_same_bytes(
    source: np.ndarray | None, target: np.ndarray | None, request: KernelRequest
) -> None:
    assert source is not None, f"node {request.node}: a view of nothing"
    assert target is not None, f"node {request.node}: a view that nobody reads"
    same = source.nbytes == target.nbytes and source.ctypes.data == target.ctypes.data
    assert same, f"node {request.node}: a view whose input and output are different bytes"


def open_context(*, index: int, clock: Clock, threads: int) -> CpuContext:
    """Open the CPU; there is one, so `index` has to be 0."""
    if index != 0:
        raise DeviceUnavailableError(
            f"there is no `cpu:{index}`", hint="all cores are one device: use index 0"
        )
    return CpuContext(clock, threads=threads)
