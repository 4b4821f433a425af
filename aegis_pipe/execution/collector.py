"""Python's cyclic garbage collector, kept from searching in vain what loading made.

Loading makes many objects and drops few. Afterwards they live as long as the runtime does, but
every full collection would walk over all of them (15 to 20 ms with the quickstart), and no request
moves meanwhile: requests leave few cycles behind, and those are younger.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_holders = 0


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep the collector from running, and leave it as it was found."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def heap_frozen() -> Iterator[None]:
    """Have the collector pass over all objects there are, until the end; best after a collection.

    Cycles among them are freed only afterwards. Several may hold at once; the last one thaws. What
    the program froze itself (`gc.freeze`) thaws with it: the interpreter keeps one such set.
    """
    global _holders
    with _lock:
        _holders += 1
    gc.freeze()
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if _holders == 0:
                gc.unfreeze()
