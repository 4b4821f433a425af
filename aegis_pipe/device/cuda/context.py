"""A GPU as a device: streams, events, planned memory, kernels of our own and of its libraries."""

from __future__ import annotations

import difflib
import itertools
import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn, Self, TypeVar

import numpy as np

from aegis_pipe.clock import Clock
from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.compiler import DiskCache, KernelCompiler, cache_folder
from aegis_pipe.device.cuda.cublaslt import CublasLt
from aegis_pipe.device.cuda.cudnn_convolution import Cudnn
from aegis_pipe.device.cuda.early_starts import Span
from aegis_pipe.device.cuda.event import EVENT_STEP_NS, CudaEvent
from aegis_pipe.device.cuda.faults import FaultWords
from aegis_pipe.device.cuda.fills import Fills
from aegis_pipe.device.cuda.graph import CudaGraph, CudaKernelCall
from aegis_pipe.device.cuda.kernels import (
    KERNELS,
    byte_products,
    elementwise_chains,
    planar_convolutions,
)
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Machine
from aegis_pipe.device.cuda.kernels.source import EARLY_CAPABILITY
from aegis_pipe.device.cuda.region import ALIGNMENT_BYTES, CudaRegion, address_of
from aegis_pipe.device.cuda.sensors import Sensors
from aegis_pipe.device.cuda.staging import (
    AHEAD_MIN_BYTES,
    STAGING_ALIGNMENT_BYTES,
    CudaStagingAhead,
)
from aegis_pipe.device.cuda.stamps import Stamps
from aegis_pipe.device.cuda.stream import CudaStream, handle_of, partition_of
from aegis_pipe.device.cuda.timeline import Timeline
from aegis_pipe.device.cuda.tracing import KernelTracer
from aegis_pipe.device.cuda.tuning import Choices, Tuner
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
from aegis_pipe.errors import DeviceLostError, PermanentError, UnsupportedOperatorError
from aegis_pipe.kernel import KernelChoice, KernelRequest

_Resource = CudaRegion | CudaStream | CudaEvent | CudaGraph
_Library = TypeVar("_Library", CublasLt, Cudnn)
_AnyResource = TypeVar("_AnyResource", CudaRegion, CudaStream, CudaEvent, CudaGraph)


