"""GELU by tanh ends a product of cuBLASLt in half precision; otherwise it is a kernel behind."""

from __future__ import annotations

import math
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.execution.standalone import StandaloneGraph
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec
from tests.unit.pass_driver import feeds_of, graph_of, model_of

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.kernels import library_products
from tests.unit.device.cuda import host_device

HALVES = [np.float16, ml_dtypes.bfloat16]


def request(dtype: object, activation: str) -> KernelRequest:
    specs = [TensorSpec(np.dtype(dtype), shape) for shape in ((6, 8), (8, 16), (16,), (6, 16))]
    attributes = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0, "activation": activation,
                  "activation_alpha": 0.01}  # fmt: skip
    return KernelRequest(
        "com.microsoft.FusedGemm", "node", attributes, tuple(specs[:3]), (specs[3],)
    )


def test_the_library_is_not_asked_for_it_with_erf() -> None:
    assert library_products.product_operands(request(np.float16, "Gelu")) is None


@pytest.mark.parametrize("dtype", HALVES)
def test_the_library_ends_with_it_in_half_precision(dtype: object) -> None:
    found = library_products.product_operands(request(dtype, "FastGelu"))
    assert found.product.activation == "gelu_tanh"
    assert found.product.bias
    assert found.product.has_epilogue


def test_the_library_is_not_asked_for_it_in_float32() -> None:
    assert library_products.product_operands(request(np.float32, "FastGelu")) is None
    assert (
        library_products.product_operands(request(np.float32, "Relu")).product.activation == "relu"
    )
    tf32 = replace(request(np.float32, "FastGelu"), tf32=True)
    assert library_products.product_operands(tf32) is None


@pytest.mark.skipif(host_device.COMPILER is None, reason="no g++")
@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-6), ("fp16", 2e-3)])
def test_without_the_library_a_kernel_behind_the_product(
    precision: str, near: float, approximate: str
) -> None:
    rng = np.random.default_rng(3)
    constants = {
        "w": rng.standard_normal((8, 16)).astype(np.float32),
        "b": rng.standard_normal(16).astype(np.float32),
    }
    model = model_of(
        "(float[2,3,8] x) => (float[2,3,16] y) "
        f'{{ h = MatMul(x, w) i = Add(h, b) y = Gelu <approximate = "{approximate}"> (i) }}',
        constants,
        opset=20,
    )
    feeds = feeds_of(model)
    with host_device.HostContext(SystemClock()) as context:
        stream = context.create_stream(0)
        with StandaloneGraph(graph_of(model), context, stream, SystemClock(), precision) as one:
            found = one.run(feeds)["y"]
            kernels = one.kernels()
        stream.close()
    assert "com.microsoft.FusedGemm, matmul.then_gelu" in kernels
    assert not any("BiasGelu" in kernel for kernel in kernels)
    x = feeds["x"].astype(np.float64) @ constants["w"] + constants["b"]
    inner = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    if approximate == "none":
        inner = np.vectorize(math.erf)(x / np.sqrt(2))
    wanted = 0.5 * x * (1 + inner)
    assert np.abs(found - wanted).max() < near * np.abs(wanted).max()
