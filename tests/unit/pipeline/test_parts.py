"""Sources, transforms and sinks on real files and arrays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aegis_pipe.errors import PipelineError
from aegis_pipe.pipeline.arrivals import make_arrivals
from aegis_pipe.pipeline.sinks import SINKS
from aegis_pipe.pipeline.sinks.accuracy import AccuracySink
from aegis_pipe.pipeline.sinks.console import ConsoleSink
from aegis_pipe.pipeline.sinks.jsonl import JsonlSink
from aegis_pipe.pipeline.sinks.npz import NpzSink
from aegis_pipe.pipeline.sources.images import ImageSource
from aegis_pipe.pipeline.sources.npz import NpzSource
from aegis_pipe.pipeline.sources.synthetic import SyntheticSource, SyntheticTensor
from aegis_pipe.pipeline.transforms.argmax import ArgMax
from aegis_pipe.pipeline.transforms.image_to_tensor import ImageToTensor
from aegis_pipe.pipeline.transforms.softmax import Softmax
from aegis_pipe.pipeline.transforms.top_k import TopK
from aegis_pipe.tensor import TensorSpec


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def test_periodic_arrivals_do_not_drift() -> None:
    arrivals = take(make_arrivals("periodic", 30.0, 0), 3001)
    assert arrivals[0] == 0
    assert arrivals[3000] == 100_000_000_000


def test_poisson_arrivals_are_seeded_and_have_the_rate() -> None:
    first = take(make_arrivals("poisson", 200.0, 7), 20_000)
    assert first == take(make_arrivals("poisson", 200.0, 7), 20_000)
    assert first != take(make_arrivals("poisson", 200.0, 8), 20_000)
    other = take(make_arrivals("poisson", 400.0, 7, "another pipeline"), 20_000)
    assert abs(np.corrcoef(np.diff(first), np.diff(other))[0, 1]) < 0.05
    assert first == sorted(first)
    assert first[-1] / 1e9 == pytest.approx(100.0, rel=0.05)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.full((4, 6, 3), 10, np.uint8)).save(folder / "2-b.png")
    Image.fromarray(np.full((4, 6), 7, np.uint8)).save(folder / "1-a.png")
    return folder


def test_images_come_in_order_of_their_names_with_labels(images: Path) -> None:
    source = ImageSource(path=images, labels="prefix", passes=2)
    items = list(source.items())
    assert [str(item["name"]) for item in items] == ["1-a.png", "2-b.png"] * 2
    assert [int(item["label"]) for item in items] == [1, 2] * 2
    assert items[0]["image"].shape == (4, 6, 1)
    assert items[1]["image"].shape == (4, 6, 3)


def test_an_image_that_is_none_fails_alone(images: Path) -> None:
    (images / "1-x.png").write_text("no picture")
    items = ImageSource(path=images).items()
    assert str(next(items)["name"]) == "1-a.png"
    with pytest.raises(PipelineError, match=r"1-x\.png` can not be read as an image"):
        next(items)
    assert str(next(items)["name"]) == "2-b.png"


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="nothing in"):
        ImageSource(path=tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="is not there"):
        ImageSource(path=tmp_path / "nowhere")


def test_a_file_without_a_number_has_no_label(images: Path) -> None:
    (images / "x-1.png").write_bytes((images / "1-a.png").read_bytes())
    with pytest.raises(PipelineError, match="no number before its first"):
        ImageSource(path=images, labels="prefix")


def test_npz_files_are_items(tmp_path: Path) -> None:
    for number in range(3):
        np.savez(tmp_path / f"{number}.npz", x=np.full(2, number), y=np.array(number))
    items = list(NpzSource(path=tmp_path).items())
    assert [int(item["y"]) for item in items] == [0, 1, 2]
    np.testing.assert_array_equal(items[1]["x"], [1, 1])


def test_an_npz_file_without_the_arrays_of_the_first_fails_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", x=np.zeros(1))
    np.savez(tmp_path / "1.npz", z=np.zeros(1))
    items = NpzSource(path=tmp_path).items()
    next(items)
    with pytest.raises(PipelineError, match="has no array `x`"):
        next(items)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"text"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(PipelineError, match=r"can not be read as an \.npz file"):
        NpzSource(path=tmp_path / "bad.npz")


def test_synthetic_values_are_seeded_and_in_range() -> None:
    tensors = {"x": SyntheticTensor(TensorSpec(np.dtype(np.float32), (2, 3)), -1.0, 1.0)}
    first, second = (list(SyntheticSource(tensors=tensors, seed=3, count=2).items()) for _ in "ab")
    np.testing.assert_array_equal(first[0]["x"], second[1]["x"])
    assert first[0]["x"].dtype == np.float32
    assert np.abs(first[0]["x"]).max() <= 1.0


def test_image_to_tensor_normalises_and_lays_out() -> None:
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    transform = ImageToTensor(size=(2, 3), mean=[1.0, 2.0, 3.0], scale=[0.5])
    output = transform({"input": image})["output"]
    expected = ((image.astype(np.float32) - [1.0, 2.0, 3.0]) * 0.5).transpose(2, 0, 1)[None]
    np.testing.assert_array_equal(output, expected.astype(np.float32))
    assert output.dtype == np.float32
    assert output.flags.c_contiguous


def test_image_to_tensor_resizes_and_converts() -> None:
    image = np.zeros((10, 20, 1), np.uint8)
    transform = ImageToTensor(size=[4, 8], channels="RGB", layout="NHWC")
    assert transform({"input": image})["output"].shape == (1, 4, 8, 3)


def test_image_to_tensor_swaps_channels() -> None:
    image = np.array([[[1, 2, 3]]], np.uint8)
    output = ImageToTensor(size=(1, 1), scale=[1.0], channels="BGR")({"input": image})["output"]
    assert output.reshape(-1).tolist() == [3.0, 2.0, 1.0]


def test_image_to_tensor_refuses_what_is_no_picture() -> None:
    with pytest.raises(PipelineError, match="expected uint8"):
        ImageToTensor(size=(2, 2))({"input": np.zeros((2, 2), np.float32)})


def test_image_to_tensor_refuses_a_mean_for_other_channels() -> None:
    with pytest.raises(PipelineError, match="`mean` has 2 values for 3 channels"):
        ImageToTensor(size=(2, 2), mean=[1.0, 2.0])


def test_softmax_is_stable_and_sums_to_one() -> None:
    output = Softmax()({"input": np.array([[1000.0, 1001.0], [-5.0, -5.0]])})["output"]
    np.testing.assert_allclose(output.sum(-1), 1.0)
    np.testing.assert_allclose(output[1], 0.5)


def test_top_k_is_stable_and_labelled() -> None:
    result = TopK(k=2, labels=["a", "b", "c"])({"input": np.array([[1.0, 3.0, 3.0]])})
    np.testing.assert_array_equal(result["indices"], [[1, 2]])
    assert result["labels"].tolist() == [["b", "c"]]


def test_top_k_larger_than_the_axis_is_refused() -> None:
    with pytest.raises(PipelineError, match="`k` is 4"):
        TopK(k=4)({"input": np.zeros(3)})


def test_argmax_takes_the_first_of_equals() -> None:
    assert ArgMax()({"input": np.array([1, 3, 3])})["output"] == 1


def test_jsonl_keeps_every_item_and_no_bad_number(tmp_path: Path) -> None:
    sink = JsonlSink(inputs=("a.x",), path=tmp_path / "new" / "out.jsonl")
    sink.write(0, {"a.x": np.array([1.5, np.nan])})
    sink.write(1, {"a.x": np.array("text")})
    assert "2 lines" in sink.close()
    lines = (tmp_path / "new" / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"item": 0, "a.x": [1.5, None]},
        {"item": 1, "a.x": "text"},
    ]


def test_the_npz_source_reads_what_the_npz_sink_writes(tmp_path: Path) -> None:
    sink = NpzSink(inputs=("a.x",), path=tmp_path / "out")
    sink.write(0, {"a.x": np.arange(3)})
    sink.write(1, {"a.x": np.arange(4.0)})
    assert "2 files" in sink.close()
    items = list(NpzSource(path=tmp_path / "out").items())
    np.testing.assert_array_equal(items[1]["a.x"], np.arange(4.0))


@pytest.mark.parametrize("kind", ["jsonl", "npz"])
def test_a_sink_that_can_not_be_written_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PipelineError, match="can not be written"):
        SINKS[kind](inputs=("a.x",), path=tmp_path / "file" / "out")


def test_console_shows_little_of_much() -> None:
    lines: list[str] = []
    sink = ConsoleSink(inputs=("a.x",), write_line=lines.append, every=2)
    for item in range(3):
        sink.write(item, {"a.x": np.arange(100) / 3})
    assert len(lines) == 2
    assert lines[0].startswith("item 0: a.x = [0, 0.3333, 0.6667")
    assert "(100 in all)" in lines[0]


def test_accuracy_counts() -> None:
    sink = AccuracySink(inputs=("p", "e"))
    for item, (predicted, expected) in enumerate([(1, 1), (2, 1), (3, 3), (4, 4)]):
        sink.write(item, {"p": np.array([predicted]), "e": np.array(expected)})
    assert sink.close() == "accuracy: 75.00% of 4 right"
