"""Copies on the GPU: beside another request's execution, through memory that was planned."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

import aegis_pipe
from aegis_pipe.events import CopyFinished, SegmentFinished

MANIFEST = """
manifest_version = 1
name = "copies"
[device]
kind = "{kind}"
memory_budget = "1 GiB"
[streams]
count = 2
max_block = "1 s"
[[models]]
name = "long"
path = "long.onnx"
[[models]]
name = "wide"
path = "wide.onnx"
"""
PRODUCTS = 24


def _write(folder: Path, kind: str, side: int, length: int) -> Path:
    """Write a model that computes for long, one that takes 32 bytes x `length`, and a manifest."""
    chain = "\n".join(f"p{n + 1} = MatMul(p{n}, w)" for n in range(PRODUCTS))
    head = '<ir_version: 9, opset_import: ["": 17]>'
    long = onnx.parser.parse_model(
        f"{head} long (float[1] s) => (float[1,1] y) <float[{side},{side}] w> "
        f"{{ p0 = Mul(w, s) {chain} y = ReduceMax<axes = [0, 1]>(p{PRODUCTS}) }}"
    )
    values = np.random.default_rng(1).standard_normal((side, side), np.float32) / side**0.5
    del long.graph.value_info[:]
    long.graph.initializer.append(numpy_helper.from_array(values, "w"))
    onnx.save(long, folder / "long.onnx")
    wide = onnx.parser.parse_model(
        f"{head} wide (float[8,{length}] x) => (float[8,1] y) {{ y = ReduceMax<axes = [1]>(x) }}"
    )
    onnx.save(wide, folder / "wide.onnx")
    path = folder / f"{kind}.toml"
    path.write_text(MANIFEST.format(kind=kind))
    return path


def _within(copies: Iterable[CopyFinished], segments: Iterable[SegmentFinished]) -> int:
    """Return how many copies began and ended while a segment ran on another stream."""
    spans = [(each.stream, each.start_ns, each.end_ns) for each in segments]
    return sum(
        any(
            stream != copy.stream and start <= copy.start_ns and copy.end_ns <= end
            for stream, start, end in spans
        )
        for copy in copies
    )


def copies_within(
    folder: Path, kind: str, side: int, length: int, tries: int
) -> tuple[int, list[CopyFinished], list[SegmentFinished]]:
    """Return how many copies of `wide` lay in an execution of `long`; and those, and these."""
    events: list[object] = []
    x = np.random.default_rng(2).standard_normal((8, length), np.float32)
    s = np.ones(1, np.float32)
    with aegis_pipe.open_pipeline(
        _write(folder, kind, side, length), listeners=[events.append]
    ) as runtime:
        for _ in range(tries):
            long = runtime.submit("long", {"s": s})
            wide = [runtime.submit("wide", {"x": x}) for _ in range(2)]
            for each in wide:
                np.testing.assert_array_equal(
                    each.result(timeout=60)["y"], x.max(axis=1, keepdims=True)
                )
            assert np.isfinite(long.result(timeout=60)["y"]).all()
        assert runtime.statistics().allocations_after_start == 0
    copies = [
        each
        for each in events
        if isinstance(each, CopyFinished) and (each.model, each.direction) == ("wide", "in")
    ]
    segments = [
        each for each in events if isinstance(each, SegmentFinished) and each.model == "long"
    ]
    return _within(copies, segments), copies, segments


def test_a_copy_in_runs_beside_another_streams_execution(tmp_path: Path) -> None:
    tries, length = 20, 1 << 20
    found, copies, segments = copies_within(tmp_path, "cuda", 4096, length, tries)
    assert [each.size_bytes for each in copies] == [32 * length] * 2 * tries
    assert found, f"no copy within an execution: {copies[:4]}, {segments[:4]}"


def test_a_copy_that_waits_is_not_found_within() -> None:
    """The measure itself: as a device would look whose copies wait for kernels."""
    segment = SegmentFinished(1, "long", 0, 0, 90, 100, 200, b"")

    def copy(stream: int, start_ns: int, end_ns: int) -> CopyFinished:
        return CopyFinished(2, "wide", stream, "in", 8, start_ns, end_ns)

    assert _within([copy(1, 110, 190)], [segment]) == 1
    assert not _within([copy(1, 110, 201), copy(1, 99, 190), copy(0, 110, 190)], [segment])


def test_the_staging_that_was_planned_is_enough(tmp_path: Path) -> None:
    length = 1 << 12
    rng = np.random.default_rng(3)
    requests = [rng.standard_normal((8, length), np.float32) for _ in range(10)]
    s = np.ones(1, np.float32)
    with aegis_pipe.open_pipeline(_write(tmp_path, "cuda", 64, length)) as runtime:
        planned = [each.size_bytes for each in runtime.plan.staging]
        assert planned == [32 * length + 256] * 2
        for _ in range(50):
            wide = [(x, runtime.submit("wide", {"x": x})) for x in requests]
            long = [runtime.submit("long", {"s": s}) for _ in requests]
            for x, future in wide:
                np.testing.assert_array_equal(
                    future.result(timeout=60)["y"], x.max(axis=1, keepdims=True)
                )
            for future in long:
                future.result(timeout=60)
        statistics = runtime.statistics()
    assert [each.reserved_bytes for each in statistics.staging] == planned
    # Both streams ran `wide`, or one ran all of it; neither needed more. Of ten that come at once
    # not all find a place where they can be staged ahead.
    assert 0 < statistics.staged_ahead < 500
    peaks = [each.peak_bytes for each in statistics.staging]
    assert max(peaks) == planned[0]
    assert statistics.allocations_after_start == 0
    assert sum(model.completed for model in statistics.models) == 1000


def test_inputs_are_staged_while_another_request_runs(tmp_path: Path) -> None:
    length, rng = 1 << 12, np.random.default_rng(4)
    s = np.ones(1, np.float32)
    manifest = _write(tmp_path, "cuda", 2048, length)
    manifest.write_text(manifest.read_text().replace("count = 2", "count = 1"))
    x = np.empty((8, length), np.float32)
    with aegis_pipe.open_pipeline(manifest) as runtime:
        assert runtime.plan.staging_ahead.part_bytes == x.nbytes
        for _ in range(50):
            # The very array is used again: what was staged for the last request is void.
            rng.standard_normal(out=x, dtype=np.float32)
            long = runtime.submit("long", {"s": s})
            wide = runtime.submit("wide", {"x": x})
            np.testing.assert_array_equal(
                wide.result(timeout=60)["y"], x.max(axis=1, keepdims=True)
            )
            assert np.isfinite(long.result(timeout=60)["y"]).all()
        assert runtime.statistics().staged_ahead == 50
        assert runtime.statistics().allocations_after_start == 0
