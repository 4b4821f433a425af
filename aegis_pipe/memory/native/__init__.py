"""The compiled inner loop of the exact search, and the digest of weights.

`tools/hatch_build.py` compiles them when the package is built. Without them `LIBRARY` is None:
`PythonAttempt` does the same search, and `content_digest` takes another digest.
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
