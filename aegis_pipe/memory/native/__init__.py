"""The compiled inner loop of the exact search.

`tools/hatch_build.py` compiles it when the package is built. Without it `LIBRARY` is None, and
`PythonAttempt` does the same search.
"""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path


def _load() -> ctypes.CDLL | None:
    path = Path(__file__).parent / "lib" / f"{platform.machine()}.so"
    if not path.exists():
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


LIBRARY = _load()
