"""The CUDA device. Importing this package touches neither the bindings nor the driver."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from importlib import metadata

from aegis_pipe.clock import Clock
from aegis_pipe.device.cuda.short_calls import LIBRARY
from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.errors import DeviceUnavailableError

_DRIVER_VERSION_MIN = 13000
_PACKAGES = ("cuda.bindings", "cuda.pathfinder", "cudnn", "nvmath")
_BINDINGS, _BINDINGS_MAJOR = "cuda-bindings", "13"
"""Those of other major versions have functions that take other arguments."""
_LIBRARIES = ("cudart", "nvrtc", "cublasLt", "cudnn")
"""cuDNN compiles some of its plans, and finds the compiler only if it is loaded already; its
binding finds the runtime likewise."""
_EXTRA = 'pip install "aegis-pipe[cuda]"'
_USE_CPU = 'or set `kind = "cpu"`'


def open_context(*, index: int, clock: Clock, threads: int) -> DeviceContext:
    """Open GPU `index`; raises DeviceUnavailableError with what was looked for and found.

    PermanentError if it is there, but has too little memory left to be opened. `threads` concerns
    host kernels, of which this device has none.
    """
    _check_installed(index)
    with ThreadPoolExecutor(1, "aegis-driver") as pool, ExitStack() as stack:
        # Only here, because this imports the bindings.
        try:
            from aegis_pipe.device.cuda import driver

            # It takes as long to start as what is imported next, and leaves Python alone meanwhile.
            starting = pool.submit(_start_driver, index)
            stack.callback(_release, starting, driver.release_context)
            from aegis_pipe.device.cuda.context import CudaContext
        except ImportError as error:
            raise _unavailable(
                index,
                f"the bindings of CUDA are installed, but not to be imported: {error}",
                _EXTRA,
            ) from error
        starting.result()
        _load_libraries(index)
        return CudaContext(index, clock)


def _check_installed(index: int) -> None:
    """Look for driver library and bindings without importing either."""
    missing = []
    hints = []
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        missing.append(f"the NVIDIA driver library was looked for and not loaded ({error})")
        hints.append("install an NVIDIA driver")
    packages = [name for name in _PACKAGES if not _is_installed(name)]
    if packages:
        names = ", ".join(f"`{name}`" for name in packages)
        missing.append(f"Python modules that it needs were looked for and not found: {names}")
        hints.append(_EXTRA)
    elif version := _other_bindings():
        missing.append(f"the package `{_BINDINGS}` is {version}, but {_BINDINGS_MAJOR} is needed")
        hints.append(_EXTRA)
    if missing:
        raise _unavailable(index, "; ".join(missing), " and ".join(hints))


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _other_bindings() -> str:
    """Return the version of the bindings if it is not what is needed, as another extra's may be."""
    try:
        version = metadata.version(_BINDINGS)
    except metadata.PackageNotFoundError:
        return ""
    return "" if version.partition(".")[0] == _BINDINGS_MAJOR else version


def _start_driver(index: int) -> int:
    """See that the driver is new enough and has such a GPU; start it, and open what takes longest.

    Returns the GPU, whose primary context is retained.
    """
    from aegis_pipe.device.cuda import driver

    try:
        driver.initialise()
        version = driver.driver_version()
        count = driver.device_count()
    except (driver.DriverError, RuntimeError) as error:
        raise _unavailable(
            index,
            f"the driver is installed, but does not start: {error}",
            "see whether `nvidia-smi` lists a GPU for this user or container",
        ) from error
    if version < _DRIVER_VERSION_MIN:
        raise _unavailable(
            index,
            f"the driver offers CUDA {_version(version)}, but "
            f"{_version(_DRIVER_VERSION_MIN)} is needed",
            "update the NVIDIA driver",
        )
    if not 0 <= index < count:
        names = ", ".join(f"`{each}`" for each in range(count)) or "none"
        raise _unavailable(
            index, f"there is no GPU {index}; this machine's are {names}", "change `device.index`"
        )
    gpu = driver.device(index)
    driver.retain_context(gpu)
    return gpu


def _release(starting: Future[int], release_context: Callable[[int], None]) -> None:
    """Let go of what the driver was started with: who uses the GPU has retained its context too."""
    if starting.exception() is None:
        release_context(starting.result())


def _load_libraries(index: int) -> None:
    """Have what the bindings call loaded from where its packages are, and able to serve the GPU."""
    from aegis_pipe.device.cuda import driver

    missing = driver.load_libraries(*_LIBRARIES)
    if missing:
        names = ", ".join(f"`{name}`" for name in missing)
        raise _unavailable(
            index, f"NVIDIA libraries that it needs were looked for and not found: {names}", _EXTRA
        )
    # Drivers start GPUs that are older, or newer, than what the compiler makes kernels for.
    found, known = driver.architecture(index), driver.compiler_architectures()
    if found not in known:
        raise _unavailable(
            index,
            f"the GPU ({driver.device_name(index)}) is an sm_{found}, but the compiler (NVRTC "
            f"{driver.compiler_version()}) makes kernels for sm_{min(known)} to sm_{max(known)}",
            "take another GPU or another version of the package `nvidia-cuda-nvrtc`",
        )


def _version(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _unavailable(index: int, message: str, hint: str) -> DeviceUnavailableError:
    return DeviceUnavailableError(message, context=f"cuda:{index}", hint=f"{hint}, {_USE_CPU}")
