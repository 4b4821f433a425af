"""What loading leaves behind on the host."""

from __future__ import annotations

import ctypes
import gc


def return_freed_memory() -> None:
    """Give memory that is free again back to the system, so that what is resident is what is used.

    Loading reads and packs weights on the host. The C library keeps such memory for later, but
    after start-up there is no later. Where it can not be asked to let go, nothing happens.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
