from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper

from aegis_pipe import onnx_backend
from aegis_pipe.clock import Clock
from aegis_pipe.device.registry import OpenedDevice
from aegis_pipe.errors import DeviceUnavailableError, InvalidInputError

RESHAPE = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[N] x, int64[R] shape) => (float[A, B] y) { a = Relu (x) y = Reshape (a, shape) }
"""


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Inputs of every graph that was compiled."""
    seen: list[tuple[str, ...]] = []

    class Noted(onnx_backend.StandaloneGraph):
        def __init__(self, graph: onnx_backend.ExecutionGraph, *device: Any) -> None:
            seen.append(graph.inputs)
            super().__init__(graph, *device)

    monkeypatch.setattr(onnx_backend, "StandaloneGraph", Noted)
    return seen


def test_operands_that_decide_shapes_become_constants(
    compilations: list[tuple[str, ...]],
) -> None:
    rep = onnx_backend.prepare(onnx.parser.parse_model(RESHAPE))
    x = np.arange(6, dtype=np.float32)
    for shape in ([2, 3], [3, 2], [2, 3]):
        (y,) = rep.run([x, np.array(shape)])
        np.testing.assert_array_equal(y, x.reshape(shape))
    (y,) = rep.run({"x": x + 1, "shape": np.array([2, 3])})
    np.testing.assert_array_equal(y, (x + 1).reshape(2, 3))
    assert compilations == [("x",), ("x",)]


def test_each_shape_is_compiled_once_and_few_are_kept(
    compilations: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_backend, "COMPILED_GRAPHS_MAX", 2)
    rep = onnx_backend.prepare(onnx.parser.parse_model(RESHAPE))
    for size in (2, 4, 2, 6, 2, 4):
        rep.run([np.zeros(size, np.float32), np.array([size // 2, 2])])
    # 2 and 4 are new, 6 drops 4, and 4 is compiled again.
    assert len(compilations) == 4


def test_single_nodes() -> None:
    node = helper.make_node("Slice", ["x", "starts", "ends"], ["y"])
    x = np.arange(5, dtype=np.float32)
    (y,) = onnx_backend.run_node(node, [x, np.array([1]), np.array([3])])
    assert y.tolist() == [1, 2]


def test_models_run_at_once() -> None:
    x = np.float32([-1, 2])
    (y,) = onnx_backend.run_model(onnx.parser.parse_model(RESHAPE), [x, np.array([1, 2])])
    assert y.tolist() == [[0, 2]]


def test_devices_and_compatibility() -> None:
    model = onnx.parser.parse_model(RESHAPE)
    assert onnx_backend.supports_device("CPU")
    assert onnx_backend.is_compatible(model)
    model.graph.node[0].op_type = "Unheard"
    assert not onnx_backend.is_compatible(model)


@pytest.mark.parametrize("device", ["TPU", "", "CUDA:x", "CUDA:-1", "CPU:0:0"])
def test_devices_of_no_such_name(device: str) -> None:
    assert not onnx_backend.supports_device(device)
    with pytest.raises(InvalidInputError, match="is not supported") as caught:
        onnx_backend.prepare(onnx.parser.parse_model(RESHAPE), device)
    assert caught.value.hint == "use `CPU`, `CUDA` or `CUDA:1`"


def test_a_device_that_is_not_here_is_told_as_in_a_manifest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By its index, too: another one never takes its place."""

    def refuse(kind: str, *, index: int, clock: Clock) -> OpenedDevice:
        raise DeviceUnavailableError(f"there is no {kind} {index}", hint="install it")

    monkeypatch.setattr(onnx_backend, "open_device", refuse)
    assert not onnx_backend.supports_device("CUDA:3")
    with pytest.raises(DeviceUnavailableError, match="there is no cuda 3") as caught:
        onnx_backend.prepare(onnx.parser.parse_model(RESHAPE), "CUDA:3")
    assert caught.value.hint == "install it"


def test_inputs_that_do_not_fit() -> None:
    rep = onnx_backend.prepare(onnx.parser.parse_model(RESHAPE))
    with pytest.raises(InvalidInputError, match="takes 2 inputs, got 3"):
        rep.run([1, 2, 3])
    with pytest.raises(InvalidInputError, match="is a sequence"):
        rep.run([[np.zeros(2)], np.array([1, 2])])
