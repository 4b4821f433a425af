"""The end of a runtime."""

from __future__ import annotations

import gc
import json
import sys
import threading
import tomllib
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aegis_pipe
from aegis_pipe.manifest.conversion import manifest_from_table
from aegis_pipe.scheduling.recording import read_run
from aegis_pipe.threads import TURN_S
from tests.unit.app.small_models import WAIT_S, WEIGHT, Latch, Open, row


def test_after_close_nothing_is_taken_and_closing_again_is_harmless(
    opened: Open, product: str
) -> None:
    runtime = opened(m=product)
    runtime.infer("m", {"x": row()})
    runtime.close()
    for call in (runtime.submit, runtime.infer):
        with pytest.raises(aegis_pipe.RuntimeStoppedError):
            call("m", {"x": row()})
    runtime.close()
    report = runtime.report()
    assert report.statistics.models[0].completed == 1
    assert report.statistics.allocations_after_start == 0


def test_closing_finishes_what_was_taken(opened: Open, product: str, latch: Latch) -> None:
    runtime = opened(m=product, listeners=[latch])
    futures = [runtime.submit("m", {"x": row(i)}) for i in range(20)]
    assert latch.reached.wait(WAIT_S)
    latch.release()
    runtime.close()
    assert all(future.done() for future in futures)
    for i, future in enumerate(futures):
        expected = np.maximum(row(i) @ WEIGHT, 0)
        np.testing.assert_allclose(future.result()["y"], expected, rtol=1e-5, atol=1e-5)


def test_closing_while_others_submit_leaves_no_future_open(opened: Open, product: str) -> None:
    runtime = opened("[scheduler]", "queue_capacity = 100000", m=product)
    futures: list[list[Future[Any]]] = [[] for _ in range(4)]
    under_way = threading.Barrier(len(futures) + 1)

    def submit(own: list[Future[Any]]) -> None:
        own.append(runtime.submit("m", {"x": row()}))
        under_way.wait(WAIT_S)
        try:
            while True:
                own.append(runtime.submit("m", {"x": row()}))
        except aegis_pipe.RuntimeStoppedError:
            return

    threads = [threading.Thread(target=submit, args=(own,)) for own in futures]
    for thread in threads:
        thread.start()
    under_way.wait(WAIT_S)
    runtime.close()
    for thread in threads:
        thread.join(WAIT_S)
    everyone = [future for own in futures for future in own]
    assert all(future.done() for future in everyone)
    assert len({future.result()["y"].tobytes() for future in everyone}) == 1
    assert runtime.report().statistics.models[0].completed == len(everyone)


def test_full_collections_pass_over_what_a_runtime_is_made_of(opened: Open, product: str) -> None:
    """Searching all of a loaded model again and again would hold up requests."""
    runtime = opened(m=product)
    assert gc.get_freeze_count() > 10_000
    runtime.close()
    assert gc.get_freeze_count() == 0


def test_threads_take_short_turns_as_long_as_a_runtime_is_open(opened: Open, product: str) -> None:
    before_s = sys.getswitchinterval()
    try:
        sys.setswitchinterval(0.005)
        first, second = opened(m=product), opened(m=product)
        first.infer("m", {"x": row()})
        first.close()
        second.infer("m", {"x": row()})
        assert sys.getswitchinterval() == pytest.approx(TURN_S, abs=1e-6)
        second.close()
        assert sys.getswitchinterval() == pytest.approx(0.005)
    finally:
        sys.setswitchinterval(before_s)


def test_a_recording_keeps_what_a_replay_needs_and_no_access_token(
    opened: Open, product: str, tmp_path: Path
) -> None:
    otlp = 'endpoint = "http://127.0.0.1:9", headers = { authorization = "Bearer SECRET" }'
    lines = ("[scheduler]", "record = true", "[telemetry]", f"otlp = {{ {otlp} }}")
    runtime = opened(*lines, m=product)
    runtime.infer("m", {"x": row()})
    runtime.close()
    (recording,) = runtime.report().recordings
    header = read_run(recording.path).header
    assert "SECRET" not in json.dumps(header)
    assert manifest_from_table(tomllib.loads(header["manifest"]), tmp_path).models
