"""A model's first convolution reads an image's planes: the pass, and the kernel on the host."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.execution.passes import fuse_planar_input
from aegis_pipe.execution.passes.channels_last import run as channels_last
from aegis_pipe.execution.passes.precision import convert
from aegis_pipe.execution.standalone import StandaloneGraph
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec
from tests.unit.pass_driver import feeds_of, graph_of, model_of

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.kernels import planar_convolutions
from tests.unit.device.cuda import host_device
from tests.unit.device.cuda.test_on_host import Bound

HALF, BRAIN = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
FLOAT = np.dtype(np.float32)


def request(
    image: tuple[int, ...],
    window: tuple[int, ...],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    *,
    filters: int = 8,
    source: np.dtype = FLOAT,
    dtype: np.dtype = HALF,
    activation: str = "Relu",
) -> KernelRequest:
    batch, channels, height, width = image
    rows = (height + pads[0] + pads[2] - window[0]) // strides[0] + 1
    columns = (width + pads[1] + pads[3] - window[1]) // strides[1] + 1
    rng = np.random.default_rng(5)
    weights = rng.standard_normal((filters, channels, *window)).astype(dtype)
    attributes = {
        "kernel_shape": window,
        "strides": strides,
        "dilations": (1, 1),
        "pads": pads,
        "group": 1,
        "activation": activation,
        "activation_params": (),
    }
    specs = (
        TensorSpec(source, image),
        TensorSpec(dtype, weights.shape),
        TensorSpec(dtype, (filters,)),
    )
    result = TensorSpec(dtype, (batch, rows, columns, filters))
    return KernelRequest(
        planar_convolutions.OPERATOR, "node", attributes, specs, (result,), {1: weights}
    )


PATCHES = {
    "patches": request((2, 3, 32, 48), (16, 16), (16, 16), (0, 0, 0, 0), activation=""),
    "brain": request(
        (1, 5, 6, 16), (3, 8), (3, 8), (0, 0, 0, 0), filters=72, dtype=BRAIN, activation=""
    ),
    "half already": request(
        (1, 3, 19, 32), (4, 16), (4, 16), (0, 0, 0, 0), source=HALF, activation=""
    ),
}


@pytest.mark.skipif(host_device.COMPILER is None, reason="no g++")
@pytest.mark.parametrize("name", PATCHES)
def test_patches(name: str) -> None:
    asked = PATCHES[name]
    rng = np.random.default_rng(7)
    x = rng.standard_normal(asked.inputs[0].shape).astype(asked.inputs[0].dtype)
    bias = rng.standard_normal(asked.inputs[2].shape).astype(asked.inputs[2].dtype)
    bound = Bound(asked, [x, asked.constants[1], bias])
    assert bound.name == "aegis.PlanarConv, conv.planar_patches"
    (got,) = bound.run()
    near = 2.0 ** (-7 if asked.outputs[0].dtype == BRAIN else -10)
    expected = expected_of(asked, x, bias)
    np.testing.assert_allclose(got.astype(np.float64), expected, rtol=near, atol=4 * near)


def expected_of(asked: KernelRequest, x: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return the convolution in float64, of the image as it is rounded."""
    weights = asked.constants[1]
    image = x.astype(weights.dtype).astype(np.float64)
    top, left, bottom, right = asked.attributes["pads"]
    image = np.pad(image, ((0, 0), (0, 0), (top, bottom), (left, right)))
    (down, across), (rows, columns) = asked.attributes["strides"], asked.outputs[0].shape[1:3]
    y = np.zeros((x.shape[0], weights.shape[0], rows, columns))
    for h in range(weights.shape[2]):
        for v in range(weights.shape[3]):
            part = image[:, :, h : h + down * rows : down, v : v + across * columns : across]
            w = weights[:, :, h, v].astype(np.float64)
            y += np.einsum("bchw,mc->bmhw", part[:, :, :rows, :columns], w)
    y = np.moveaxis(y, 1, -1) + bias.astype(np.float64)
    return np.maximum(y, 0) if asked.attributes["activation"] == "Relu" else y


REQUESTS = {
    "stem": request((2, 3, 21, 37), (7, 7), (2, 2), (3, 3, 3, 3), filters=16),
    "filters by four groups": request((1, 3, 9, 11), (3, 3), (2, 2), (1, 1, 1, 1), filters=32),
    "small window": request((1, 3, 12, 35), (3, 3), (2, 2), (1, 1, 1, 1)),
    "brain": request((1, 4, 9, 18), (5, 3), (1, 2), (0, 1, 2, 0), dtype=BRAIN),
    "half already": request((1, 1, 10, 17), (4, 8), (1, 1), (0, 0, 0, 0), source=HALF),
    "no activation": request((1, 2, 9, 9), (1, 1), (1, 1), (0, 0, 0, 0), activation=""),
}