class CudaContext:
    """An open GPU. Made by `open_context`, which has checked that there is one."""

    def __init__(self, index: int, clock: Clock) -> None:
        self._device = driver.device(index)
        self._name = f"cuda:{index}"
        self._handle = driver.retain_context(self._device)
        try:
            self._open(clock)
        except BaseException:
            # All that was made so far is in it.
            driver.release_context(self._device)
            raise
        self._is_open = True

    def _open(self, clock: Clock) -> None:
        self._allocation_count = 0
        # Weak, so that what is dropped unclosed warns at once; by number, so that the order of
        # closing is the order of making.
        self._resources: weakref.WeakValueDictionary[int, _Resource]
        self._resources = weakref.WeakValueDictionary()
        self._numbers = itertools.count()
        architecture = driver.architecture(self._device)
        cache, model = DiskCache(cache_folder()), driver.device_name(self._device)
        # With what only this generation has (`a`): warpgroups multiply.
        own = "a" if architecture == 90 else ""
        compiler = KernelCompiler(f"sm_{architecture}{own}", cache)
        self._fills = Fills(compiler, may_be_early=architecture >= EARLY_CAPABILITY)
        l2_bytes = driver.attribute(self._device, "L2_CACHE_SIZE")
        self._machine = Machine(
            compiler=compiler,
            cache=cache,
            model=model,
            capability=architecture,
            multiprocessors=driver.attribute(self._device, "MULTIPROCESSOR_COUNT"),
            shared_bytes_max=driver.attribute(self._device, "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
            cublaslt=self._started("cuBLASLt", CublasLt),
            cudnn=self._started("cuDNN", partial(Cudnn, self._handle)),
            tuner=Tuner(cache, model, l2_bytes, self._fills.replace),
        )
        self._stamps = Stamps(compiler)
        self._faults = FaultWords()
        self._staging_ahead = CudaStagingAhead()
        self._sensors = Sensors(self._name, driver.pci_address(self._device))
        self._capture_stream = driver.create_stream(0)
        self._timeline = Timeline(clock, self._stamps)
        self._priorities = driver.stream_priority_range()
        self._multiprocessors: driver.Multiprocessors | None = None
        self._partitions: dict[tuple[int, int], driver.Partition] = {}
        self._description = self._describe()
        assert self._machine.tuner is not None
        self._choices = Choices(self._machine.tuner, repr(self._description.library_versions))

    def _started(self, library: str, start: Callable[[], _Library]) -> _Library:
        """Start a library; each of them has errors of its own."""
        try:
            return start()
        except Exception as error:
            raise PermanentError(
                f"{library} does not start: {error}",
                context=self._name,
                hint="see whether the device has memory left and who uses it (nvidia-smi), and "
                'whether the packages of the extra are those it asks for: pip install "aegis-pipe'
                '[cuda]"',
            ) from error

    @property
    def description(self) -> DeviceDescription:
        """Facts about the device."""
        return self._description

    @property
    def capabilities(self) -> DeviceCapabilities:
        """Graphs are launched by the device, copies overlap, completion is polled."""
        least, greatest = self._priorities
        return DeviceCapabilities(
            graph_capture=True,
            async_copy=True,
            stream_priorities=least - greatest + 1,
            channels_last=True,
            fused_attention=True,
            elementwise_chains=elementwise_chains.STEPS,
            product_endings=("FastGelu", "Gelu"),
            quantised_residuals=self._machine.capability >= byte_products.CAPABILITY_MIN,
            half_precision=True,
            planar_convolutions=self._machine.capability >= planar_convolutions.CAPABILITY_MIN,
            sm_partitions=self._machine.multiprocessors,
            tf32=True,
            parallel_branches=True,
        )

    @property
    def allocation_count(self) -> int:
        """Calls of `allocate` since the context was opened."""
        return self._allocation_count

    @property
    def choices(self) -> Choices:
        """Those that are kept on disk, by GPU and versions of its libraries."""
        return self._choices

    def allocate(self, size_bytes: int) -> CudaRegion:
        """Reserve zeroed memory; PermanentError if the device has not that much to give."""
        self._assert_open()
        region = CudaRegion.reserve(size_bytes, self._capture_stream)
        self._allocation_count += 1
        return self._own(region)

    def write(self, target: Region, source: np.ndarray | Callable[[np.ndarray], None]) -> None:
        """Copy host bytes, or those that `source` writes, into a region and wait; at load only."""
        if callable(source):
            content = np.empty(target.size_bytes, np.uint8)
            source(content)
            source = content
        assert source.flags.c_contiguous, "host arrays of copies are C-contiguous"
        assert source.nbytes == target.size_bytes, f"{source.nbytes} host bytes go to {target!r}"
        address = address_of(target)
        if source.nbytes:
            driver.copy_to_device(address, source.ctypes.data, source.nbytes)

    def read(self, source: Region, target: np.ndarray) -> None:
        """Copy a region to the host and wait; for loading and tests only."""
        assert target.flags.c_contiguous, "host arrays of copies are C-contiguous"
        assert target.nbytes == source.size_bytes, f"{target.nbytes} host bytes from {source!r}"
        address = address_of(source)
        if target.nbytes:
            driver.copy_to_host(target.ctypes.data, address, target.nbytes)

    def create_stream(
        self,
        index: int,
        *,
        priority: int = 0,
        staging_bytes: int | None = None,
        staging_parts: int = 1,
        multiprocessors: int | None = None,
    ) -> DeviceStream:
        """Make a stream; priorities beyond what the device has count as its highest."""
        self._assert_open()
        least, greatest = self._priorities
        level = max(greatest, least - priority)
        if multiprocessors is None:
            handle = driver.create_stream(level)
            own = 0
        else:
            partition = self._partition(index, multiprocessors)
            handle = driver.create_partition_stream(partition.handle, level)
            own = partition.context
        return self._own(
            CudaStream(
                index,
                handle,
                self._handle,
                self._faults,
                staging_bytes,
                staging_parts=staging_parts,
                partition=own,
                ahead=self._staging_ahead,
            )
        )

    def reserve_staging_ahead(self, place_bytes: int, places: int) -> StagingAhead | None:
        """Reserve page-locked memory for it; there is one, which this gives other places."""
        self._assert_open()
        self._staging_ahead.reserve(place_bytes, places)
        return self._staging_ahead if place_bytes else None

    def create_event(self, *, is_announced: bool = True) -> DeviceEvent:
        """Make an event; none is announced here, all are polled."""
        self._assert_open()
        return self._own(CudaEvent(self._timeline))

    def prepare(self, requests: Sequence[KernelRequest]) -> None:
        """Begin to compile the candidates that choosing will measure, on the machine's cores."""
        asked: dict[CudaKernel, list[KernelRequest]] = {}
        for request in requests:
            for kernel in KERNELS.candidates(request.operator):
                asked.setdefault(kernel, []).append(request)
        for kernel, its_requests in asked.items():
            if kernel.prepare is not None:
                kernel.prepare(its_requests, self._machine)

    def select(self, request: KernelRequest) -> KernelChoice:
        """Offer the first kernel that takes the request.

        Raises UnsupportedOperatorError if there is none: reference functions run on the host, and
        nothing moves there unless the manifest says so.
        """
        for kernel in KERNELS.candidates(request.operator):
            choice = kernel.choose(request, self._machine)
            if choice is not None:
                return choice
        raise self._unsupported(request)

    def alternatives(self, request: KernelRequest) -> Sequence[KernelChoice]:
        """Offer what kernels have whose worth depends on their neighbours."""
        return [
            choice
            for kernel in KERNELS.candidates(request.operator)
            if kernel.alternatives is not None
            for choice in kernel.alternatives(request, self._machine)
        ]

    def prepare_to_bind(self, offers: Sequence[tuple[KernelRequest, KernelChoice]]) -> None:
        """Begin to compile what will be bound, on the machine's cores."""
        sources: list[str] = []
        for request, choice in offers:
            kernel = self._kernel_of(request, choice)
            if kernel.sources is not None:
                sources += kernel.sources(request, choice, self._machine)
        self._machine.compiler.prepare(sources)

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
        if choice.view is not None:
            return CudaKernelCall(choice.kernel, request.node, ())
        binding = Binding(
            request=request,
            choice=choice,
            machine=self._machine,
            inputs=tuple(None if region is None else address_of(region) for region in inputs),
            outputs=tuple(None if region is None else address_of(region) for region in outputs),
            workspace=0 if workspace is None else address_of(workspace),
            fault_words=self._faults,
        )
        launches = self._kernel_of(request, choice).bind(binding)
        return CudaKernelCall(
            choice.kernel,
            request.node,
            tuple(launches),
            tuple(binding.faults),
            tuple(_span(address, (*inputs, workspace)) for address in binding.unwaited),
            tuple(_span(address_of(each), [each]) for each in (*outputs, workspace) if each),
        )

    def watch(
        self,
        call: KernelCall,
        memory: Region,
        *,
        guards: Sequence[tuple[int, int]],
        written: Sequence[tuple[int, int]],
        blame: Callable[[int], NoReturn],
    ) -> KernelCall:
        """Refuse: captured graphs have nobody to look between kernels."""
        raise PermanentError(
            "kernels can not be watched on CUDA",
            context=f"kernel `{call.kernel}`",
            hint='write `kind = "cpu"`, or take `memory_debug` out',
        )

    def record(
        self,
        calls: Sequence[KernelCall],
        stream: DeviceStream | None = None,
        forks: Sequence[Fork] = (),
    ) -> DeviceGraph:
        """Capture bound calls as one CUDA graph, to run in this order but for forks."""
        self._assert_open()
        # A graph keeps to the multiprocessors of the stream that it was captured on.
        partition = partition_of(stream)
        capture_stream = self._capture_stream
        if partition:
            assert isinstance(stream, CudaStream)
            capture_stream = handle_of(stream)
            self._enter(partition)
        try:
            graph = CudaGraph(
                calls,
                capture_stream,
                self._stamps.enqueue,
                self._fills.replace,
                self._timeline,
                self._faults,
                forks,
            )
        finally:
            if partition:
                self._enter(self._handle)
        return self._own(graph)

    def read_sensors(self) -> DeviceReadings | None:
        """Ask NVML."""
        return self._sensors.read()

    def trace_kernels(self) -> KernelTracer:
        """Return CUPTI; PermanentError where its package is missing."""
        return KernelTracer(self._name)

    def set_progress_listener(self, listener: Callable[[], None] | None) -> None:
        """Do nothing: this device's events are polled."""

    def close(self) -> None:
        """Finish and close the streams, then everything else; idempotent."""
        if not self._is_open:
            return
        self._is_open = False
        self._sensors.close()
        try:
            driver.make_current(self._handle)
            driver.synchronise_context()
            is_lost = False
        except DeviceLostError:
            # Whoever used it was told.
            is_lost = True
        remaining = list(self._resources.values())
        for resource in sorted(remaining, key=lambda one: not isinstance(one, CudaStream)):
            resource.close()
        self._timeline.close()
        self._stamps.close()
        self._faults.close()
        self._staging_ahead.close()
        try:
            self._machine.close()
        except Exception:
            # Libraries have errors of their own for a context that is broken.
            if not is_lost:
                raise
        driver.destroy_stream(self._capture_stream)
        while self._partitions:
            driver.destroy_partition(self._partitions.popitem()[1].handle)
        driver.release_context(self._device)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "open" if self._is_open else "closed"
        return f"<CudaContext {self._name}, {self._description.model}, {state}>"

    def __del__(self) -> None:
        if getattr(self, "_is_open", False):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def _assert_open(self) -> None:
        assert self._is_open, f"{self!r} is used after it was closed"

    def _partition(self, index: int, multiprocessors: int) -> driver.Partition:
        """Divide off multiprocessors for a stream; one that is made anew has the same again."""
        if (index, multiprocessors) in self._partitions:
            return self._partitions[index, multiprocessors]
        if self._multiprocessors is None:
            self._multiprocessors = driver.Multiprocessors(self._device)
        left = self._multiprocessors.left
        if multiprocessors > left:
            raise PermanentError(
                f"stream {index} is to have {multiprocessors} multiprocessors, but of "
                f"{self._machine.multiprocessors} only {left} are left; "
                "parts are rounded up to what the GPU can divide",
                context="streams.sm",
                hint="give the streams fewer",
            )
        partition = self._multiprocessors.partition(multiprocessors)
        self._partitions[index, multiprocessors] = partition
        return partition

    def _enter(self, context: int) -> None:
        """Make a context current, with a handle of cuDNN that belongs to it."""
        driver.make_current(context)
        assert self._machine.cudnn is not None
        self._machine.cudnn.enter(context)

    def _own(self, resource: _AnyResource) -> _AnyResource:
        self._resources[next(self._numbers)] = resource
        return resource

    def _kernel_of(self, request: KernelRequest, choice: KernelChoice) -> CudaKernel:
        # Asked again instead of remembered: choosing is pure, and a table of choices would grow.
        for kernel in KERNELS.candidates(request.operator):
            if choice.variant:
                other = kernel.alternatives
                offers = () if other is None else other(request, self._machine)
            else:
                offer = kernel.choose(request, self._machine)
                offers = () if offer is None else (offer,)
            if any(offer.kernel == choice.kernel for offer in offers):
                return kernel
        raise AssertionError(f"kernel {choice.kernel} was not offered for {request.operator}")

    def _describe(self) -> DeviceDescription:
        assert self._machine.cublaslt is not None
        assert self._machine.cudnn is not None
        version = driver.driver_version()
        return DeviceDescription(
            name=self._name,
            model=self._machine.model,
            memory_bytes=driver.device_memory_bytes(self._device),
            compute_units=self._machine.multiprocessors,
            alignment_bytes=ALIGNMENT_BYTES,
            staging_alignment_bytes=STAGING_ALIGNMENT_BYTES,
            staged_ahead_min_bytes=AHEAD_MIN_BYTES,
            event_step_ns=EVENT_STEP_NS,
            library_versions=(
                ("cuda driver", f"{version // 1000}.{version % 1000 // 10}"),
                ("nvrtc", driver.compiler_version()),
                ("cublaslt", str(self._machine.cublaslt.version)),
                ("cudnn", str(self._machine.cudnn.version)),
            ),
        )

    def _unsupported(self, request: KernelRequest) -> UnsupportedOperatorError:
        known = KERNELS.operators()
        where = f"node `{request.node}`"
        if request.operator in known:
            operands = ", ".join("-" if spec is None else str(spec) for spec in request.inputs)
            return UnsupportedOperatorError(
                f"no kernel of {self._name} runs `{request.operator}` on ({operands}) "
                "with these attributes",
                context=where,
                hint='convert the model, or run it with `kind = "cpu"`',
            )
        near = difflib.get_close_matches(request.operator, known, n=3)
        alternatives = " or ".join(f"`{name}`" for name in near)
        return UnsupportedOperatorError(
            f"{self._name} has no kernel for operator `{request.operator}`",
            context=where,
            hint=f"did you mean {alternatives}?"
            if near
            else 'export the model without this operator, run it with `kind = "cpu"`, or leave '
            "what it does to a pipeline (a source of images decodes pictures)",
        )


def _span(address: int, regions: Sequence[Region | None]) -> Span:
    """Return the region that an address is in, from its first address to behind its last."""
    for region in filter(None, regions):
        first = address_of(region)
        if first <= address < first + region.size_bytes:
            return first, first + region.size_bytes
    return address, address + 1
