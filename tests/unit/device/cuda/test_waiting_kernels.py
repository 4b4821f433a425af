"""What library kernels read without waiting, and who may begin early for it; no driver is called.

Binding makes no call: what a library would plan on a GPU is handed in as planned already.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorSpec

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.cublaslt import MatrixProduct, MatrixProductAlgorithm
from aegis_pipe.device.cuda.early_starts import RecordedKernel, to_be_ordered
from aegis_pipe.device.cuda.graph import WaitingLaunch
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
from aegis_pipe.device.cuda.kernels.source import WAITS, kernel_source

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


def constant(request: KernelRequest, *positions: int) -> KernelRequest:
    """Return the request with constants at these positions."""
    specs = request.inputs
    arrays = {at: np.zeros(spec.shape, HALF) for at in positions if (spec := specs[at]) is not None}
    return replace(request, constants=arrays)


def address(position: int) -> int:
    """Return where `binding_of` has an operand."""
    return 4096 * (position + 1)


@pytest.mark.parametrize("c", [(6, 16), (16,)])
@pytest.mark.parametrize(
    ("constants", "unwaited"), [((1, 2), []), ((1,), [2]), ((), [1, 2]), ((0, 2), [1])]
)
def test_products(c: tuple[int, ...], constants: tuple[int, ...], unwaited: list[int]) -> None:
    """Of all but the operand that is multiplied, what is not constant, be it bias or residual."""
    on, request = machine(), constant(gemm(c=c), *constants)
    planned(library_products.product_operands(request).product, on)
    assert bound(PRODUCT, request, on).unwaited == [address(at) for at in unwaited]


@pytest.mark.parametrize("residual", [True, False])
def test_convolutions(residual: bool) -> None:
    on, request = machine(), constant(convolution(residual=residual), 1, 2)
    on.convolutions[convolution_of(request)] = PlannedConvolution(None, 0, 0)  # type: ignore[arg-type]
    assert bound(CONVOLUTION, request, on).unwaited == [address(3)] * residual


@pytest.mark.parametrize("residual", [True, False])
def test_convolutionsas_products(residual: bool) -> None:
    on, request = machine(), constant(convolution(residual=residual), 1, 2)
    planned(convolution_products.as_product(request, convolution_of(request)).product, on)
    assert bound(PIXELS, request, on).unwaited == [address(3)] * residual


def test_a_nested_kernel_passes_it_on() -> None:
    on = machine()
    adding, plain = constant(gemm(c=(6, 16)), 1), constant(gemm(c=(16,)), 1, 2)
    for request in (adding, plain):
        planned(library_products.product_operands(request).product, on)
    outer = binding_of(adding, on)
    bind_nested(outer, [PRODUCT], plain, outer.inputs, outer.outputs)
    assert outer.unwaited == []
    bind_nested(outer, [PRODUCT], adding, outer.inputs, outer.outputs)
    bind_nested(outer, [PRODUCT], plain, outer.inputs, outer.outputs)
    assert outer.unwaited == [address(2)]


@pytest.mark.parametrize(("c", "constants"), [((6, 16), (1,)), ((16,), (1, 2))])
def test_a_product_within_another_kernel(c: tuple[int, ...], constants: tuple[int, ...]) -> None:
    on = machine()
    request = gemm(c=c, operator="com.microsoft.FusedGemm", activation="FastGelu")
    planned(library_products.product_operands(gemm(c=c)).product, on)
    binding = bound(THEN_GELU, constant(request, *constants), on)
    assert binding.unwaited == [address(2)] * (2 not in constants)
    product, gelu = THEN_GELU.bind(binding)
    assert not isinstance(product, WaitingLaunch)
    assert isinstance(gelu, WaitingLaunch)


def test_kernels_of_older_gpus_are_not_started_early() -> None:
    binding = binding_of(gemm(c=(16,)), replace(machine(), capability=80))
    source = kernel_source(["float* y"], "y[0] = 0;", threads=1)
    assert not isinstance(binding.kernel(source, [64], grid=1, block=1), WaitingLaunch)


def test_what_is_fetched_ahead_comes_before_the_wait_and_all_else_behind_it() -> None:
    source = kernel_source(["float* y"], "y[0] = w;", threads=1, prefetch="const float w = 1;")
    code = source.partition('extern "C"')[2]
    ahead, behind = code.split(WAITS)
    assert "w = 1" in ahead
    assert "y[0]" in behind


OWN = RecordedKernel(starts_early=True, waits=True)
PLAIN = RecordedKernel(starts_early=False)
LIBRARY = RecordedKernel(starts_early=True)
ADDING = RecordedKernel(starts_early=True, unwaited=((100, 200),))
WRITES_IT = ((150, 160),)
WRITES_OTHER = ((200, 300),)


@pytest.mark.parametrize(
    ("chain", "ordered"),
    [
        # Ours begin early behind ours, and behind a library's that begins early itself.
        ([OWN, OWN, OWN], []),
        ([PLAIN, OWN, OWN], [1]),
        ([PLAIN, LIBRARY, OWN], []),
        # A library's kernel that reads but what it waits for.
        ([PLAIN, LIBRARY, LIBRARY], []),
        # What is added is complete if who comes before began when all was, or waited for it.
        ([PLAIN, PLAIN, ADDING], []),
        ([PLAIN, OWN, ADDING], [1]),
        ([PLAIN, LIBRARY, OWN, ADDING], []),
        ([PLAIN, LIBRARY, ADDING], [2]),
        ([PLAIN, LIBRARY, ADDING, ADDING], [2]),
        ([PLAIN, replace(PLAIN, written=WRITES_OTHER), ADDING], []),
        # Unless that one writes it.
        ([PLAIN, replace(PLAIN, written=WRITES_IT), ADDING], [2]),
        ([OWN, replace(OWN, written=WRITES_IT), ADDING], [2]),
        ([PLAIN, LIBRARY, replace(ADDING, written=WRITES_IT), ADDING], [2, 3]),
        ([replace(ADDING, starts_early=False), PLAIN], []),
    ],
)
def test_who_begins_when_all_before_has_ended(
    chain: list[RecordedKernel], ordered: list[int]
) -> None:
    assert to_be_ordered(chain) == ordered
