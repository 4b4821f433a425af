"""The driver's calls of a microsecond or two, made without giving up the interpreter's lock.

`cuda.bindings` gives it up around every call. Any thread that waits to run Python takes it then,
and keeps it for up to the interpreter's switch interval of 5 ms: a request of six such calls can
wait six times. These keep it, as nothing in them waits for anything but the driver.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

LIBRARY = "libcuda.so.1"
"""The driver's, by the name that `cuda.bindings` loads it by, too."""

_HANDLE, _ADDRESS, _SIZE = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t
_FUNCTIONS: dict[str, tuple[str, tuple[type, ...]]] = {
    "launch_graph": ("cuGraphLaunch", (_HANDLE, _HANDLE)),
    "wait_event": ("cuStreamWaitEvent", (_HANDLE, _HANDLE, ctypes.c_uint)),
    "query_stream": ("cuStreamQuery", (_HANDLE,)),
    "record_event": ("cuEventRecord", (_HANDLE, _HANDLE)),
    "query_event": ("cuEventQuery", (_HANDLE,)),
    "elapsed": ("cuEventElapsedTime", (ctypes.POINTER(ctypes.c_float), _HANDLE, _HANDLE)),
    "copy_to_device": ("cuMemcpyHtoDAsync_v2", (_ADDRESS, _HANDLE, _SIZE, _HANDLE)),
    "copy_to_host": ("cuMemcpyDtoHAsync_v2", (_HANDLE, _ADDRESS, _SIZE, _HANDLE)),
}


class ShortCalls:
    """Each function takes what the driver's does, and returns its code."""

    launch_graph: Callable[[int, int], int]
    wait_event: Callable[[int, int, int], int]
    query_stream: Callable[[int], int]
    record_event: Callable[[int, int], int]
    query_event: Callable[[int], int]
    elapsed: Callable[[ctypes.c_float, int, int], int]
    copy_to_device: Callable[[int, int, int, int], int]
    copy_to_host: Callable[[int, int, int, int], int]

    def __init__(self) -> None:
        """Look for nothing yet: the driver may not be there."""
        self._are_found = False

    def find(self) -> None:
        """Find them, unless they are; OSError if the driver's library is not there."""
        if not self._are_found:
            self._load(ctypes.PyDLL(LIBRARY))

    def give_up_lock(self) -> None:
        """From now on give the interpreter's lock up around each call, for good.

        CUPTI calls Python from threads that hold locks of the driver. They would wait for the
        interpreter's, and a call from Python that keeps it for theirs.
        """
        self._load(ctypes.CDLL(LIBRARY))

    def _load(self, library: ctypes.CDLL) -> None:
        # No call that keeps the lock is under way meanwhile: this runs, so this has it.
        for name, (symbol, arguments) in _FUNCTIONS.items():
            function = getattr(library, symbol)
            function.argtypes, function.restype = arguments, ctypes.c_int
            setattr(self, name, function)
        self._are_found = True
