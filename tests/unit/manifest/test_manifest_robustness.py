"""Whatever stands in a file, the loader answers with a manifest or with its problems."""

import copy
import tomllib
from pathlib import Path

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings, strategies as st

from aegis_pipe.manifest import Manifest, ManifestError, load_manifest

GOOD = tomllib.loads("""\
manifest_version = 1
name = "street-corner"
device = { kind = "cpu", index = 0, memory_budget = "512 MiB" }
streams = { count = 2, max_block = "1 ms" }
scheduler = { policy = "edf", queue_capacity = 4, ageing = "0 ms" }
serve = { http = "127.0.0.1:8000", grpc = "127.0.0.1:8001" }
[[models]]
name = "detector"
path = "models/detector.onnx"
shapes = { images = [1, 3, 8, 8] }
memory_budget = "1 MiB"
period = "33 ms"
[[models]]
name = "encoder"
path = "models/encoder.onnx"
bind = { tokens = [[1, 2]], scale = 1.0, training = false }
[[pipelines]]
name = "camera"
source = { kind = "images", path = "frames", rate = "30/s" }
stages = [
  { name = "prepare", transform = "image_to_tensor", with = { size = [8, 8], mean = [1.0] } },
  { name = "detect", model = "detector", inputs = { images = "prepare.output" } },
]
sinks = [{ kind = "jsonl", path = "out/a.jsonl", input = ["detect.boxes"] }]
[[pipelines]]
name = "load"
source = { kind = "synthetic", outputs = { images = { shape = [1, 3, 8, 8] } } }
stages = [{ name = "detect", model = "detector" }]
[telemetry]
otlp = { endpoint = "http://127.0.0.1:4317" }
traces = { ratio = 0.05, always = ["error"], slow = "20 ms" }
log = { path = "out/log.jsonl" }
""")

JUNK = st.sampled_from(
    ["", "x", "a.b", "source.image", "20 ms", "1 MiB", "npz", "synthetic", "softmax", "detector",
     0, -1, 7, 2**70, 1.5, float("nan"), True, [], [1], [[1], [2, 3]], ["prepare.output"], {},
     {"x": 1}, {"kind": "images"}, [{}], [{"name": "detect"}]]
)  # fmt: skip


def _places(value, path=()):
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*path, key)
            yield from _places(value[key], (*path, key))


PLACES = list(_places(GOOD))


def _change(table, path, value) -> None:
    parent = table
    for key in path[:-1]:
        if not isinstance(parent, dict | list):
            return
        if isinstance(parent, list) and (not isinstance(key, int) or key >= len(parent)):
            return
        if isinstance(parent, dict) and key not in parent:
            return
        parent = parent[key]
    key = path[-1]
    if isinstance(parent, dict):
        if value is None:
            parent.pop(key, None)
        else:
            parent[str(key)] = value
    elif isinstance(parent, list) and isinstance(key, int) and key < len(parent):
        parent[key] = "gone" if value is None else value


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), st.none() | JUNK), max_size=4))
def test_changed_manifests(folder: Path, inspector, changes) -> None:
    table = copy.deepcopy(GOOD)
    for path, value in changes:
        _change(table, path, copy.deepcopy(value))
    Path("manifest.toml").write_text(tomli_w.dumps(table), "utf-8")
    try:
        manifest = load_manifest("manifest.toml", inspect_model=inspector)
    except ManifestError as error:
        problems = error.problems
        assert changes
        assert all(problem.line > 0 and problem.what for problem in problems)
    else:
        assert isinstance(manifest, Manifest)


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_each_key_is_checked_for_its_type(folder: Path, path) -> None:
    table = copy.deepcopy(GOOD)
    _change(table, path, [{"no": [0]}])
    Path("manifest.toml").write_text(tomli_w.dumps(table), "utf-8")
    with pytest.raises(ManifestError):
        load_manifest("manifest.toml")
