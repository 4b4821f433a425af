"""The compiled inner loops of exporting: kernels' times, and OTLP's bytes.

`tools/hatch_build.py` compiles them when the package is built. Without them both are None, and
NumPy and Python make the same times and the same bytes.
"""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from typing import Final

_PATH: Final = Path(__file__).parent / "lib" / f"{platform.machine()}.so"


def _load(kind: type[ctypes.CDLL]) -> ctypes.CDLL | None:
    if not _PATH.exists():
        return None
    try:
        return kind(str(_PATH))
    except OSError:
        return None


SHORT_CALLS: Final = _load(ctypes.PyDLL)
"""For calls of a microsecond: they keep the interpreter, as handing it over takes longer."""
LONG_CALLS: Final = _load(ctypes.CDLL)
"""For calls that requests should not wait for: the interpreter is free meanwhile."""
