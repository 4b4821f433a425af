"""The one door to the CUDA driver and its compiler: every call is checked here.

Nothing else imports `cuda`. Handles go in and out of these functions as plain integers and stay
within this folder; a call that fails raises an AegisError of the right category:

    transient   the driver is busy or not ready: the same call may succeed later
    permanent   the call or this machine's set-up is wrong
    fatal       the device failed, or a kernel broke the context: every later call fails too
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cuda.bindings import driver as cu, nvrtc
from cuda.pathfinder import load_nvidia_dynamic_lib

from aegis_pipe.device.cuda.recording import Edge
from aegis_pipe.device.cuda.short_calls import ShortCalls
from aegis_pipe.errors import AegisError, DeviceLostError, PermanentError, TransientError

_SUCCESS = cu.CUresult.CUDA_SUCCESS
_NOT_READY = int(cu.CUresult.CUDA_ERROR_NOT_READY)
_OUT_OF_MEMORY = 2

_TRANSIENT = frozenset({46, 802, 807, 909})
"""Device unavailable, system or its MPS server not ready, timeout."""

_MAKE_ROOM = (
    "load fewer or smaller models, lower their precision, or end what else is on the device "
    "(nvidia-smi lists it)"
)

_FATAL = frozenset(
    {4, 201, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911, 999}
)
"""Shut down or destroyed contexts, hardware faults, and what a kernel did wrong (sticky)."""


class DriverError(Exception):
    """A driver call failed; its code decides what is raised to the outside."""

    def __init__(self, function: str, code: int, name: str, text: str) -> None:
        super().__init__(f"{function}: {name} ({code}): {text}")
        self.function = function
        self.code = code
        self.name = name
        self.text = text

    def classified(self) -> AegisError:
        """Return the error for the outside, by category."""
        message = f"the CUDA driver's {self.function} failed: {self.name} ({self.text})"
        if self.code in _FATAL:
            return DeviceLostError(
                message,
                context="cuda",
                hint="the device can not be used any more by this process: end it and start anew; "
                "if it happens again, run the model under compute-sanitizer and report it",
            )
        if self.code in _TRANSIENT:
            return TransientError(message, context="cuda", hint="try again")
        hint = "see `aegis-pipe doctor` for what the device offers"
        return PermanentError(
            message, context="cuda", hint=_MAKE_ROOM if self.code == _OUT_OF_MEMORY else hint
        )


def checked(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a driver function; return its results, raise the classified error of its code."""
    code, *results = function(*arguments)
    if code != _SUCCESS:
        raise _error(function, code).classified()
    return results[0] if len(results) == 1 else results


def raw(function: Callable[..., Any], *arguments: Any) -> Any:
    """As `checked`, but raise DriverError, for callers that know what a code means to them."""
    code, *results = function(*arguments)
    if code != _SUCCESS:
        raise _error(function, code)
    return results[0] if len(results) == 1 else results


def _released(function: Callable[..., Any], *arguments: Any) -> None:
    """As `checked`, for giving something back: a broken context has lost it already.

    Whoever used that context was told; what else there is to be closed still has to be.
    """
    code, *_ = function(*arguments)
    if code != _SUCCESS and int(code) not in _FATAL:
        raise _error(function, code).classified()


def _error(function: Callable[..., Any], code: Any) -> DriverError:
    number = int(code)
    try:
        text = cu.cuGetErrorString(code)[1].decode()
    except (AttributeError, TypeError, RuntimeError):
        text = "no description"
    return DriverError(
        getattr(function, "__name__", "call"), number, getattr(code, "name", str(number)), text
    )


_short = ShortCalls()
"""What every request calls; found once the driver has started."""


def _failed(function: str, code: int) -> AegisError:
    """Return the classified error of a short call's code."""
    try:
        known: Any = cu.CUresult(code)
    except ValueError:
        # A newer driver's.
        known = code
    return _error(getattr(cu, function), known).classified()


def _is_done(function: str, code: int) -> bool:
    """Return what a query's code says; raise what went wrong."""
    if not code:
        return True
    if code == _NOT_READY:
        return False
    raise _failed(function, code)


def give_up_lock() -> None:
    """Have every call give up the interpreter's lock from now on, as `ShortCalls` says why."""
    _short.give_up_lock()


# --- Devices and contexts ---------------------------------------------------------------------


