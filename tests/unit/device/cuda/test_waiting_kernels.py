"""Library kernels that add a residual wait for all before them; found out without a driver call.

Binding makes no call: what a library would plan on a GPU is handed in as planned already.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorSpec

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda import graph
from aegis_pipe.device.cuda.cublaslt import MatrixProduct, MatrixProductAlgorithm
from aegis_pipe.device.cuda.graph import CudaKernelCall
from aegis_pipe.device.cuda.kernels import (
    convolution_products,
    library_convolutions,
    library_products,
    product_gelu,
)
from aegis_pipe.device.cuda.kernels.library_convolutions import convolution_of
from aegis_pipe.device.cuda.kernels.nested import bind_nested
from aegis_pipe.device.cuda.kernels.registry import (
    Binding,
    CudaKernel,
    Machine,
    PlannedConvolution,
    PlannedProduct,
)

HALF = np.dtype(np.float16)
(PRODUCT,) = library_products.KERNEL_FAMILY
(CONVOLUTION,) = library_convolutions.KERNEL_FAMILY
(PIXELS,) = convolution_products.KERNEL_FAMILY
(THEN_GELU,) = product_gelu.KERNEL_FAMILY


class Compiler:
    """Takes any source."""

    def function(self, source: str, shared_bytes: int = 0) -> int:
        return 1


def machine() -> Machine:
    libraries = {"cublaslt": object(), "cudnn": object()}
    return Machine(Compiler(), None, "none", 90, 132, **libraries)  # type: ignore[arg-type]


def planned(product: MatrixProduct, on: Machine) -> None:
    on.products[product] = PlannedProduct(None, MatrixProductAlgorithm(b"", 0), 1.0)  # type: ignore[arg-type]


def gemm(*, c: tuple[int, ...], operator: str = "Gemm", activation: str = "") -> KernelRequest:
    """Return [6, 8] times [8, 16] and what is added: a bias [16] or a residual [6, 16]."""
    attributes = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    if operator != "Gemm":
        attributes |= {"activation": activation, "activation_alpha": 0.01}
    shapes = ((6, 8), (8, 16), c)
    inputs = tuple(TensorSpec(HALF, shape) for shape in shapes)
    return KernelRequest(operator, "node", attributes, inputs, (TensorSpec(HALF, (6, 16)),))


def convolution(*, residual: bool) -> KernelRequest:
    """Return one of pixels alone: 8 channels become 16, with a bias."""
    specs = [TensorSpec(HALF, shape) for shape in ((1, 4, 4, 8), (16, 8, 1, 1), (16,))]
    result = TensorSpec(HALF, (1, 4, 4, 16))
    windows = {"kernel_shape": (1, 1), "strides": (1, 1), "dilations": (1, 1), "pads": (0,) * 4}
    return KernelRequest(
        "com.microsoft.NhwcFusedConv",
        "node",
        {**windows, "group": 1, "activation": "", "activation_params": ()},
        (*specs, result if residual else None),
        (result,),
        {1: np.zeros((16, 8, 1, 1), HALF)},
    )


def binding_of(request: KernelRequest, on: Machine) -> Binding:
    addresses = [
        tuple(None if spec is None else 4096 * (at + 1) for at, spec in enumerate(specs))
        for specs in (request.inputs, request.outputs)
    ]
    return Binding(request, KernelChoice("k"), on, *addresses, 0, None)  # type: ignore[arg-type]


def bound(kernel: CudaKernel, request: KernelRequest, on: Machine) -> Binding:
    binding = binding_of(request, on)
    assert len(kernel.bind(binding)) >= 1
    return binding


@pytest.mark.parametrize(("c", "waits"), [((6, 16), True), ((16,), False)])
def test_products(c: tuple[int, ...], waits: bool) -> None:
    on, request = machine(), gemm(c=c)
    found = library_products._operands(request)
    assert found.product.residual is waits
    planned(found.product, on)
    assert bound(PRODUCT, request, on).waits_for_all is waits


@pytest.mark.parametrize("residual", [True, False])
def test_convolutions(residual: bool) -> None:
    on, request = machine(), convolution(residual=residual)
    on.convolutions[convolution_of(request)] = PlannedConvolution(None, 0, 0)  # type: ignore[arg-type]
    assert bound(CONVOLUTION, request, on).waits_for_all is residual


@pytest.mark.parametrize("residual", [True, False])
def test_convolutions_as_products(residual: bool) -> None:
    on, request = machine(), convolution(residual=residual)
    planned(convolution_products._as_product(request, convolution_of(request)).product, on)
    assert bound(PIXELS, request, on).waits_for_all is residual


def test_a_nested_kernel_passes_it_on_and_none_takes_it_back() -> None:
    on = machine()
    adding, plain = gemm(c=(6, 16)), gemm(c=(16,))
    for request in (adding, plain):
        planned(library_products._operands(request).product, on)
    outer = binding_of(adding, on)
    assert not outer.waits_for_all
    bind_nested(outer, [PRODUCT], plain, outer.inputs, outer.outputs)
    assert not outer.waits_for_all
    bind_nested(outer, [PRODUCT], adding, outer.inputs, outer.outputs)
    bind_nested(outer, [PRODUCT], plain, outer.inputs, outer.outputs)
    assert outer.waits_for_all


@pytest.mark.parametrize(("c", "waits"), [((6, 16), True), ((16,), False)])
def test_a_product_within_another_kernel(c: tuple[int, ...], waits: bool) -> None:
    on = machine()
    request = gemm(c=c, operator="com.microsoft.FusedGemm", activation="FastGelu")
    planned(library_products._operands(gemm(c=c)).product, on)
    binding = bound(THEN_GELU, request, on)
    assert len(THEN_GELU.bind(binding)) == 2
    assert binding.waits_for_all is waits


class Capture:
    """Counts nodes as the driver would, and keeps which ones are to be ordered."""

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.ordered: list[list[str]] = []

    def begin_capture(self, stream: int) -> None:
        self.nodes.clear()

    def captured_count(self, stream: int) -> int:
        return len(self.nodes)

    def end_capture(self, stream: int) -> int:
        return 1

    def order_fully(self, graph: int, positions: list[range]) -> None:
        self.ordered = [[self.nodes[at] for at in span] for span in positions]

    def instantiate(self, graph: int) -> int:
        return 2

    def upload_graph(self, launchable: int, stream: int) -> None:
        pass

    def synchronise_stream(self, stream: int) -> None:
        pass


@pytest.mark.parametrize("stamps", [True, False])
def test_the_capture_orders_exactly_the_nodes_of_kernels_that_wait(
    monkeypatch: pytest.MonkeyPatch, stamps: bool
) -> None:
    capture = Capture()
    monkeypatch.setattr(graph, "driver", capture)

    def call(name: str, *nodes: str, waits: bool) -> CudaKernelCall:
        launches = tuple(lambda stream, each=each: capture.nodes.append(each) for each in nodes)
        return CudaKernelCall("kernel", name, launches, waits_for_all=waits)

    calls = [
        call("first", "a", waits=False),
        call("residual", "b fill", "b", waits=True),
        call("plain", "c", waits=False),
        call("last", "d", waits=True),
    ]

    def stamp(row: int) -> None:
        if stamps:
            capture.nodes.append(f"stamp {row}")

    assert graph._capture(7, calls, stamp) == 2
    assert capture.ordered == [["b fill", "b"], ["d"]]
    capture.ordered = []
    graph._capture(7, [replace(each, waits_for_all=False) for each in calls], stamp)
    assert capture.ordered == []
