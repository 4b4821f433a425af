"""The compiled part of folding.

`tools/hatch_build.py` compiles it when the package is built. Without it `LIBRARY` is None, and
NumPy computes the same bits.
"""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import numpy as np


def _load() -> ctypes.CDLL | None:
    path = Path(__file__).parent / "lib" / f"{platform.machine()}.so"
    if not path.exists():
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.aegis_scale_rows.argtypes = (pointer, pointer, integer, integer, pointer)
    library.aegis_scale_rows.restype = integer
    return library


LIBRARY = _load()


def scaled_rows(rows: np.ndarray, factors: np.ndarray) -> np.ndarray | None:
    """Return float[n, ...] with each row times its factor; None if a result is not finite.

    `factors` is float64[n]. Products are computed in double precision and rounded once.
    """
    scaled = np.empty(rows.shape, rows.dtype)
    if LIBRARY is not None and rows.dtype == np.float32 and rows.flags.c_contiguous:
        length = rows.size // max(len(rows), 1)
        factors = np.ascontiguousarray(factors, np.float64)
        assert factors.shape == rows.shape[:1], f"{factors.shape} factors of {rows.shape}"
        finite = LIBRARY.aegis_scale_rows(
            rows.ctypes.data, factors.ctypes.data, len(rows), length, scaled.ctypes.data
        )
        return scaled if finite else None
    by_row = factors.reshape(-1, *(1,) * (rows.ndim - 1))
    # Without a copy of the weights in double precision.
    np.multiply(rows, by_row, out=scaled, casting="same_kind")
    return scaled if np.isfinite(scaled).all() else None
