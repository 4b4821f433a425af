"""A second start finds what the first has compiled and measured, and gives the same bits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import aegis_pipe
from aegis_pipe.cli import main

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda import driver, tuning

MANIFEST = """
manifest_version = 1
name = "start"
[device]
kind = "cuda"
[[models]]
name = "net"
path = "net.onnx"
precision = "{precision}"
"""
SHAPES = {"v": (64, 64, 3, 3), "w": (64, 128), "u": (128, 32)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A convolution, products and a chain: what libraries and our own compiler are asked for."""
    net = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17]> net (float[1,64,14,14] x) => (float[1,32] y) {'
        "c = Conv<pads = [1, 1, 1, 1]>(x, v) r = Relu(c) g = GlobalAveragePool(r) f = Flatten(g) "
        "m = MatMul(f, w) t = Tanh(m) e = Mul(t, m) z = MatMul(e, u) y = Softmax(z) }"
    )
    del net.graph.value_info[:]
    random = np.random.default_rng(1)
    for name, shape in SHAPES.items():
        values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        net.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    onnx.save(net, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_second_start_compiles_and_measures_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(model.parent / "cache"))
    work: Counter[str] = Counter()

    def counted(owner: object, name: str) -> None:
        function = getattr(owner, name)

        def counting(*arguments: object, **options: object) -> object:
            work[name] += 1
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, counting)

    counted(driver, "compile_cubin")
    counted(tuning.Tuner, "fastest")
    path = model.with_name("start.toml")
    path.write_text(MANIFEST.format(precision=precision))
    x = np.random.default_rng(2).standard_normal((1, 64, 14, 14), np.float32)
    results, found = [], []
    for _ in range(2):
        work.clear()
        with aegis_pipe.open_pipeline(path) as runtime:
            results.append(runtime.infer("net", {"x": x})["y"].tobytes())
        found.append(dict(work))
    assert found[0]["compile_cubin"] > 0
    assert found[0]["fastest"] > 0
    assert found[1] == {}
    assert results[0] == results[1]


def test_verify_tells_how_far_each_precision_is(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("fp32", "tf32", "fp16", "bf16")
    options = ("--device", "cuda", "--reference", "onnx", "--json", "--precision", *names)
    status = main(["verify", str(model), *options])
    rows = json.loads(capsys.readouterr().out)["models"]
    print(rows)
    assert status == 0
    assert [row["precision"] for row in rows] == list(names)
