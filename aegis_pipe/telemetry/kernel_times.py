"""The times of a segment's kernels, from stamps of the runtime's clock to those that viewers show.

In C where it is compiled (`native/c/kernel_times.c`), else in NumPy: the same numbers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

import numpy as np

from aegis_pipe.telemetry.native import SHORT_CALLS

Bounds = Callable[[bytes], tuple[int, int]]
Place = Callable[[bytes, int], np.ndarray]


def numpy_bounds(stamps: bytes) -> tuple[int, int]:
    """Return the first start and the last end of stamps, int64[kernels, 2], kernels > 0."""
    times = as_times(stamps)
    return int(times[:, 0].min()), int(times.max())


def numpy_place(stamps: bytes, offset_ns: int) -> np.ndarray:
    """Return int64[3, kernels]: starts and ends, both moved by the offset, and true durations.

    An end is made earlier where it would seem to lie in the microsecond in which the next kernel
    begins, as `spans.py` explains. What ends before it starts has a duration of 0.
    """
    times = as_times(stamps)
    columns = np.empty((3, len(times)), np.int64)
    starts, ends, durations = columns
    starts[:] = times[:, 0]
    durations[:] = np.maximum(times[:, 1], starts) - starts
    starts += offset_ns
    ends[:] = starts + durations
    starts_us = starts // 1000
    shown_end_us = starts_us + durations // 1000
    here_us, next_us = starts_us[:-1], starts_us[1:]
    gives_way = (shown_end_us[:-1] >= next_us) & (here_us < next_us) & (ends[:-1] <= starts[1:])
    shorter = starts[:-1] + (next_us - 1 - here_us) * 1000
    ends[:-1] = np.where(gives_way, shorter, ends[:-1])
    return columns


def as_times(stamps: bytes) -> np.ndarray:
    """Return stamps as int64[kernels, 2], start and end of each."""
    return np.frombuffer(stamps, np.int64).reshape(-1, 2)


def native_functions(library: ctypes.CDLL) -> tuple[Bounds, Place]:
    """Return what does in C the same as `numpy_bounds` and `numpy_place`."""
    find_bounds, place_kernels = library.aegis_kernel_bounds, library.aegis_place_kernels
    find_bounds.argtypes = (ctypes.c_char_p, ctypes.c_int64, ctypes.c_void_p)
    place_kernels.argtypes = (ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    find_bounds.restype = place_kernels.restype = None

    def bounds(stamps: bytes) -> tuple[int, int]:
        pair = (ctypes.c_int64 * 2)()
        find_bounds(stamps, len(stamps) // 16, pair)
        return pair[0], pair[1]

    def place(stamps: bytes, offset_ns: int) -> np.ndarray:
        kernels = len(stamps) // 16
        columns = np.empty((3, kernels), np.int64)
        place_kernels(stamps, kernels, offset_ns, columns.ctypes.data)
        return columns

    return bounds, place


_FUNCTIONS: Final = (
    (numpy_bounds, numpy_place) if SHORT_CALLS is None else native_functions(SHORT_CALLS)
)
kernel_bounds: Final[Bounds] = _FUNCTIONS[0]
place_kernels: Final[Place] = _FUNCTIONS[1]
