"""QDQ models on the GPU's kernels run in bytes, on tensor cores, with the CPU's bits.

The kernels' sources run on the host, see `host_device`; a warp's product is done there as PTX
describes it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.cpu.context import CpuContext
from aegis_pipe.device.registry import open_device
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.standalone import StandaloneGraph
from aegis_pipe.kernel import KernelRequest

driver = pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.kernels import KERNELS  # noqa: E402
from aegis_pipe.device.cuda.kernels.registry import Machine  # noqa: E402
from tests.unit.device.cuda import host_device, quantised_models  # noqa: E402
from tests.unit.device.cuda.byte_models import integers  # noqa: E402
from tests.unit.device.cuda.test_kernel_sources import sources_of  # noqa: E402

pytestmark = pytest.mark.skipif(host_device.COMPILER is None, reason="no g++")

TYPES = [("QUInt8", "QInt8", False), ("QInt8", "QInt8", True), ("QUInt8", "QUInt8", False)]


def run(
    context: CpuContext, graph: ExecutionGraph, inputs: dict[str, np.ndarray]
) -> tuple[np.ndarray, StandaloneGraph]:
    stream = context.create_stream(0)
    with StandaloneGraph(graph, context, stream, SystemClock()) as standalone:
        found = standalone.run(inputs)["y"]
    stream.close()
    return found, standalone


def on_both(graph: ExecutionGraph, inputs: dict[str, np.ndarray]) -> Counter[str]:
    """Run a graph on the CPU and on the GPU's kernels; assert equal bits, return the kernels."""
    with open_device("cpu", clock=SystemClock()).context as context:
        expected, _ = run(context, graph, inputs)
    with host_device.HostContext(SystemClock()) as context:
        found, standalone = run(context, graph, inputs)
    assert expected.std() > 0
    np.testing.assert_array_equal(found, expected)
    return Counter(standalone.kernels())


@pytest.mark.parametrize(("data", "weights", "per_channel"), TYPES)
def test_a_residual_network_runs_in_bytes(
    tmp_path: Path, data: str, weights: str, per_channel: bool
) -> None:
    path = quantised_models.quantised(
        quantised_models.resnet(), tmp_path, data=data, weights=weights, per_channel=per_channel
    )
    graph = ModelLoader().load(path, LoadOptions())
    x = np.random.default_rng(1).standard_normal(quantised_models.RESNET_INPUT)
    # The first has 3 channels; unsigned weights have a zero point.
    kind = "tensor" if weights == "QUInt8" else "pipelined"
    assert on_both(graph, {"x": x.astype(np.float32)}) == Counter(
        {
            "com.microsoft.QLinearConv, conv.tensor_bytes": 1 if kind == "pipelined" else 3,
            "com.microsoft.QLinearConv, conv.pipelined_bytes": 2 if kind == "pipelined" else 0,
            # With the residual, and its Relu.
            f"aegis.QLinearConvAdd, conv.{kind}_bytes": 1,
            "com.microsoft.QGemm, matmul.tensor_bytes": 1,
            "QuantizeLinear, quantise": 1,
            "Transpose, layout.Transpose": 1,
            "com.microsoft.NhwcMaxPool, pool.nhwcmaxpool": 1,
            "com.microsoft.QLinearGlobalAveragePool, quantised.through_float": 1,
            "DequantizeLinear, dequantise": 1,
        }
    )


@pytest.mark.parametrize(("data", "weights", "per_channel"), TYPES)
def test_an_encoder_runs_in_bytes(
    tmp_path: Path, data: str, weights: str, per_channel: bool
) -> None:
    path = quantised_models.quantised(
        quantised_models.encoder(), tmp_path, data=data, weights=weights, per_channel=per_channel
    )
    graph = ModelLoader().load(path, LoadOptions())
    x = np.random.default_rng(1).standard_normal(quantised_models.ENCODER_INPUT)
    kernels = on_both(graph, {"x": x.astype(np.float32)})
    kind = "tensor" if weights == "QUInt8" else "pipelined"
    assert kernels[f"QLinearMatMul, matmul.{kind}_bytes"] == 6
    # Scores, and what they weigh: both factors come at run time.
    assert kernels["QLinearMatMul, matmul.integer"] == 2
    # What has floats in a QDQ encoder stays in floats: LayerNormalization.
    assert not [name for name in kernels if name.startswith(("MatMul", "Gemm", "Add", "Softmax"))]


def load(model: onnx.ModelProto) -> ExecutionGraph:
    return ModelLoader().load_proto(model, LoadOptions())


