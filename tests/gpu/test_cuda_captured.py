"""Kernels and fills are launched by graphs alone: direct launches slow down graphs that follow."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper as oh

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.registry import open_device
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.standalone import StandaloneGraph


def _save(path: Path) -> None:
    """Save a convolution by a library, a residual, a product with its activation, a Softmax."""
    generator = np.random.default_rng(3)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        values = generator.standard_normal(shape).astype(np.float32)
        return onnx.numpy_helper.from_array(values, name)

    nodes = [
        oh.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        oh.make_node("Add", ["c", "x"], ["r"]),
        oh.make_node("Relu", ["r"], ["a"]),
        oh.make_node("GlobalAveragePool", ["a"], ["g"]),
        oh.make_node("Flatten", ["g"], ["f"]),
        oh.make_node("Gemm", ["f", "m"], ["p"]),
        oh.make_node("Softmax", ["p"], ["y"]),
    ]
    graph = oh.make_graph(
        nodes,
        "net",
        [oh.make_tensor_value_info("x", 1, [1, 32, 17, 17])],
        [oh.make_tensor_value_info("y", 1, [1, 72])],
        [constant("w", 32, 32, 3, 3), constant("b", 32), constant("m", 32, 72)],
    )
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_nothing_is_launched_directly(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aegis_pipe.device.cuda import driver

    # No choices yet: all are measured.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    captures, calls, direct = [False], [0], []

    def watch(name: str) -> None:
        inner = getattr(driver, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if not captures[0]:
                direct.append(name)
            return inner(*arguments, **options)

        monkeypatch.setattr(driver, name, call)

    def within(name: str, value: bool) -> None:
        inner = getattr(driver, name)

        def call(*arguments: Any, **options: Any) -> Any:
            captures[0] = value
            return inner(*arguments, **options)

        monkeypatch.setattr(driver, name, call)

    for name in ("launch", "enqueue_copy", "enqueue_fill"):
        watch(name)
    within("begin_capture", True)
    within("end_capture", False)
    within("abandon_capture", False)

    path = tmp_path / "net.onnx"
    _save(path)
    clock = SystemClock()
    graph = ModelLoader().load(path, LoadOptions(name="net"))
    with open_device("cuda", clock=clock).context as context, contextlib.ExitStack() as stack:
        stream = context.create_stream(0)
        stack.callback(stream.close)
        standalone = stack.enter_context(StandaloneGraph(graph, context, stream, clock, precision))
        for _ in range(3):
            standalone.run({"x": np.ones((1, 32, 17, 17), np.float32)})
        standalone.kernel_times_ns()
    assert not direct, direct
    assert calls[0] > 15, "little was measured"
