"""Ten thousand requests leave nothing behind: no device memory, no host memory, no handles."""

from __future__ import annotations

import gc
import sys
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest

import aegis_pipe
from aegis_pipe.scheduling.device_launcher import InferenceFuture
from aegis_pipe.telemetry import assembler
from tests.system.running import ROOT

REQUESTS = 10_000
UNDER_WAY = 32
REOPENINGS = 12

TELEMETRY = {
    "off": "",
    "on": """
[telemetry]
file = "traces.jsonl"
log = { path = "events.jsonl" }
traces = { ratio = 0.1 }
""",
}


class Footprint(NamedTuple):
    """What the process holds."""

    resident_bytes: int
    objects: int
    """Objects that the garbage collector tracks."""
    blocks: int
    """Blocks of Python's allocator, which numbers and texts take up too."""
    threads: int
    handles: int


# Noise of the allocator, the interpreter's caches and a histogram's new buckets; five thousand
# requests that left one object each behind would be far above.
RESIDENT_MAX_BYTES = 2 * 2**20
OBJECTS_MAX = 500
BLOCKS_MAX = 2_500


def footprint() -> Footprint:
    """Measure once telemetry has worked off what it holds: when the count stands still."""
    process = psutil.Process()
    counts = [-1, 0, 10**9]
    while max(counts) - min(counts) > OBJECTS_MAX // 10:
        # Longer than a finished request is held before it is judged and built.
        time.sleep(2.5 * assembler.SETTLE_NS / 1e9)
        gc.collect()
        counts = [*counts[1:], len(gc.get_objects())]
    return Footprint(
        process.memory_info().rss,
        counts[-1],
        sys.getallocatedblocks(),
        process.num_threads(),
        process.num_fds(),
    )


def check_growth(before: Footprint, after: Footprint) -> None:
    assert after.resident_bytes - before.resident_bytes < RESIDENT_MAX_BYTES
    assert after.objects - before.objects < OBJECTS_MAX
    assert after.blocks - before.blocks < BLOCKS_MAX
    assert after.threads == before.threads
    assert after.handles == before.handles


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
        different = submit(runtime, REQUESTS // 2)
        before = footprint()
        different |= submit(runtime, REQUESTS - REQUESTS // 2)
        check_growth(before, footprint())
        statistics = runtime.statistics()
    assert statistics.allocations_after_start == 0
    (figures,) = statistics.models
    assert figures.completed + figures.expired + figures.cancelled == REQUESTS
    assert figures.completed >= 0.8 * REQUESTS
    assert figures.expired > 0.05 * REQUESTS
    assert len(different) == 1
    telemetry = runtime.report().telemetry
    if telemetry is not None:
        assert telemetry.exported_spans > REQUESTS
        assert (telemetry.dropped_events, telemetry.dropped_spans) == (0, 0)
        assert (telemetry.lost_log_lines, telemetry.abandoned_traces) == (0, 0)


def test_opening_and_closing_leaves_nothing_behind(manifest: Path) -> None:
    def run() -> None:
        with aegis_pipe.open_pipeline(manifest) as runtime:
            submit(runtime, 50)

    for _ in range(3):
        run()
    before = footprint()
    for _ in range(REOPENINGS):
        run()
    check_growth(before, footprint())
