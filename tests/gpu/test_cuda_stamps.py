"""The GPU's stamps beside CUPTI, which times kernels by themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from aegis_pipe.cli import main


def test_stamps_are_what_cupti_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cupti", reason="no cupti-python")
    chain = "\n".join(f"p{n + 1} = MatMul(p{n}, w) r{n} = Relu(p{n + 1})" for n in range(8))
    outputs = ", ".join(f"float[512,512] r{n}" for n in range(8))
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 17]> net (float[512,512] p0) => ({outputs}) '
        f"<float[512,512] w> {{ {chain} }}"
    )
    del model.graph.value_info[:]
    values = np.random.default_rng(1).standard_normal((512, 512), np.float32) / 512**0.5
    model.graph.initializer.append(numpy_helper.from_array(values, "w"))
    onnx.save(model, tmp_path / "net.onnx")
    path = tmp_path / "m.toml"
    path.write_text(
        'manifest_version = 1\nname = "m"\n[device]\nkind = "cuda"\n'
        '[[models]]\nname = "net"\npath = "net.onnx"\n'
    )
    code = main(["profile", str(path), "--validate-stamps", "--json"])
    printed = capsys.readouterr().out
    print(printed)
    (found,) = json.loads(printed)
    # The last Relu is part of its product; products may be several kernels, and are left out then.
    assert len(found["kernels"]) >= 7
    assert (code, found["passed"]) == (0, True)
