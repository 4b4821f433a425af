"""QDQ models on a GPU have the CPU's bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.device.registry import open_device
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.standalone import StandaloneGraph
from tests.unit.device.cuda import quantised_models

TYPES = [("QUInt8", "QInt8", False), ("QInt8", "QInt8", True), ("QUInt8", "QUInt8", False)]


def run(
    context: DeviceContext, graph: ExecutionGraph, x: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...]]:
    stream = context.create_stream(0)
    with StandaloneGraph(graph, context, stream, SystemClock()) as standalone:
        found = standalone.run({"x": x})["y"]
        kernels = standalone.kernels()
    stream.close()
    return found, kernels


@pytest.mark.parametrize("name", ["resnet", "encoder"])
@pytest.mark.parametrize(("data", "weights", "per_channel"), TYPES)
def test_as_the_cpu(
    context: DeviceContext, tmp_path: Path, name: str, data: str, weights: str, per_channel: bool
) -> None:
    model = getattr(quantised_models, name)()
    path = quantised_models.quantised(
        model, tmp_path, data=data, weights=weights, per_channel=per_channel
    )
    graph = ModelLoader().load(path, LoadOptions())
    shape = {"resnet": quantised_models.RESNET_INPUT, "encoder": quantised_models.ENCODER_INPUT}
    x = np.random.default_rng(1).standard_normal(shape[name]).astype(np.float32)
    found, kernels = run(context, graph, x)
    with open_device("cpu", clock=SystemClock()).context as cpu:
        expected, _ = run(cpu, graph, x)
    assert any("_bytes" in kernel for kernel in kernels)
    # Integers are the same; LayerNormalization and Softmax add up floats in another order.
    if name == "resnet":
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, atol=0.05 * expected.std())
