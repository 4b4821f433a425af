"""Many thousand requests leave nothing behind: no device memory, no host memory, no handles."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest

import aegis_pipe
from aegis_pipe.scheduling.device_launcher import InferenceFuture
from aegis_pipe.telemetry import assembler
from tests.system.running import ROOT

WARM_UP = 5_000
WINDOW = 2_500
WINDOWS = 4
UNDER_WAY = 32
REOPENINGS = 4
"""In one window."""

TELEMETRY = {
    "off": "",
    "on": """
[telemetry]
# Room for a whole window: a busy machine may hold the exporter up, which is not the matter here.
ring_capacity = 1048576
file = "traces.jsonl"
log = { path = "events.jsonl" }
traces = { ratio = 0.1 }
""",
}


class Footprint(NamedTuple):
    """What the process holds."""

    resident_bytes: int
    """Pages, which the allocators keep for later too."""
    native_bytes: int
    """Handed out by the C library's allocator, exactly; 0 where it does not tell."""
    objects: int
    """Objects that the garbage collector tracks."""
    blocks: int
    """Blocks of Python's allocator, which numbers and texts take up too."""
    threads: int
    handles: int


# Over all windows; noise of the interpreter's caches and a histogram's new buckets. Ten thousand
# requests that left one object or fifty bytes each behind would be far above.
OBJECTS_MAX = 500
BLOCKS_MAX = 2_500
NATIVE_MAX_BYTES = 512 * 2**10
# In a window: a hundred bytes a request.
RESIDENT_MAX_BYTES = 256 * 2**10


def footprint() -> Footprint:
    """Measure once telemetry has worked off what it holds: when Python's blocks stand still."""
    process = psutil.Process()
    blocks = [-1, 0, 10**9]
    while max(blocks) - min(blocks) > BLOCKS_MAX // 10:
        # Longer than a finished request is held before it is judged and built.
        time.sleep(2.5 * assembler.SETTLE_NS / 1e9)
        gc.collect()
        blocks = [*blocks[1:], sys.getallocatedblocks()]
    return Footprint(
        process.memory_info().rss,
        native_bytes(),
        # Only now that the other threads rest: it takes hold of tuples that are being made, which
        # CPython does not bear ("bad argument to internal function").
        len(gc.get_objects()),
        blocks[-1],
        process.num_threads(),
        process.num_fds(),
    )


class Mallinfo(ctypes.Structure):
    """The struct of that name of the GNU C library, version 2.33 and later (malloc.h)."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks")),
        ("keepcost", ctypes.c_size_t),
    ]


def native_bytes() -> int:
    """Return the bytes in use of all arenas, and of what was too large for them."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return 0
    mallinfo.restype = Mallinfo
    figures = mallinfo()
    return int(figures.uordblks + figures.hblkhd)


def check_growth(footprints: Sequence[Footprint]) -> None:
    """Compare the footprints after the warm-up and after each window.

    What is held may not grow. Pages may, when more was held for a moment than ever before (how
    many requests wait for their traces hangs on the machine's load): they have to stand still in
    at least one window, as those of something that leaks never do.
    """
    before, after = footprints[0], footprints[-1]
    assert after.objects - before.objects < OBJECTS_MAX
    assert after.blocks - before.blocks < BLOCKS_MAX
    assert after.native_bytes - before.native_bytes < NATIVE_MAX_BYTES
    growth = [
        after.resident_bytes - before.resident_bytes for before, after in pairwise(footprints)
    ]
    assert min(growth) < RESIDENT_MAX_BYTES, growth
    assert after.threads == before.threads
    assert after.handles == before.handles


def test_one_step_is_not_a_leak_and_steady_growth_is() -> None:
    still = Footprint(80 * 2**20, 16 * 2**20, 60_000, 300_000, 5, 20)
    step = still._replace(resident_bytes=still.resident_bytes + 3 * 2**20)
    check_growth([still, step, step, step, step])
    per_request = {
        "resident_bytes": 120,
        "native_bytes": 60,
        "objects": 1,
        "blocks": 1,
    }
    for name, left in per_request.items():
        leaking = [
            still._replace(**{name: getattr(still, name) + left * WINDOW * window})
            for window in range(WINDOWS + 1)
        ]
        with pytest.raises(AssertionError):
            check_growth(leaking)


@pytest.fixture(params=TELEMETRY)
def manifest(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    # What telemetry remembers is bounded; with a small bound it is reached in the warm-up.
    monkeypatch.setattr(assembler, "_REMEMBERED_MAX", 256)
    model = ROOT / "manifests" / "quickstart" / "digits.onnx"
    text = 'manifest_version = 1\nname = "soak"\nstreams = { count = 2 }\n'
    text += f'[[models]]\nname = "digits"\npath = "{model}"\n{TELEMETRY[request.param]}'
    path = tmp_path / "soak.toml"
    path.write_text(text, encoding="utf-8")
    return path


def submit(runtime: aegis_pipe.Runtime, count: int) -> set[bytes]:
    """Run that many requests of one input, many at a time; return the different results.

    All have a deadline, which most never come near; one in ten has no time at all, and one in ten
    is cancelled.
    """
    image = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    under_way: deque[InferenceFuture] = deque()
    different: set[bytes] = set()
    for number in range(count):
        if len(under_way) == UNDER_WAY:
            different |= results(under_way.popleft())
        deadline = "0 ms" if number % 10 == 3 else "1 h"
        under_way.append(runtime.submit("digits", {"image": image}, deadline=deadline))
        if number % 10 == 7:
            under_way[-1].cancel()
    return different.union(*map(results, under_way))


def results(future: InferenceFuture) -> set[bytes]:
    """Wait for a request; return what it gave, if it came to its end."""
    if future.exception() is not None:
        return set()
    return {b"".join(array.tobytes() for array in future.result().values())}


def test_requests_leave_nothing_behind(manifest: Path) -> None:
    with aegis_pipe.open_pipeline(manifest) as runtime:
        different = submit(runtime, WARM_UP)
        footprints = [footprint()]
        for _ in range(WINDOWS):
            different |= submit(runtime, WINDOW)
            footprints.append(footprint())
        check_growth(footprints)
        statistics = runtime.statistics()
    requests = WARM_UP + WINDOWS * WINDOW
    assert statistics.allocations_after_start == 0
    (figures,) = statistics.models
    assert figures.completed + figures.expired + figures.cancelled == requests
    assert figures.completed >= 0.8 * requests
    assert figures.expired > 0.05 * requests
    assert len(different) == 1
    telemetry = runtime.report().telemetry
    if telemetry is not None:
        assert telemetry.exported_spans > requests
        assert (telemetry.dropped_events, telemetry.dropped_spans) == (0, 0)
        assert (telemetry.lost_log_lines, telemetry.abandoned_traces) == (0, 0)


def test_opening_and_closing_leaves_nothing_behind(manifest: Path) -> None:
    def run(times: int) -> None:
        for _ in range(times):
            with aegis_pipe.open_pipeline(manifest) as runtime:
                submit(runtime, 50)

    run(REOPENINGS)
    footprints = [footprint()]
    for _ in range(WINDOWS):
        run(REOPENINGS)
        footprints.append(footprint())
    check_growth(footprints)
