"""The nine real architectures that ONNX ships with expected outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_cases import LIGHT_MODELS

from aegis_pipe import onnx_backend

MODELS = sorted(LIGHT_MODELS.glob("*.onnx"))


def test_all_nine_are_there() -> None:
    assert len(MODELS) == 9


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_light_model_gives_the_shipped_output(path: Path) -> None:
    model = onnx.load(path)
    constant = {tensor.name for tensor in model.graph.initializer}
    (value,) = [value for value in model.graph.input if value.name not in constant]
    shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
    # As ONNX's own runner makes the inputs of these models.
    size = int(np.prod(shape))
    image = (np.arange(size).reshape(shape) / size).astype(np.float32)
    (result,) = onnx_backend.prepare(model).run([image])
    expected = onnx.TensorProto.FromString(path.with_name(f"{path.stem}_output_0.pb").read_bytes())
    np.testing.assert_allclose(result, onnx.numpy_helper.to_array(expected), rtol=1e-3, atol=1e-5)
