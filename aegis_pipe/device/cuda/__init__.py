"""The CUDA device. Importing this package touches neither the bindings nor the driver."""

from __future__ import annotations

import ctypes
import importlib.util

from aegis_pipe.clock import Clock
from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.errors import DeviceUnavailableError

_DRIVER_LIBRARY = "libcuda.so.1"


def open_context(*, index: int, clock: Clock, threads: int) -> DeviceContext:
    """Open GPU `index`; raises DeviceUnavailableError with what is missing on this machine."""
    bindings = _bindings_problem()
    driver = _driver_problem()
    raise DeviceUnavailableError(
        f"{bindings or 'the CUDA bindings are installed'}; "
        f"{driver or f'the driver library `{_DRIVER_LIBRARY}` is there'}"
        f"{'' if bindings or driver else '; this version of AegisPipe has no kernels for it'}",
        context=f"cuda:{index}",
        hint=_what_next(bindings, driver),
    )


def _bindings_problem() -> str:
    """Look for the bindings without importing them."""
    if importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.bindings"):
        return ""
    return "the Python package `cuda.bindings` was looked for and not found"


def _driver_problem() -> str:
    try:
        ctypes.CDLL(_DRIVER_LIBRARY)
    except OSError as error:
        return f"the NVIDIA driver library was looked for and not loaded ({error})"
    return ""


def _what_next(bindings: str, driver: str) -> str:
    if driver:
        return 'install an NVIDIA driver, or set `kind = "cpu"`'
    if bindings:
        return 'pip install "aegis-pipe[cuda]"'
    return 'set `kind = "cpu"`'
