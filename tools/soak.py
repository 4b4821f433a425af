"""Run very many requests with every event on, and see that memory stands still.

    python tools/soak.py --requests 1000000 --json soak.json

Spans go to a real collector (`rotel`, which throws them away), every event to a log that rotates,
metrics to whoever asks. One request in ten has no time at all, one in ten is cancelled. After each
tenth of the requests everything is let settle and measured; exit status 1 if, in the second half,
the C library's allocator or Python's hands out more and more, or pages never stand still.
The small one that runs with the tests is `tests/system/test_soak.py`, whose measures these are.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import aegis_pipe  # noqa: E402
from tests.system import test_soak as small  # noqa: E402
from tools.bench_tracing import collector  # noqa: E402

WINDOWS = 10


def main() -> int:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--ratio", type=float, default=0.1, help="share of traces that are kept")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    with collector() as ports, tempfile.TemporaryDirectory() as folder:
        figures = soak(options.requests, options.ratio, ports["grpc"], Path(folder))
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0 if figures["flat"] else 1


def soak(requests: int, ratio: float, port: int, folder: Path) -> dict[str, object]:
    """Run the requests in windows; return what was measured after each."""
    model = ROOT / "manifests" / "quickstart" / "digits.onnx"
    (folder / "m.toml").write_text(
        'manifest_version = 1\nname = "soak"\nstreams = { count = 2 }\n'
        f'[[models]]\nname = "digits"\npath = "{model}"\n[telemetry]\n'
        f'otlp = {{ endpoint = "http://127.0.0.1:{port}" }}\ntraces = {{ ratio = {ratio} }}\n'
        'log = { path = "events.jsonl", max_size = "16 MiB", keep = 1 }\n'
        'metrics = { prometheus = "127.0.0.1:0" }\n'
    )
    footprints = []
    different: set[bytes] = set()
    start_s = time.perf_counter()
    with aegis_pipe.open_pipeline(folder / "m.toml") as runtime:
        for _ in range(WINDOWS):
            different |= small.submit(runtime, requests // WINDOWS)
            footprints.append(small.footprint())
            print(footprints[-1], file=sys.stderr, flush=True)
        (statistics,) = runtime.statistics().models
    ended = statistics.completed + statistics.expired + statistics.cancelled
    telemetry = runtime.report().telemetry
    assert telemetry is not None
    return {
        "requests": ended,
        "failed": statistics.failed,
        "different_results": len(different),
        "seconds": time.perf_counter() - start_s,
        "exported_spans": telemetry.exported_spans,
        "dropped_spans": telemetry.dropped_spans,
        "dropped_events": telemetry.dropped_events,
        "lost_log_lines": telemetry.lost_log_lines,
        "after_each_tenth": [footprint._asdict() for footprint in footprints],
        "flat": is_flat(footprints[WINDOWS // 2 - 1 :]),
    }


def is_flat(footprints: list[small.Footprint]) -> bool:
    """Return whether the second half grows by no more than noise."""
    try:
        small.check_growth(footprints)
    except AssertionError as error:
        print(error, file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