CONVOLUTIONS = [
    # data, weights, w_zero, channels, filters, window, more
    (np.uint8, np.int8, 0, 3, 70, 3, {"pads": [1, 1, 1, 1]}),
    (np.uint8, np.uint8, 117, 5, 9, 3, {"pads": [2, 0, 1, 3], "strides": [2, 1]}),
    (np.int8, np.int8, -3, 16, 16, 3, {"pads": [2, 2, 2, 2], "dilations": [2, 2]}),
    (np.int8, np.uint8, 128, 32, 65, 1, {}),
    (np.uint8, np.int8, 5, 20, 8, 2, {"strides": [2, 2]}),
]


@pytest.mark.parametrize(
    ("data", "weights", "w_zero", "channels", "filters", "window", "attributes"), CONVOLUTIONS
)
def test_convolutions(
    data: type, weights: type, w_zero: int, channels: int, filters: int, window: int, attributes
) -> None:
    x = integers(data, 2, channels, 9, 8)
    w = integers(weights, filters, channels, window, window)
    scale = np.array(0.03, np.float32)
    w_scales = np.linspace(0.01, 0.02, filters, dtype=np.float32)
    operands = [
        *(scale, np.array(9, data), w, w_scales, np.full(filters, w_zero, weights)),
        np.array(0.03 * np.sqrt(channels) * window, np.float32),
        np.array(100, data),
        np.arange(filters, dtype=np.int32) * 100,
    ]
    model = quantised_models.layer(
        "QLinearConv", x, operands, (data, ("n", "m", "h", "w")), **attributes
    )
    kernels = on_both(load(model), {"x": x})
    assert kernels["com.microsoft.QLinearConv, conv.tensor_bytes"] == 1


@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 16, 64), (67, 20, 65), (5, 130, 3)])
@pytest.mark.parametrize("w_zero", [0, 140])
def test_products(rows: int, depth: int, columns: int, w_zero: int) -> None:
    x, w = integers(np.uint8, 1, rows, depth), integers(np.uint8, depth, columns)
    scale, zero = np.array(0.02, np.float32), np.array(120, np.uint8)
    w_zeros = np.array(w_zero, np.uint8)
    y_scale = np.array(0.03 * np.sqrt(depth), np.float32)
    linear = quantised_models.layer(
        "QLinearMatMul",
        x,
        [scale, zero, w, scale, w_zeros, y_scale, zero],
        (np.uint8, (1, rows, columns)),
    )
    kernel = "tensor_bytes" if w_zero or depth % 16 or columns % 4 else "pipelined_bytes"
    assert on_both(load(linear), {"x": x}) == {f"QLinearMatMul, matmul.{kernel}": 1}
    whole = quantised_models.layer(
        "MatMulInteger", x, [w, zero, w_zeros], (np.int32, (1, rows, columns))
    )
    assert on_both(load(whole), {"x": x}) == {f"MatMulInteger, matmul.{kernel}": 1}
    bias = np.arange(columns, dtype=np.int32) * 50
    for bias_and_result, dtype in (([bias, y_scale, zero], np.uint8), ([bias], np.float32)):
        gemm = quantised_models.layer(
            "QGemm",
            x[0],
            [scale, zero, np.ascontiguousarray(w.T), scale, w_zeros, *bias_and_result],
            (dtype, (rows, columns)),
            domain="com.microsoft",
            transB=1,
        )
        kernels = on_both(load(gemm), {"x": x[0]})
        assert kernels == {f"com.microsoft.QGemm, matmul.{kernel}": 1}


def request_of(graph: ExecutionGraph, operator: str) -> KernelRequest:
    """Return what the GPU is asked for by the graph's node of this operator."""
    with host_device.HostContext(SystemClock()) as context:
        stream = context.create_stream(0)
        with StandaloneGraph(graph, context, stream, SystemClock()) as standalone:
            (step,) = [s for s in standalone.compiled.steps if s.request.operator == operator]
        stream.close()
    return step.request


def test_sources_compile_for_tensor_cores_and_older_gpus_have_another_kernel() -> None:
    x, w = integers(np.uint8, 1, 3, 8, 8), integers(np.int8, 8, 3, 3, 3)
    scale, zero = np.array(0.02, np.float32), np.array(120, np.uint8)
    for w_zero in (0, 7):
        operands = [scale, zero, w, scale, np.array(w_zero, np.int8), scale, zero]
        model = quantised_models.layer("QLinearConv", x, operands, (np.uint8, (1, 8, 6, 6)))
        request = request_of(load(model), "com.microsoft.QLinearConv")
        (source,) = sources_of(request)
        assert "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32" in source
        for architecture in ("sm_80", "sm_90", "sm_100"):
            assert driver.compile_cubin(source, architecture).startswith(b"\x7fELF")
        older = Machine(None, None, "none", 75, 40)
        offers = (kernel.choose(request, older) for kernel in KERNELS.candidates(request.operator))
        assert next(filter(None, offers)).kernel == "conv.integer"
        # Weights that come at run time can not be packed.
        late = replace(request, constants={})
        (source,) = sources_of(late)
        assert "mma" not in source
