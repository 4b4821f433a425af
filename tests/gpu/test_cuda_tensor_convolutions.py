"""Convolutions on tensor cores in every tiling, and chains of kernels that begin early."""

from __future__ import annotations

from itertools import product

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.device.registry import open_device
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.standalone import StandaloneGraph

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.kernels import tensor_convolutions, tensor_tilings
from aegis_pipe.device.cuda.kernels.tensor_tilings import TensorConvolution, Tiling
from aegis_pipe.device.cuda.region import address_of

TOLERANCE = {"float16": 2e-3, "bfloat16": 2e-2}
SAME = (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)
RELU = "(a < 0 ? 0 : a)"
CONVOLUTIONS = {
    "window": TensorConvolution(
        "float16", 1, (7, 7), 128, 64, (7, 7), *SAME, bias=True, residual=True, activation=RELU
    ),
    "strides": TensorConvolution(
        "bfloat16", 2, (15, 13), 64, 40, (8, 7), (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), bias=True
    ),
    "dilations": TensorConvolution(
        "float16", 1, (12, 11), 64, 68, (12, 11), (3, 3), (1, 1), (2, 2), (2, 2, 2, 2)
    ),
    "pixels": TensorConvolution(
        "float16", 1, (14, 14), 96, 200, (14, 14), bias=True, residual=True
    ),
    "few channels": TensorConvolution(
        "float16", 3, (9, 9), 24, 16, (5, 5), strides=(2, 2), bias=True
    ),
    "many channels": TensorConvolution("float16", 1, (1, 130), 768, 192, (1, 130), bias=True),
    "one row": TensorConvolution("bfloat16", 1, (1, 1), 1024, 100, (1, 1), bias=True),
}


def expected_of(
    p: TensorConvolution, x: np.ndarray, w: np.ndarray, b: np.ndarray, z: np.ndarray
) -> np.ndarray:
    top, left, bottom, right = p.pads
    image = np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    y = np.zeros((p.batch, *p.result, p.filters))
    for h, v in product(*map(range, p.window)):
        rows = h * p.dilations[0] + np.arange(p.result[0]) * p.strides[0]
        columns = v * p.dilations[1] + np.arange(p.result[1]) * p.strides[1]
        y += image[:, rows][:, :, columns] @ w[:, h, v].astype(np.float64).T
    y = y + (b.astype(np.float64) if p.bias else 0) + (z.astype(np.float64) if p.residual else 0)
    return np.maximum(y, 0) if p.activation == RELU else y


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_tiling(context: DeviceContext, name: str) -> None:
    p = CONVOLUTIONS[name]
    machine = context._machine  # type: ignore[attr-defined]
    if machine.capability < 90:
        pytest.skip("no clusters")
    dtype = np.dtype(ml_dtypes.bfloat16 if p.dtype == "bfloat16" else np.float16)
    rng = np.random.default_rng(3)
    shapes = [
        (p.batch, *p.space, p.channels),
        (p.filters, *p.window, p.channels),
        (p.filters,),
        (p.batch, *p.result, p.filters),
    ]
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    expected = expected_of(p, *arrays)
    regions = [context.allocate(array.nbytes) for array in (*arrays, arrays[3])]
    for region, array in zip(regions, arrays, strict=False):
        context.write(region, array)
    found = np.empty_like(arrays[3])
    stream = driver.create_stream(0)
    tried = 0
    for tile, splits in product(tensor_tilings.WARPS, tensor_tilings.SPLITS):
        tiling = Tiling(*tile, splits)
        if splits > p.steps or tiling.shared_bytes(p) > tensor_tilings.SHARED_BYTES_MAX:
            continue
        way = tensor_convolutions._way(machine, p, tiling)
        results = set()
        for _ in range(3):
            context.write(regions[4], np.full(found.nbytes, 0xA5, np.uint8))
            way(stream, [address_of(region) for region in regions])
            driver.synchronise_stream(stream)
            context.read(regions[4], found)
            results.add(found.tobytes())
        assert len(results) == 1, tiling
        error = np.abs(found.astype(np.float64) - expected).max() / expected.std()
        assert error < TOLERANCE[p.dtype], tiling
        tried += 1
    assert tried >= 5
    driver.destroy_stream(stream)
    for region in regions:
        region.close()


def test_chains_give_the_same_bits_every_time(context: DeviceContext) -> None:
    """Windows, residuals, a depthwise convolution between: whoever begins early, and waits."""
    rng = np.random.default_rng(5)
    sizes = {"s": (64, 3, 7, 7), "d": (128, 1, 3, 3), "e": (128, 64, 1, 1), "p": (64, 128, 1, 1)}
    sizes |= {f"w{n}": (64, 64, 3, 3) for n in range(4)}
    constants = {
        name: (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for name, shape in sizes.items()
    }
    lines = ["h0 = Conv <strides = [2,2], pads = [3,3,3,3]> (x, s) r0 = Relu(h0)"]
    for n in range(4):
        lines.append(f"a{n} = Conv <pads = [1,1,1,1]> (r{2 * n}, w{n}) b{n} = Relu(a{n})")
        lines.append(f"c{n} = Conv (b{n}, e) f{n} = Relu(c{n})")
        lines.append(f"g{n} = Conv <group = 128, pads = [1,1,1,1]> (f{n}, d)")
        lines.append(f"i{n} = Conv (g{n}, p) j{n} = Add(i{n}, r{2 * n}) r{2 * n + 2} = Relu(j{n})")
    lines.append("y = Identity(r8)")
    text = f"(float[1,3,64,64] x) => (float[1,64,32,32] y) {{ {' '.join(lines)} }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> graph {text}')
    model.graph.initializer.extend(numpy_helper.from_array(w, n) for n, w in constants.items())
    graph = ModelLoader().load_proto(model, LoadOptions())
    x = rng.standard_normal((1, 3, 64, 64)).astype(np.float32)
    clock = SystemClock()
    stream = context.create_stream(0)
    with StandaloneGraph(graph, context, stream, clock, "fp16") as ours:
        results = {ours.run({"x": x})["y"].tobytes() for _ in range(300)}
    stream.close()
    with open_device("cpu", clock=clock).context as cpu:
        other = cpu.create_stream(0)
        with StandaloneGraph(graph, cpu, other, clock) as reference:
            expected = reference.run({"x": x})["y"]
        other.close()
    assert len(results) == 1
    found = np.frombuffer(results.pop(), np.float32).reshape(expected.shape)
    assert np.abs(found - expected).max() < 2e-2 * expected.std()
