"""Results as long as the data says: planned at their most, trimmed to what is true."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from models import load, parse
from onnx import TensorProto, helper

import aegis_pipe
from aegis_pipe.clock import SystemClock
from aegis_pipe.device import open_device
from aegis_pipe.errors import UnsupportedOperatorError
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.saved_ir import load_graph, save_graph
from aegis_pipe.execution.standalone import StandaloneGraph


@pytest.fixture(scope="module")
def place() -> Iterator[tuple]:
    clock = SystemClock()
    with open_device("cpu", clock=clock).context as context:
        stream = context.create_stream(0)
        yield context, stream, clock
        stream.close()


def run(
    place: tuple, graph: ExecutionGraph, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    with StandaloneGraph(graph, *place) as standalone:
        assert not standalone.compiled.reference_steps
        return standalone.run(inputs)


def assert_same_as_onnxruntime(
    place: tuple, model: onnx.ModelProto, *every: Mapping[str, np.ndarray]
) -> None:
    """Run one loaded graph on several inputs, whose results differ in length."""
    graph = load(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    with StandaloneGraph(graph, *place) as standalone:
        assert not standalone.compiled.reference_steps
        for inputs in every:
            found = standalone.run(inputs)
            names = [value.name for value in session.get_outputs()]
            assert list(found) == names
            for name, expected in zip(names, session.run(names, dict(inputs)), strict=True):
                assert found[name].shape == expected.shape
                np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)


SUPPRESSION = """
agraph (float[1, 50, 4] boxes, float[1, 3, 50] scores)
    => (float[N, 4] kept, float[N] sure, int64[N] kinds, float[N, 6] rows)
    <int64 most = {20}, float[1] overlap = {0.5}, float[1] least = {0.6}, int64 two = {2},
     int64 one = {1}, int64[1] last = {-1}, int64[1] first = {0}, int64[2] flat = {-1, 4},
     int64[2] columns = {1, 3}, int64[2] column = {1, 2}> {
    picked = NonMaxSuppression (boxes, scores, most, overlap, least)
    places = Gather <axis = 1> (picked, two)
    kinds = Gather <axis = 1> (picked, one)
    every = Reshape (boxes, flat)
    kept = Gather <axis = 0> (every, places)
    by_box = Transpose <perm = [0, 2, 1]> (scores)
    flat_scores = Squeeze (by_box, first)
    axis = Constant <value = int64[1] {1}> ()
    pair = Constant <value = int64[1] {3}> ()
    where = Slice (picked, column, pair, axis)
    turned = Constant <value = int64[2] {1, 0}> ()
    swapped = Gather <axis = 1> (where, turned)
    sure = GatherND (flat_scores, swapped)
    tall = Unsqueeze (sure, last)
    kinds_as_numbers = Cast <to = 1> (kinds)
    tall_kinds = Unsqueeze (kinds_as_numbers, last)
    rows = Concat <axis = 1> (kept, tall, tall_kinds)
}
"""


def detections(seed: int, shift: float) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    corners = generator.uniform(0, 10, (1, 50, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(1, 4, (1, 50, 2))], axis=2)
    scores = generator.uniform(0, 1, (1, 3, 50)) - shift
    return {"boxes": boxes.astype(np.float32), "scores": scores.astype(np.float32)}


def test_a_detectors_tail(place: tuple) -> None:
    model = parse(SUPPRESSION.replace("int64[2] column = {1, 2}", "int64[1] column = {1}"))
    assert_same_as_onnxruntime(
        place, model, detections(0, 0.0), detections(1, 0.3), detections(2, 5.0)
    )


MASKED = """
agraph (float[4, 6] x, bool[4, 6] mask)
    => (float[N] chosen, float total, float[N] shares, int64 best, float[N, N] pairs,
        float[K] sorted, int64[R, S] twice)
    <int64[1] three = {3}, int64[1] first = {0}, int64[1] axis = {1}> {
    places = NonZero (mask)
    by_element = Transpose (places)
    chosen = GatherND (x, by_element)
    scaled = Mul (chosen, chosen)
    total = ReduceSum <keepdims = 0> (scaled)
    shares = Softmax <axis = 0> (chosen)
    best = ArgMin <keepdims = 0> (shares)
    column = Unsqueeze (chosen, axis)
    row = Unsqueeze (chosen, first)
    pairs = MatMul (column, row)
    size = Shape (chosen)
    k = Min (size, three)
    sorted, order = TopK (chosen, k)
    twice = NonZero (scaled)
}
"""


def masked(seed: int, share: float) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "x": generator.standard_normal((4, 6)).astype(np.float32) - 3,
        "mask": generator.uniform(size=(4, 6)) < share,
    }


def test_what_is_made_of_a_mask(place: tuple) -> None:
    assert_same_as_onnxruntime(place, parse(MASKED), masked(0, 0.5), masked(1, 0.1), masked(2, 1.0))


def test_nothing_at_all_is_a_result_too(place: tuple) -> None:
    found = run(place, load(parse(MASKED)), masked(0, 0.0))
    assert found["chosen"].shape == (0,)
    assert found["pairs"].shape == (0, 0)
    assert found["total"] == 0


def test_shapes_made_of_a_length(place: tuple) -> None:
    text = """
    agraph (float[8, 2] x, bool[8] keep) => (float[N, 2] y, int64[N] numbers, float[N, 3] wide)
    <int64 zero = {0}, int64 one = {1}, int64[1] width = {3}, int64[1] first = {0},
     float[1, 3] ones = {1.0, 1.0, 1.0}> {
        kept = Compress <axis = 0> (x, keep)
        size = Shape (kept)
        blank = ConstantOfShape <value = float[1] {2.0}> (size)
        y = Add (kept, blank)
        count = Gather (size, zero)
        numbers = Range (zero, count, one)
        high = Unsqueeze (count, first)
        target = Concat <axis = 0> (high, width)
        wide = Expand (ones, target)
    }
    """
    x = np.arange(16, dtype=np.float32).reshape(8, 2)
    every = [
        {"x": x, "keep": np.array([bits >> i & 1 for i in range(8)], np.bool_)}
        for bits in (0b1011, 0xFF, 0b1)
    ]
    assert_same_as_onnxruntime(place, parse(text), *every)


def test_unique_by_rows_and_by_first_place(place: tuple) -> None:
    text = """
    agraph (int64[6, 2] x) => (int64[N, 2] y, int64[N] first, int64[6] inverse, int64[N] counts,
                               int64[M] flat) {
        y, first, inverse, counts = Unique <axis = 0, sorted = 0> (x)
        flat = Unique (x)
    }
    """
    rows = np.array([[3, 1], [1, 2], [3, 1], [0, 0], [1, 2], [3, 1]])
    assert_same_as_onnxruntime(place, parse(text), {"x": rows}, {"x": np.zeros_like(rows)})


def refusal(nodes: str) -> str:
    text = f"agraph (float[3, 4] x) => (float[N] y) {{ p = NonZero (x) {nodes} }}"
    with pytest.raises(UnsupportedOperatorError) as caught:
        load(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "operator"),
    [
        ("y = ReverseSequence (p, p)", "ReverseSequence"),
        ("y = Concat <axis = 1> (p, p)", "Concat"),
        ("q = NonZero (x) y = Add (p, q)", "Add"),
        ("q = NonZero (p) y = Add (p, q)", "Add"),
        ("n = Size (p) y = Identity (n)", "Size"),
        ("y = GatherElements <axis = 0> (p, p)", "GatherElements"),
    ],
)
def test_what_can_not_follow_a_length_is_refused(nodes: str, operator: str) -> None:
    message = refusal(nodes)
    assert f"`{operator}_" in message
    assert f"({operator})" in message
    assert "of opset 17 can not follow" in message
    assert "the nearest operator that can is" in message


def test_the_length_comes_back_with_a_saved_graph(place: tuple, tmp_path: Path) -> None:
    graph = load(parse(MASKED))
    save_graph(graph, tmp_path / "g.aegis")
    again = load_graph(tmp_path / "g.aegis")
    assert (again.lengths, again.results) == (graph.lengths, graph.results)
    for name, array in run(place, graph, masked(0, 0.4)).items():
        np.testing.assert_array_equal(array, run(place, again, masked(0, 0.4))[name])


def test_requests_get_results_of_their_true_length(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("NonZero", ["x"], ["places"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [6])],
        [value("places", TensorProto.INT64, [1, "n"])],
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    text = 'manifest_version = 1\nname = "m"\n[[models]]\nname = "m"\npath = "m.onnx"\n'
    (tmp_path / "m.toml").write_text(text)
    with aegis_pipe.open_pipeline(tmp_path / "m.toml") as pipeline:
        assert list(pipeline.models["m"].outputs) == ["places"]
        for row in ([0, 1, 0, 2, 0, 0], [0] * 6, [1] * 6):
            found = pipeline.infer("m", {"x": np.float32(row)})
            assert found["places"].tolist() == [np.flatnonzero(row).tolist()]
