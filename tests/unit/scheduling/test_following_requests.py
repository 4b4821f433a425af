"""Requests that follow each other within the segments in flight of one stream, on a real device."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from aegis_pipe import open_pipeline
from aegis_pipe.errors import KernelError
from aegis_pipe.events import Event, SegmentFinished

MANIFEST = """
manifest_version = 1
name = "following"
[streams]
in_flight = {in_flight}
[[models]]
name = "net"
path = "net.onnx"
"""
ROWS = 4
SIZE = 256
"""Of the matrices: segments take so much longer than launching one that requests queue up."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`x` float32[SIZE, SIZE], `row` int64[1] -> products of x, plus a row of a table."""
    dice = np.random.default_rng(3)
    weights = (dice.standard_normal((SIZE, SIZE)) / 16).astype(np.float32)
    table = dice.standard_normal((ROWS, SIZE)).astype(np.float32)
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Tanh", ["a"], ["b"]),
        node("Gather", ["table", "row"], ["r"], name="look_up"),
        node("Add", ["b", "r"], ["c"]),
        node("MatMul", ["c", "w"], ["d"]),
        node("Tanh", ["d"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [SIZE, SIZE]),
            helper.make_tensor_value_info("row", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [SIZE, SIZE])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "net.onnx")
    return tmp_path


def requests(count: int) -> list[dict[str, np.ndarray]]:
    dice = np.random.default_rng(4)
    return [
        {
            "x": dice.standard_normal((SIZE, SIZE)).astype(np.float32),
            # Every fifth is out of range: its request fails, and no other.
            "row": np.array([ROWS if number % 5 == 3 else number % ROWS]),
        }
        for number in range(count)
    ]


def run(
    folder: Path,
    wanted: list[dict[str, np.ndarray]],
    in_flight: int,
    cuts: tuple[int, ...],
    events: list[Event],
    *,
    stamped: bool = False,
) -> list[bytes | None]:
    """Submit everything at once; return the outputs, None of those that failed."""
    path = folder / f"{in_flight}.toml"
    path.write_text(MANIFEST.format(in_flight=in_flight))
    results: list[bytes | None] = []
    cut = {"net": cuts}
    with open_pipeline(path, listeners=[events.append], boundaries=cut) as runtime:
        runtime.stamps_kernels = stamped
        for future in [runtime.submit("net", each) for each in wanted]:
            error = future.exception(60)
            if error is None:
                results.append(future.result()["y"].tobytes())
            else:
                assert isinstance(error, KernelError)
                assert "look_up" in str(error)
                results.append(None)
        assert runtime.statistics().allocations_after_start == 0
    return results


@pytest.mark.parametrize(
    ("in_flight", "cuts"),
    # One segment, which has to be there twice; more than are in flight; as many; fewer.
    [(2, ()), (2, (1, 2)), (3, (1, 2)), (16, (1, 2))],
)
def test_each_request_has_its_own_result_and_error(
    folder: Path, in_flight: int, cuts: tuple[int, ...]
) -> None:
    wanted = requests(60)
    events: list[Event] = []
    alone = run(folder, wanted, 1, cuts, [])
    assert [number for number, result in enumerate(alone) if result is None] == list(
        range(3, 60, 5)
    )
    assert run(folder, wanted, in_flight, cuts, events) == alone
    segments = [event for event in events if isinstance(event, SegmentFinished)]
    first = {each.request_id: each.launch_ns for each in segments if each.segment == 0}
    last = {each.request_id: each.end_ns for each in segments}
    followed = sum(first[number + 1] < last[number] for number in first if number + 1 in first)
    assert followed > 0, "no request was launched behind another"
    # What a stream runs does not overlap, whoever it belongs to.
    segments.sort(key=lambda each: each.start_ns)
    for one, other in itertools.pairwise(segments):
        assert one.end_ns <= other.start_ns


def test_with_kernels_stamped_too(folder: Path) -> None:
    wanted = requests(20)
    events: list[Event] = []
    alone = run(folder, wanted, 1, (), [])
    assert run(folder, wanted, 2, (), events, stamped=True) == alone
    ran = [each for each in events if isinstance(each, SegmentFinished) and each.kernel_times]
    assert len(ran) == sum(result is not None for result in alone)
    for segment in ran:
        times = np.frombuffer(segment.kernel_times, np.int64)
        assert segment.start_ns <= times.min() <= times.max() <= segment.end_ns
