import os
from pathlib import Path

import pytest

from aegis_pipe.errors import ErrorCategory, PermanentError
from aegis_pipe.manifest import ManifestError, load_manifest
from aegis_pipe.manifest.model import (
    ConsoleSink,
    ImagesSource,
    ImageToTensor,
    Manifest,
    ModelFacts,
    StageSection,
    TensorFacts,
    TopK,
)

FULL = """\
manifest_version = 1
name = "street-corner"
[device]
kind = "auto"
memory_budget = "512 MiB"
[streams]
count = 2
max_block = "1.5 ms"
[scheduler]
policy = "json:JSONDecoder"
ageing = "0 ms"
[[models]]
name = "detector"
path = "models/detector.onnx"
shapes = { images = [1, 3, 8, 8] }
priority = 10
period = "33 ms"
deadline = "20 ms"
weight = 2
[[models]]
name = "encoder"
path = "models/encoder.onnx"
bind = { tokens = [[1, 2]], scale = 1, training = false }
[[pipelines]]
name = "camera"
source = { kind = "images", path = "frames/", rate = "30/s", repeat = true }
[[pipelines.stages]]
name = "prepare"
transform = "image_to_tensor"
with = { size = [8, 8], mean = 0, scale = [1, 2.5, 3] }
[[pipelines.stages]]
name = "detect"
model = "detector"
inputs = { images = "prepare.output" }
[[pipelines.stages]]
name = "best"
transform = "top_k"
inputs = { input = "detect.confidences" }
[[pipelines.sinks]]
kind = "console"
input = ["detect.boxes", "best.values"]
[telemetry]
traces = { ratio = 0, slow = "20 ms" }
[serve]
http = "[::1]:8000"
"""


def _load(folder: Path, text: str, inspector=None) -> Manifest:
    (folder / "manifest.toml").write_text(text, "utf-8")
    return load_manifest("manifest.toml", inspect_model=inspector)


def _problems(folder: Path, text: str, inspector=None) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        _load(folder, text, inspector)
    return [problem.what for problem in caught.value.problems]


def test_values_are_parsed(folder: Path, inspector) -> None:
    manifest = _load(folder, FULL, inspector)
    assert manifest.device.memory_budget_bytes == 512 * 2**20
    assert manifest.streams.max_block_ns == 1_500_000
    assert manifest.scheduler.policy == "json:JSONDecoder"
    assert manifest.scheduler.ageing_ns == 0
    detector, encoder = manifest.models
    assert detector.shapes == {"images": (1, 3, 8, 8)}
    assert (detector.period_ns, detector.deadline_ns) == (33_000_000, 20_000_000)
    assert type(detector.weight) is float
    assert encoder.bind == {"tokens": ((1, 2),), "scale": 1, "training": False}
    camera = manifest.pipelines[0]
    assert camera.source == ImagesSource("frames/", rate_per_s=30.0, repeat=True)
    assert camera.stages == (
        StageSection("prepare", ImageToTensor((8, 8), mean=(0.0,), scale=(1.0, 2.5, 3.0))),
        StageSection("detect", model="detector", inputs={"images": "prepare.output"}),
        StageSection("best", TopK(), inputs={"input": "detect.confidences"}),
    )
    assert camera.sinks == (ConsoleSink(("detect.boxes", "best.values")),)
    assert manifest.serve is not None
    assert manifest.serve.http == "[::1]:8000"
    assert manifest.service_name == "street-corner"
    assert manifest.model("encoder") is encoder


def test_what_a_stage_reads(folder: Path) -> None:
    camera = _load(folder, FULL).pipelines[0]
    assert camera.inputs_of(0, ("input",)) == {"input": "source.image"}
    assert camera.inputs_of(1, ("images",)) == {"images": "prepare.output"}
    without = FULL.replace('inputs = { images = "prepare.output" }\n', "")
    assert _load(folder, without).pipelines[0].inputs_of(1, ("images",)) == {
        "images": "prepare.images"
    }


def test_paths_start_from_the_manifest(folder: Path) -> None:
    manifest = load_manifest(_write(folder / "deep" / "manifest.toml", FULL, "../"))
    assert manifest.directory == folder / "deep"
    assert manifest.resolve("../models").samefile(folder / "models")
    assert manifest.resolve("/absolute") == Path("/absolute")


def _write(path: Path, text: str, prefix: str) -> Path:
    path.parent.mkdir()
    for name in ("models/", "frames/"):
        text = text.replace(f'"{name}', f'"{prefix}{name}')
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["brought_by_a_package", "data-of-a-package"])
def test_package_paths(folder: Path, name: str) -> None:
    package = folder / name
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('nobody should import this')")
    (folder / "models" / "classifier.onnx").rename(package / "classifier.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        manifest = _load(
            folder,
            'manifest_version = 1\nname = "a"\n[[models]]\nname = "b"\n'
            f'path = "package://{name}/classifier.onnx"\n',
        )
        assert manifest.resolve(manifest.models[0].path) == package / "classifier.onnx"