@pytest.mark.skipif(host_device.COMPILER is None, reason="no g++")
@pytest.mark.parametrize("name", REQUESTS)
def test_results(name: str) -> None:
    asked = REQUESTS[name]
    rng = np.random.default_rng(7)
    x = rng.standard_normal(asked.inputs[0].shape).astype(asked.inputs[0].dtype)
    bias = rng.standard_normal(asked.inputs[2].shape).astype(asked.inputs[2].dtype)
    packed = planar_convolutions._packed(asked, planar_convolutions._planar_of(asked))
    weights = packed.pack(asked.constants[1]).view(asked.inputs[1].dtype)
    assert weights.nbytes == packed.size_bytes
    (got,) = Bound(asked, [x, weights, bias]).run()
    expected = expected_of(asked, x, bias)
    near = 2.0 ** (-7 if asked.outputs[0].dtype == BRAIN else -10)
    np.testing.assert_allclose(got.astype(np.float64), expected, rtol=near, atol=near)


@pytest.mark.parametrize("name", REQUESTS)
def test_sources_compile(name: str) -> None:
    asked = REQUESTS[name]
    source = planar_convolutions._source(asked, planar_convolutions._planar_of(asked))
    for architecture in ("sm_80", "sm_90", "sm_100"):
        assert driver.compile_cubin(source, architecture)


@pytest.mark.skipif(host_device.COMPILER is None, reason="no g++")
def test_what_lies_beside_a_window_does_not_come_in() -> None:
    """Lines of a window are filled up to fours: with nothing, not with zero times a neighbour."""
    asked = request((1, 3, 6, 24), (3, 3), (1, 1), (0, 0, 0, 0), activation="")
    x = np.ones((1, 3, 6, 24), np.float32)
    x[0, 1, 2, 12] = np.inf
    bias = np.zeros(8, HALF)
    packed = planar_convolutions._packed(asked, planar_convolutions._planar_of(asked))
    weights = packed.pack(asked.constants[1]).view(HALF)
    (got,) = Bound(asked, [x, weights, bias]).run()
    met = np.zeros(got.shape[1:3], bool)
    met[0:3, 10:13] = True
    assert (np.isfinite(got[0]).all(axis=-1) == ~met).all()


def image_model(text: str, filters: int = 8, channels: int = 3, window: int = 3):
    rng = np.random.default_rng(3)
    shape = (filters, channels, window, window)
    constants = {
        "w": rng.standard_normal(shape).astype(np.float32),
        "b": rng.standard_normal(filters).astype(np.float32),
        "flat": np.array([1, 8, 6]),
    }
    return model_of(text, constants, opset=17)


STEM = (
    "(float[1,3,20,24] x) => (float[1,8,10,12] y) "
    "{ c = Conv <kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1]> (x, w, b) y = Relu(c) }"
)


PATCHED = (
    "(float[1,3,24,16] x) => (float[1,6,8] y) { c = Conv <strides = [8,8]> (x, w, b)"
    " r = Reshape(c, flat) y = Transpose <perm=[0,2,1]> (r) }"
)
WHOLE = ((STEM, 3, "conv.planar"), (PATCHED, 8, "conv.planar_patches"))


def half_of(model):
    return fuse_planar_input.run(convert(channels_last(graph_of(model)), "fp16"))


def test_cast_and_transpose_go() -> None:
    operators = [node.qualified_operator for node in half_of(image_model(STEM)).operators]
    assert operators[0] == "aegis.PlanarConv"
    assert operators.count("Cast") == 1, "the one behind"


@pytest.mark.parametrize(
    "text",
    [
        # Somebody else reads the image with its channels last, or in half precision.
        "(float[1,3,20,24] x) => (float[1,8,20,24] y, float[1,8,20,24] z) "
        "{ y = Conv <pads = [1,1,1,1]> (x, w, b) z = Conv <pads = [1,1,1,1]> (x, w) }",
        # Windows too wide apart.
        "(float[1,3,20,24] x) => (float[1,8,6,8] y) { y = Conv <strides = [3,3]> (x, w, b) }",
        "(float[1,3,20,24] x) => (float[1,8,16,20] y) { y = Conv <dilations = [2,2]> (x, w, b) }",
    ],
)
def test_what_stays(text: str) -> None:
    operators = [node.qualified_operator for node in half_of(image_model(text)).operators]
    assert "aegis.PlanarConv" not in operators


@pytest.mark.parametrize("window", [1, 3, 7, 8])
@pytest.mark.parametrize(("filters", "channels"), [(8, 1), (64, 4)])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_kernel_takes_all_that_the_pass_makes(
    window: int, filters: int, channels: int, stride: int
) -> None:
    asked = request(
        (1, channels, 16, 16), (window, window), (stride, stride), (0, 0, 0, 0), filters=filters
    )
    assert planar_convolutions._planar_of(asked) is not None
    assert planar_convolutions._planar_of(replace(asked, constants={})) is None


@pytest.mark.skipif(host_device.COMPILER is None, reason="no g++")
@pytest.mark.parametrize(("text", "window", "kernel"), WHOLE)
def test_a_whole_model(text: str, window: int, kernel: str) -> None:
    model = image_model(text, window=window)
    feeds = feeds_of(model, np.random.default_rng(1))
    results = []
    clock = SystemClock()
    for precision in ("fp32", "fp16"):
        with host_device.HostContext(clock) as context:
            stream = context.create_stream(0)
            with StandaloneGraph(graph_of(model), context, stream, clock, precision) as ours:
                results.append(ours.run(feeds)["y"])
                kernels = ours.kernels()
            stream.close()
    assert kernels[0] == f"aegis.PlanarConv, {kernel}"
    np.testing.assert_allclose(results[1], results[0], rtol=2e-2, atol=2e-2)
