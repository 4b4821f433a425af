"""What users do wrong gets one clear error; nothing hangs and nothing is silent."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.system import running
from tests.system.running import LOAD, aegis, save_model, small_nodes, start

IMAGES = """
[[pipelines]]
name = "pictures"
source = { kind = "images", path = "pictures" }
[[pipelines.stages]]
name = "prepare"
transform = "image_to_tensor"
with = { size = [2, 2], channels = "GRAY" }
[[pipelines.sinks]]
kind = "jsonl"
path = "out.jsonl"
input = "prepare.output"
"""


def error_of(path: Path, status: int) -> str:
    """Run `up`, expect a failure, and return its message, which is no traceback."""
    result = aegis("up", path, "--for", "5s")
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    assert "hint:" in result.stderr
    return result.stderr


def test_truncated_model(model_file: Path, write_manifest) -> None:
    model_file.write_bytes(model_file.read_bytes()[:60])
    message = error_of(write_manifest(LOAD), 2)
    assert "model.onnx" in message
    assert "cut short" in message


def test_not_a_model(model_file: Path, write_manifest) -> None:
    model_file.write_bytes(b"<html>404</html>" * 100)
    assert "not an ONNX model" in error_of(write_manifest(LOAD), 2)


def test_directory_as_model(tmp_path: Path, write_manifest) -> None:
    (tmp_path / "model.onnx").mkdir()
    assert "directory" in error_of(write_manifest(LOAD), 2)


def test_missing_model(write_manifest) -> None:
    assert "model.onnx" in error_of(write_manifest(LOAD), 2)


def test_missing_external_data(tmp_path: Path, write_manifest) -> None:
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "weight")
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y"])]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in "xy"]
    save_model(
        tmp_path / "model.onnx",
        nodes,
        [weight],
        value[:1],
        value[1:],
        save_as_external_data=True,
        location="weights.data",
        size_threshold=0,
    )
    (tmp_path / "weights.data").unlink()
    result = aegis("up", write_manifest(LOAD), "--for", "5s")
    assert result.returncode in (1, 2)
    assert "weights.data" in result.stderr
    assert "Traceback" not in result.stderr


def test_cyclic_graph(tmp_path: Path, write_manifest) -> None:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
        helper.make_node("Relu", ["b"], ["y"], name="third"),
    ]
    save_model(tmp_path / "model.onnx", nodes)
    result = aegis("up", write_manifest(LOAD), "--for", "5s")
    assert result.returncode in (1, 2)
    assert "cycle" in result.stderr
    assert "Traceback" not in result.stderr


def test_unknown_operator(tmp_path: Path, write_manifest) -> None:
    save_model(tmp_path / "model.onnx", [helper.make_node("Reluu", ["x"], ["y"], name="typo")])
    message = error_of(write_manifest(LOAD), 2)
    assert "Reluu" in message
    assert "Relu" in message


@pytest.mark.parametrize("text", ["nan MiB", "inf MiB", "-1 MiB", "12", ""])
def test_bad_sizes(model_file: Path, write_manifest, text: str) -> None:
    head = f'[device]\nmemory_budget = "{text}"'
    message = error_of(write_manifest(LOAD, head=head), 2)
    assert "manifest.toml:4:" in message
    assert "memory_budget" in message


def test_a_budget_too_small_names_the_cause(model_file: Path, write_manifest) -> None:
    head = '[device]\nmemory_budget = "100 B"'
    result = aegis("up", write_manifest(LOAD, head=head))
    assert result.returncode == 1
    assert "budget 100 B, needs" in result.stderr
    assert "raise `memory_budget` to" in result.stderr


def test_unwritable_sink(model_file: Path, write_manifest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sink = '[[pipelines.sinks]]\nkind = "jsonl"\npath = "file/out.jsonl"\ninput = "infer.y"\n'
    message = error_of(write_manifest(LOAD, sink), 2)
    assert "file/out.jsonl" in message


def test_a_sink_that_raises_in_the_middle(model_file: Path, write_manifest, tmp_path: Path) -> None:
    # /dev/full takes the opening and refuses the writing.
    if not Path("/dev/full").exists() or not stat.S_ISCHR(os.stat("/dev/full").st_mode):
        pytest.skip("this machine has no /dev/full")
    (tmp_path / "out.jsonl").symlink_to("/dev/full")
    sink = '[[pipelines.sinks]]\nkind = "jsonl"\npath = "out.jsonl"\ninput = "infer.y"\n'
    result = aegis("up", write_manifest(LOAD.replace("count = 20", "count = 2000"), sink))
    assert result.returncode == 1
    assert "can not be written: No space left on device" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_an_image_that_is_none(model_file: Path, write_manifest, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(pictures / "a.png")
    (pictures / "b.png").write_text("this is no picture")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(pictures / "c.png")
    result = aegis("up", write_manifest(IMAGES))
    assert result.returncode == 1
    assert "b.png` can not be read as an image" in result.stderr
    assert "2 items completed, 0 dropped, 1 failed" in result.stdout
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


def test_ctrl_c_during_the_run_is_a_clean_end(model_file: Path, write_manifest, tmp_path) -> None:
    load = LOAD.replace("count = 20", 'rate = "100/s"')
    telemetry = '[telemetry]\nfile = "traces.jsonl"\n'
    with start("up", write_manifest(load, telemetry)) as process:
        assert process.stderr is not None
        assert "1 model on cpu" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "pipeline load:" in output
    assert "0 lost" in output
    assert "Traceback" not in errors
    assert (tmp_path / "traces.jsonl").stat().st_size > 0


def test_ctrl_c_during_loading_ends_at_once(tmp_path: Path, write_manifest) -> None:
    _, weights = small_nodes()
    chain = [helper.make_node("Relu", ["x"], ["t0"])]
    chain += [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(20_000)]
    chain += [helper.make_node("MatMul", ["t20000", "weight"], ["y"])]
    save_model(tmp_path / "model.onnx", chain, weights)
    telemetry = '[telemetry]\nfile = "traces.jsonl"\nlog = { path = "events.jsonl" }\n'
    with start("up", write_manifest(LOAD, telemetry)) as process:
        while not (tmp_path / "events.jsonl").exists():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("arguments", [(), ("fly",), ("up",), ("up", "x", "--for", "soon")])
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    result = aegis(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_cuda_is_refused_where_there_is_none(model_file: Path, write_manifest) -> None:
    message = error_of(write_manifest(LOAD, head='[device]\nkind = "cuda"'), 1)
    assert "cuda" in message


FAILING_POLICY = """
from aegis_pipe.scheduling.policies.fifo import FifoPolicy