SENTENCE = ModelFacts(
    inputs={name: TensorFacts("int64", ("batch", "length")) for name in ("ids", "mask")},
    outputs={},
    weight_bytes=0,
)


def test_shapes_settle_the_symbols_that_other_inputs_share(folder: Path) -> None:
    head = (
        'manifest_version = 1\nname = "a"\n'
        '[[models]]\nname = "b"\npath = "models/classifier.onnx"\n'
    )

    def inspect(path: Path) -> ModelFacts:
        return SENTENCE

    manifest = _load(folder, head + "shapes = { ids = [1, 32] }\n", inspect)
    assert manifest.models[0].shapes == {"ids": (1, 32)}
    assert len(_problems(folder, head, inspect)) == 2


@pytest.mark.parametrize("name", ["no-such.toml", "no-such-folder/manifest.toml"])
def test_missing_file(folder: Path, name: str) -> None:
    with pytest.raises(ManifestError, match="there is no such file") as caught:
        load_manifest(name)
    assert caught.value.category is ErrorCategory.PERMANENT
    assert isinstance(caught.value, PermanentError)


def test_missing_file_names_manifests_nearby(folder: Path) -> None:
    (folder / "street.toml").touch()
    with pytest.raises(ManifestError) as caught:
        load_manifest("strete.toml")
    assert str(caught.value) == (
        "strete.toml: there is no such file\n  hint: manifests here: `street.toml`"
    )


def test_folder(folder: Path) -> None:
    with pytest.raises(ManifestError, match="models: this is a folder, not a manifest"):
        load_manifest("models")


def test_file_that_is_too_large(folder: Path) -> None:
    assert _problems(folder, "#" * (4 * 2**20 + 1)) == [
        "it is larger than 4 MiB, the most there is"
    ]


def test_problem_fields(folder: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        _load(folder, FULL.replace('"33 ms"', "33"))
    (problem,) = caught.value.problems
    assert (problem.file, problem.line, problem.column) == ("manifest.toml", 17, 10)
    assert problem.path == "models[0].period"
    assert problem.source_line == "period = 33"
    assert problem.hint == 'a duration is a string with a unit: "33 ms"'


def test_what_is_not_fit_for_a_terminal_is_not_shown(folder: Path) -> None:
    text = FULL.replace('"auto"', f'"\N{RIGHT-TO-LEFT OVERRIDE}{"long" * 60}"')
    with pytest.raises(ManifestError) as caught:
        _load(folder, text)
    (problem,) = caught.value.problems
    assert str(problem).replace("\n", "").isprintable()
    assert max(map(len, str(problem).splitlines())) < 200


def test_windows_line_ends(folder: Path) -> None:
    (folder / "manifest.toml").write_bytes(FULL.replace("\n", "\r\n").encode())
    assert load_manifest("manifest.toml") == _load(folder, FULL)


def test_nothing_is_inspected_without_an_inspector(folder: Path) -> None:
    assert _load(folder, FULL.replace("detector.onnx", "damaged.onnx")).models


def test_one_weight_file_counts_once(folder: Path, inspector) -> None:
    text = 'manifest_version = 1\nname = "a"\n[device]\nmemory_budget = "260 KiB"\n'
    for name in ("first", "second"):
        text += f'[[models]]\nname = "{name}"\npath = "models/encoder.onnx"\n'
        text += "shapes = { tokens = [1, 4] }\n"
    assert _load(folder, text, inspector).models


def test_like_with_bound_inputs(folder: Path, inspector) -> None:
    text = (
        'manifest_version = 1\nname = "a"\n[[models]]\nname = "encoder"\n'
        'path = "models/encoder.onnx"\nshapes = { tokens = [1, 4] }\n'
        "bind = { scale = 1.0, training = false }\n"
        '[[pipelines]]\nname = "load"\nsource = { kind = "synthetic", like = "encoder" }\n'
        '[[pipelines.stages]]\nname = "encode"\nmodel = "encoder"\n'
    )
    assert _load(folder, text, inspector).pipelines


def test_a_problem_of_one_key_is_told_once(folder: Path, inspector) -> None:
    text = FULL.replace('model = "detector"\n', 'model = "detctor"\n')
    assert _problems(folder, text, inspector) == ['there is no model "detctor"']


def test_names_that_are_missing_are_not_reported_where_they_are_used(folder: Path) -> None:
    text = FULL.replace('name = "detector"\n', "")
    assert _problems(folder, text) == ["missing key `name`"]


def test_a_pipe_in_the_place_of_a_pinned_model_is_refused_unread(tmp_path: Path) -> None:
    """Its digest would be waited for until somebody writes to it."""
    os.mkfifo(tmp_path / "m.onnx")
    (tmp_path / "m.toml").write_text(
        'manifest_version = 1\nname = "x"\n[[models]]\nname = "m"\npath = "m.onnx"\n'
        f'sha256 = "{0:064}"\n'
    )
    with pytest.raises(ManifestError, match="is no regular file"):
        load_manifest(tmp_path / "m.toml")