def initialise() -> None:
    """Load and start the driver; DriverError, or RuntimeError if there is no library."""
    raw(cu.cuInit, 0)
    _short.find()


def driver_version() -> int:
    """Return the CUDA version the driver offers: 13000 for 13.0."""
    return int(raw(cu.cuDriverGetVersion))


def device_count() -> int:
    """Return the number of GPUs."""
    return int(raw(cu.cuDeviceGetCount))


def device(index: int) -> int:
    """Return a GPU's ordinal."""
    return int(checked(cu.cuDeviceGet, index))


def device_name(ordinal: int) -> str:
    """Return what the maker calls it."""
    return str(checked(cu.cuDeviceGetName, 96, ordinal).split(b"\0")[0].decode())


def device_memory_bytes(ordinal: int) -> int:
    """Return the size of its memory."""
    return int(checked(cu.cuDeviceTotalMem, ordinal))


def attribute(ordinal: int, name: str) -> int:
    """Return a device attribute: `MULTIPROCESSOR_COUNT`, ..."""
    key = getattr(cu.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
    return int(checked(cu.cuDeviceGetAttribute, key, ordinal))


def architecture(ordinal: int) -> int:
    """Return the device's compute capability as one number: 90 for 9.0."""
    major, minor = (attribute(ordinal, f"COMPUTE_CAPABILITY_{part}") for part in ("MAJOR", "MINOR"))
    return 10 * major + minor


def pci_address(ordinal: int) -> str:
    """Return where the device is, `domain:bus:device.function`, whatever ordinals others count."""
    domain, bus, device = (
        attribute(ordinal, f"PCI_{part}_ID") for part in ("DOMAIN", "BUS", "DEVICE")
    )
    return f"{domain:08x}:{bus:02x}:{device:02x}.0"


def retain_context(ordinal: int) -> int:
    """Open the device's primary context, which libraries share, and make it current."""
    handle = int(checked(cu.cuDevicePrimaryCtxRetain, ordinal))
    make_current(handle)
    return handle


def make_current(context: int) -> None:
    """Make a context the calling thread's."""
    checked(cu.cuCtxSetCurrent, context)


def release_context(ordinal: int) -> None:
    """Give the primary context back."""
    _released(cu.cuDevicePrimaryCtxRelease, ordinal)


def synchronise_context() -> None:
    """Wait for everything."""
    checked(cu.cuCtxSynchronize)


def stream_priority_range() -> tuple[int, int]:
    """Return (least, greatest); greater urgency is the smaller number."""
    least, greatest = checked(cu.cuCtxGetStreamPriorityRange)
    return int(least), int(greatest)


# --- Memory -----------------------------------------------------------------------------------


def allocate(size_bytes: int) -> int:
    """Reserve device memory; a PermanentError tells how much there is, if that is too little."""
    try:
        return int(raw(cu.cuMemAlloc, size_bytes))
    except DriverError as error:
        if error.code != _OUT_OF_MEMORY:
            raise error.classified() from error
        free_bytes, total_bytes = checked(cu.cuMemGetInfo)
        raise PermanentError(
            f"{_mebibytes(size_bytes)} were asked for, but only {_mebibytes(free_bytes)} of "
            f"{_mebibytes(total_bytes)} are free",
            context=f"cuda:{int(checked(cu.cuCtxGetDevice))}",
            hint=_MAKE_ROOM,
        ) from error


def _mebibytes(size_bytes: int) -> str:
    return f"{int(size_bytes) / 2**20:,.1f} MiB"


def free(address: int) -> None:
    """Give device memory back."""
    _released(cu.cuMemFree, address)


def allocate_pinned(size_bytes: int) -> int:
    """Reserve page-locked host memory, also addressable by the device.

    PermanentError if there is too little, of it or of what the device needs for it.
    """
    flags = cu.CU_MEMHOSTALLOC_PORTABLE | cu.CU_MEMHOSTALLOC_DEVICEMAP
    try:
        return int(raw(cu.cuMemHostAlloc, size_bytes, flags))
    except DriverError as error:
        if error.code != _OUT_OF_MEMORY:
            raise error.classified() from error
        raise PermanentError(
            f"{_mebibytes(size_bytes)} of page-locked host memory were asked for, and are not to "
            "be had",
            context="cuda",
            hint="make room in the host's memory or the device's (nvidia-smi lists who uses it), "
            "or plan less: fewer streams, smaller inputs and outputs",
        ) from error


def free_pinned(address: int) -> None:
    """Give page-locked memory back."""
    _released(cu.cuMemFreeHost, address)


def copy_to_device(target: int, source: int, size_bytes: int) -> None:
    """Copy from the host and wait."""
    checked(cu.cuMemcpyHtoD, target, source, size_bytes)
    checked(cu.cuCtxSynchronize)


def copy_to_host(target: int, source: int, size_bytes: int) -> None:
    """Copy to the host and wait."""
    checked(cu.cuCtxSynchronize)
    checked(cu.cuMemcpyDtoH, target, source, size_bytes)


def enqueue_copy_to_device(target: int, source: int, size_bytes: int, stream: int) -> None:
    """Enqueue a copy from page-locked memory."""
    if code := _short.copy_to_device(target, source, size_bytes, stream):
        raise _failed("cuMemcpyHtoDAsync", code)


def enqueue_copy_to_host(target: int, source: int, size_bytes: int, stream: int) -> None:
    """Enqueue a copy to page-locked memory."""
    if code := _short.copy_to_host(target, source, size_bytes, stream):
        raise _failed("cuMemcpyDtoHAsync", code)


def enqueue_copy(target: int, source: int, size_bytes: int, stream: int) -> None:
    """Enqueue a copy within the device."""
    checked(cu.cuMemcpyDtoDAsync, target, source, size_bytes, stream)


def enqueue_fill(target: int, value: int, size_bytes: int, stream: int) -> None:
    """Enqueue setting every byte to a value."""
    checked(cu.cuMemsetD8Async, target, value, size_bytes, stream)


def load_libraries(*names: str) -> list[str]:
    """Load NVIDIA libraries from where their packages are: `cublasLt`, `cudnn`, ...

    Returns those that are not to be found. Whoever dlopens the others by name finds them.
    """
    missing = []
    for name in names:
        try:
            load_nvidia_dynamic_lib(name)
        except RuntimeError:
            missing.append(name)
    return missing


# --- Streams and events -----------------------------------------------------------------------


def create_stream(priority: int) -> int:
    """Make a stream that does not wait for the legacy default stream."""
    flags = int(cu.CUstream_flags.CU_STREAM_NON_BLOCKING)
    return int(checked(cu.cuStreamCreateWithPriority, flags, priority))


def destroy_stream(stream: int) -> None:
    """Release a stream."""
    _released(cu.cuStreamDestroy, stream)


def synchronise_stream(stream: int) -> None:
    """Wait for a stream."""
    checked(cu.cuStreamSynchronize, stream)


def stream_is_idle(stream: int) -> bool:
    """Return whether everything enqueued has finished; raises what went wrong."""
    return _is_done("cuStreamQuery", _short.query_stream(stream))


def wait_event(stream: int, event: int) -> None:
    """Have a stream wait for an event's latest record."""
    if code := _short.wait_event(stream, event, 0):
        raise _failed("cuStreamWaitEvent", code)


def create_event() -> int:
    """Make an event with a time."""
    return int(checked(cu.cuEventCreate, int(cu.CUevent_flags.CU_EVENT_DEFAULT)))


def destroy_event(event: int) -> None:
    """Release an event."""
    _released(cu.cuEventDestroy, event)


def record_event(event: int, stream: int) -> None:
    """Record an event."""
    if code := _short.record_event(event, stream):
        raise _failed("cuEventRecord", code)


def event_is_done(event: int) -> bool:
    """Return whether an event was reached."""
    return _is_done("cuEventQuery", _short.query_event(event))


def synchronise_event(event: int) -> None:
    """Wait for an event."""
    checked(cu.cuEventSynchronize, event)


def elapsed_ns(first: int, second: int) -> int:
    """Return the time between two events that were reached."""
    milliseconds = ctypes.c_float()
    if code := _short.elapsed(milliseconds, first, second):
        raise _failed("cuEventElapsedTime", code)
    return round(milliseconds.value * 1e6)


# --- Green contexts ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Partition:
    """A green context, and the same as a context that can be current."""

    handle: int
    context: int


_GROUP_SMS = 8
"""Smallest part of a GPU that every architecture can divide off."""


class Multiprocessors:
    """A GPU's multiprocessors, handed out in parts that have none in common."""

    def __init__(self, ordinal: int) -> None:
        self._ordinal = ordinal
        kind = cu.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
        whole = checked(cu.cuDeviceGetDevResource, ordinal, kind)
        count = int(whole.sm.smCount) // _GROUP_SMS
        # One split for all parts: what is left over by one can not be split again.
        groups, found, rest = checked(cu.cuDevSmResourceSplitByCount, count, whole, 0, _GROUP_SMS)
        self._groups = list(groups[: int(found)])
        self._rest = [rest] if int(rest.sm.smCount) else []

    @property
    def left(self) -> int:
        """How many can be handed out.

        What makes no whole group only goes with one: nothing says that a cluster of eight blocks
        fits it, while the multiprocessors of a group are side by side.
        """
        if not self._groups:
            return 0
        return sum(int(each.sm.smCount) for each in (*self._groups, *self._rest))

    def partition(self, sm_count: int) -> Partition:
        """Make a green context of at least `sm_count` of those left."""
        assert 0 < sm_count <= self.left
        parts: list[Any] = []
        size = 0
        while size < sm_count:
            part = (self._groups or self._rest).pop(0)
            parts.append(part)
            size += int(part.sm.smCount)
        description = checked(cu.cuDevResourceGenerateDesc, parts, len(parts))
        flags = int(cu.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM)
        green = checked(cu.cuGreenCtxCreate, description, self._ordinal, flags)
        return Partition(int(green), int(checked(cu.cuCtxFromGreenCtx, green)))


def create_partition_stream(partition: int, priority: int) -> int:
    """Make a stream whose work stays within a green context."""
    flags = int(cu.CUstream_flags.CU_STREAM_NON_BLOCKING)
    return int(checked(cu.cuGreenCtxStreamCreate, partition, flags, priority))


def destroy_partition(partition: int) -> None:
    """Release a green context."""
    _released(cu.cuGreenCtxDestroy, partition)


# --- Kernels ----------------------------------------------------------------------------------


def load_library(image: bytes) -> int:
    """Load a compiled image."""
    return int(checked(cu.cuLibraryLoadData, image, [], [], 0, [], [], 0))


def unload_library(library: int) -> None:
    """Unload an image."""
    _released(cu.cuLibraryUnload, library)


def kernel_function(library: int, name: str) -> int:
    """Return a kernel of a loaded image; it is launched in the context of the stream it is on."""
    return int(checked(cu.cuLibraryGetKernel, library, name.encode()))


def allow_shared_memory(kernel: int, size_bytes: int) -> None:
    """Let a kernel have more shared memory than the 48 KiB that need no asking."""
    limit = cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    ordinal = checked(cu.cuCtxGetDevice)
    checked(cu.cuKernelSetAttribute, limit, size_bytes, kernel, ordinal)


TensorMap = ctypes.Array[ctypes.c_uint64]
"""128 bytes of which the tensor memory accelerator knows how a matrix lies in memory."""
Argument = int | ctypes.c_float | ctypes.c_int | TensorMap


def tensor_map(
    address: int, shape: tuple[int, int], tile: tuple[int, int], *, bfloat16: bool = False
) -> TensorMap:
    """Describe a dense row-major matrix of half precision, of which tiles are loaded (compute 9.0).

    Rows of a tile are 128 bytes, whose groups of 16 change places by the row's number (swizzle);
    what lies beyond the matrix is zero. Address and rows are multiples of 16 bytes.
    """
    assert tile[1] == 64, "a tile's row is what is swizzled"
    assert address % 16 == 0, f"{address:#x} is not aligned"
    kinds = cu.CUtensorMapDataType
    kind = (
        kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
        if bfloat16
        else kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT16
    )
    found = checked(
        cu.cuTensorMapEncodeTiled,
        kind,
        2,
        address,
        [cu.cuuint64_t(size) for size in reversed(shape)],
        [cu.cuuint64_t(2 * shape[1])],
        [cu.cuuint32_t(size) for size in reversed(tile)],
        [cu.cuuint32_t(1)] * 2,
        cu.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        cu.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        cu.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        cu.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    held = (ctypes.c_uint64 * 16)()
    ctypes.memmove(held, int(found.getPtr()), ctypes.sizeof(held))
    return held


class Arguments:
    """A kernel's arguments, packed once: device addresses, 32- and 64-bit numbers, tensor maps."""

    __slots__ = ("_keep", "address")

    def __init__(self, values: Sequence[Argument]) -> None:
        cells = [ctypes.c_void_p(each) if isinstance(each, int) else each for each in values]
        table = (ctypes.c_void_p * max(1, len(cells)))(*map(ctypes.addressof, cells))
        self._keep = (cells, table)
        self.address = ctypes.addressof(table)


def launch(
    function: int,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    shared_bytes: int,
    stream: int,
    arguments: Arguments,
    *,
    early: bool = False,
) -> None:
    """Enqueue a kernel; `early` if it waits by itself for the kernel before it (compute 9.0)."""
    if not early:
        checked(
            cu.cuLaunchKernel, function, *grid, *block, shared_bytes, stream, arguments.address, 0
        )
        return
    configuration = cu.CUlaunchConfig()
    configuration.gridDimX, configuration.gridDimY, configuration.gridDimZ = grid
    configuration.blockDimX, configuration.blockDimY, configuration.blockDimZ = block
    configuration.sharedMemBytes = shared_bytes
    configuration.hStream = cu.CUstream(stream)
    attribute = cu.CUlaunchAttribute()
    attribute.id = cu.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value.programmaticStreamSerializationAllowed = 1
    configuration.attrs = [attribute]
    configuration.numAttrs = 1
    checked(cu.cuLaunchKernelEx, configuration, function, arguments.address, 0)


def compile_cubin(source: str, architecture: str) -> bytes:
    """Compile CUDA C++ for one architecture (`sm_90`); needs neither GPU nor driver.

    Raises AssertionError with the compiler's log: sources are our own.
    """
    program = _nvrtc(nvrtc.nvrtcCreateProgram, source.encode(), b"kernel.cu", 0, [], [])
    options = [b"--std=c++17", f"--gpu-architecture={architecture}".encode()]
    (code,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = bytes(_nvrtc(nvrtc.nvrtcGetProgramLogSize, program))
        _nvrtc(nvrtc.nvrtcGetProgramLog, program, log)
        raise AssertionError(f"a kernel does not compile: {log.decode()}\n{source}")
    image = bytes(_nvrtc(nvrtc.nvrtcGetCUBINSize, program))
    _nvrtc(nvrtc.nvrtcGetCUBIN, program, image)
    _nvrtc(nvrtc.nvrtcDestroyProgram, program)
    return image


def compiler_version() -> str:
    """Return NVRTC's version."""
    major, minor = _nvrtc(nvrtc.nvrtcVersion)
    return f"{major}.{minor}"


def compiler_architectures() -> list[int]:
    """Return those that NVRTC compiles for: 75, 80, ..."""
    return [int(each) for each in _nvrtc(nvrtc.nvrtcGetSupportedArchs)]


def _nvrtc(function: Callable[..., Any], *arguments: Any) -> Any:
    code, *results = function(*arguments)
    assert code == nvrtc.nvrtcResult.NVRTC_SUCCESS, f"{function.__name__}: {code}"
    return results[0] if len(results) == 1 else results


# --- Graphs -----------------------------------------------------------------------------------


def begin_capture(stream: int, *, may_load: bool = False) -> None:
    """Record what is enqueued on a stream instead of running it; other threads are free.

    This one is, too, with `may_load`: to load kernels of libraries, which allocates.
    """
    modes = cu.CUstreamCaptureMode
    mode = (
        modes.CU_STREAM_CAPTURE_MODE_RELAXED
        if may_load
        else modes.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    )
    checked(cu.cuStreamBeginCapture, stream, mode)


def end_capture(stream: int) -> int:
    """Return what was recorded."""
    return int(checked(cu.cuStreamEndCapture, stream))


def abandon_capture(stream: int) -> None:
    """End a capture that failed half-way, and drop what was recorded."""
    code, graph = cu.cuStreamEndCapture(stream)
    if code == _SUCCESS and int(graph):
        cu.cuGraphDestroy(graph)


def captured_count(stream: int) -> int:
    """Return how many nodes the capture that is under way on a stream has so far."""
    graph = checked(cu.cuStreamGetCaptureInfo, stream)[2]
    return int(checked(cu.cuGraphGetNodes, graph)[1])


def recorded(graph: int) -> tuple[list[int], list[Edge]]:
    """Return the nodes of a recorded graph and its edges, in no particular order."""
    count = int(checked(cu.cuGraphGetNodes, graph)[1])
    nodes = [int(each) for each in checked(cu.cuGraphGetNodes, graph, count)[0]] if count else []
    count = int(checked(cu.cuGraphGetEdges, graph)[-1])
    if not count:
        return nodes, []
    early = int(cu.CUgraphDependencyType.CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC)
    sources, targets, kinds, _ = checked(cu.cuGraphGetEdges, graph, count)
    return nodes, [
        Edge(int(source), int(target), kind if kind.type == early else None)
        for source, target, kind in zip(sources, targets, kinds, strict=True)
    ]


def replace_edges(graph: int, removed: Sequence[Edge], added: Sequence[Edge]) -> None:
    """Take edges out of a recorded graph and put others in."""
    for function, edges in (
        (cu.cuGraphRemoveDependencies, removed),
        (cu.cuGraphAddDependencies, added),
    ):
        for edge in edges:
            source, target = cu.CUgraphNode(edge.source), cu.CUgraphNode(edge.target)
            kind = cu.CUgraphEdgeData() if edge.kind is None else edge.kind
            checked(function, graph, [source], [target], [kind], 1)


class Fill(NamedTuple):
    """A node of a recorded graph that fills memory: `height` lines of `width` elements."""

    node: int
    address: int
    value: int
    element_bytes: int
    width: int
    height: int


def fills(graph: int) -> list[Fill]:
    """Return the nodes of a recorded graph that fill memory."""
    found = []
    for node in recorded(graph)[0]:
        handle = cu.CUgraphNode(node)
        if checked(cu.cuGraphNodeGetType, handle) == cu.CUgraphNodeType.CU_GRAPH_NODE_TYPE_MEMSET:
            p = checked(cu.cuGraphMemsetNodeGetParams, handle)
            found.append(Fill(node, int(p.dst), p.value, p.elementSize, p.width, p.height))
    return found


def replace_node(
    graph: int,
    node: int,
    kernel: int,
    *,
    grid: int,
    block: int,
    arguments: Arguments,
    early: bool,
) -> None:
    """Have a kernel in a node's place, behind and before the same nodes.

    `early`: it waits by itself for a kernel that is alone before it (compute 9.0).
    """
    parameters = cu.CUDA_KERNEL_NODE_PARAMS()
    parameters.kern = cu.CUkernel(kernel)
    parameters.gridDimX, parameters.gridDimY, parameters.gridDimZ = grid, 1, 1
    parameters.blockDimX, parameters.blockDimY, parameters.blockDimZ = block, 1, 1
    parameters.kernelParams = arguments.address
    new = int(checked(cu.cuGraphAddKernelNode, graph, [], 0, parameters))
    edges = recorded(graph)[1]
    before = [edge for edge in edges if edge.target == node]
    behind = [edge for edge in edges if edge.source == node]
    kind = None
    if early and len(before) == 1 and _is_kernel(before[0].source):
        kind = cu.CUgraphEdgeData()
        kind.type = int(cu.CUgraphDependencyType.CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC)
        kind.from_port = cu.CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC
    added = [Edge(edge.source, new, kind) for edge in before]
    added += [Edge(new, edge.target) for edge in behind]
    checked(cu.cuGraphDestroyNode, cu.CUgraphNode(node))
    replace_edges(graph, [], added)


def _is_kernel(node: int) -> bool:
    kind = checked(cu.cuGraphNodeGetType, cu.CUgraphNode(node))
    return bool(kind == cu.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL)


def instantiate(graph: int) -> int:
    """Make a launchable of a recorded graph, which is released."""
    try:
        return int(checked(cu.cuGraphInstantiate, graph, 0))
    finally:
        _released(cu.cuGraphDestroy, graph)


def upload_graph(launchable: int, stream: int) -> None:
    """Prepare a launch, so that the first is as quick as the others."""
    checked(cu.cuGraphUpload, launchable, stream)


def launch_graph(launchable: int, stream: int) -> None:
    """Enqueue a graph."""
    if code := _short.launch_graph(launchable, stream):
        raise _failed("cuGraphLaunch", code)


def destroy_graph(launchable: int) -> None:
    """Release a launchable."""
    _released(cu.cuGraphExecDestroy, launchable)
