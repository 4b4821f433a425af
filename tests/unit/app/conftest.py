"""Small models, manifests of them, and runtimes that are closed again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import aegis_pipe
from tests.unit.app.small_models import FLOAT_ROW, WEIGHT, Latch, Open, Save, Write


@pytest.fixture
def latch() -> Iterator[Latch]:
    held = Latch()
    yield held
    held.release()


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save a model; inputs and outputs are given as name=(element type, shape)."""

    def make(
        name: str,
        nodes: list[onnx.NodeProto],
        inputs: dict[str, tuple[int, list[int]]],
        outputs: dict[str, tuple[int, list[int]]],
        **weights: np.ndarray,
    ) -> str:
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info(key, *value) for key, value in inputs.items()],
            [helper.make_tensor_value_info(key, *value) for key, value in outputs.items()],
            [numpy_helper.from_array(array, key) for key, array in weights.items()],
        )
        opsets = [helper.make_opsetid("", 17)]
        onnx.save(
            helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / f"{name}.onnx"
        )
        return f"{name}.onnx"

    return make


@pytest.fixture
def product(save: Save) -> str:
    """`x` float32[1, 64] -> MatMul -> Relu -> `y` float32[1, 64]."""
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Relu", ["product"], ["y"]),
    ]
    return save("product", nodes, {"x": FLOAT_ROW}, {"y": FLOAT_ROW}, weight=WEIGHT)


@pytest.fixture
def take(save: Save) -> str:
    """`rows` int64[2] -> Gather from four rows -> `y` float32[2, 64]."""
    node = helper.make_node("Gather", ["table", "rows"], ["y"], name="look_up")
    rows, found = (TensorProto.INT64, [2]), (TensorProto.FLOAT, [2, 64])
    return save("take", [node], {"rows": rows}, {"y": found}, table=WEIGHT[:4])


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a manifest with these models (name=path) and more lines."""

    def make(*lines: str, **models: str) -> Path:
        path = tmp_path / "manifest.toml"
        text = ["manifest_version = 1", 'name = "test"', *lines]
        for name, file in models.items():
            text += ["[[models]]", f'name = "{name}"', f'path = "{file}"']
        path.write_text("\n".join(text), encoding="utf-8")
        return path

    return make


@pytest.fixture
def opened(write: Write) -> Iterator[Open]:
    """Open a manifest of these models; closed at the end of the test."""
    with ExitStack() as stack:

        def make(*lines: str, listeners: Any = (), **models: str) -> aegis_pipe.Runtime:
            path = write(*lines, **models)
            return stack.enter_context(aegis_pipe.open_pipeline(path, listeners=listeners))

        yield make