class Failing(FifoPolicy):
    def key(self, request, now_ns):
        if request.request_id == 10:
            raise RuntimeError("a policy's own mistake")
        return super().key(request, now_ns)
"""

ENDLESS = """
[[pipelines]]
name = "{0}"
source = {{ kind = "synthetic", like = "m", rate = "200/s" }}
stages = [{{ name = "infer", model = "m" }}]
"""


def test_a_runtime_that_fails_ends_pipelines_without_an_end(
    model_file: Path, write_manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_policy.py").write_text(FAILING_POLICY)
    path = write_manifest(
        *map(ENDLESS.format, ("one", "two")),
        head='[scheduler]\npolicy = "failing_policy:Failing"\n',
    )
    monkeypatch.setattr(running, "ROOT", f"{running.ROOT}{os.pathsep}{tmp_path}")
    result = aegis("up", path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "a policy's own mistake" in result.stderr
    # The summary tells of both, which is all that there is to be done for them.
    assert result.stdout.count("  stopped: ") == 2
    assert "FatalError" in result.stdout


def test_auto_says_what_it_chose(model_file: Path, write_manifest) -> None:
    """Before anything runs; the words are those of a machine with or without a GPU."""
    for kind, words in (("auto", ["device: `auto` chose "]), ("cpu", [])):
        path = write_manifest(LOAD, head=f'[device]\nkind = "{kind}"\n')
        result = aegis("up", path)
        assert result.returncode == 0
        found = [line for line in result.stderr.splitlines() if line.startswith("device: ")]
        assert [line[: len(words[0])] for line in found] == words
        if kind == "auto" and "chose cpu" in found[0]:
            assert "cuda is not available: " in found[0]
