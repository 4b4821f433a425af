"""What library kernels read without waiting, and who may begin early for it; no driver is called.

Binding makes no call: what a library would plan on a GPU is handed in as planned already.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorSpec

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda import driver, graph
from aegis_pipe.device.cuda.cublaslt import MatrixProduct, MatrixProductAlgorithm
from aegis_pipe.device.cuda.cudnn_convolution import BuiltPlan
from aegis_pipe.device.cuda.early_starts import RecordedKernel, to_be_ordered
from aegis_pipe.device.cuda.graph import CudaKernelCall, WaitingLaunch
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
    planned(library_products._operands(request).product, on)
    assert bound(PRODUCT, request, on).unwaited == [address(at) for at in unwaited]


@pytest.mark.parametrize("residual", [True, False])
def test_convolutions(residual: bool) -> None:
    on, request = machine(), constant(convolution(residual=residual), 1, 2)
    on.convolutions[convolution_of(request)] = SimpleNamespace(  # type: ignore[assignment]
        built=BuiltPlan("none", 0, b"")
    )
    assert bound(CONVOLUTION, request, on).unwaited == [address(3)] * residual


@pytest.mark.parametrize("residual", [True, False])
def test_convolutions_as_products(residual: bool) -> None:
    on, request = machine(), constant(convolution(residual=residual), 1, 2)
    planned(convolution_products._as_product(request, convolution_of(request)).product, on)
    assert bound(PIXELS, request, on).unwaited == [address(3)] * residual


def test_a_nested_kernel_passes_it_on() -> None:
    on = machine()
    adding, plain = constant(gemm(c=(6, 16)), 1), constant(gemm(c=(16,)), 1, 2)
    for request in (adding, plain):
        planned(library_products._operands(request).product, on)
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
    planned(library_products._operands(gemm(c=c)).product, on)
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


class Capture:
    """Counts nodes as the driver would, and keeps which ones are to be ordered."""

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.ordered: list[str] = []

    def begin_capture(self, stream: int) -> None:
        self.nodes.clear()

    def captured_count(self, stream: int) -> int:
        return len(self.nodes)

    def end_capture(self, stream: int) -> int:
        return 1

    def early_starts(self, graph: int) -> list[bool]:
        return [not node.startswith(("stamp", "plain")) for node in self.nodes]

    def order_fully(self, graph: int, positions: list[int] | None) -> None:
        self.ordered = list(
            self.nodes if positions is None else map(self.nodes.__getitem__, positions)
        )

    def instantiate(self, graph: int) -> int:
        return 2

    def upload_graph(self, launchable: int, stream: int) -> None:
        pass

    def synchronise_stream(self, stream: int) -> None:
        pass


@pytest.mark.parametrize(
    ("stamps", "ordered"),
    [(False, ["second b", "third"]), (True, ["first", "second a", "second b"])],
)
def test_the_capture_knows_whose_nodes_they_are(
    monkeypatch: pytest.MonkeyPatch, stamps: bool, ordered: list[str]
) -> None:
    capture = Capture()
    monkeypatch.setattr(graph, "driver", capture)

    def launches(*nodes: str):
        return tuple(lambda stream, each=each: capture.nodes.append(each) for each in nodes)

    calls = [
        CudaKernelCall("k", "first", tuple(map(WaitingLaunch, launches("first")))),
        # Ours, then two of a library's of one call, the latter of which adds what the former wrote.
        CudaKernelCall(
            "k",
            "second",
            (WaitingLaunch(*launches("second a")), *launches("plain", "second b")),
            unwaited=((0, 8),),
            written=((0, 8),),
        ),
        CudaKernelCall("k", "third", launches("third"), unwaited=((0, 8),)),
    ]

    def stamp(row: int) -> None:
        if stamps:
            capture.nodes.append(f"stamp {row}")

    assert graph._capture(7, calls, stamp) == 2
    assert capture.ordered == ordered


class Forked(Capture):
    """A capture with a node that waits for two."""

    def early_starts(self, graph: int) -> None:
        return None


def test_nothing_begins_early_in_what_is_no_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = Forked()
    monkeypatch.setattr(graph, "driver", capture)
    launches = tuple(
        WaitingLaunch(lambda stream, each=each: capture.nodes.append(each)) for each in "ab"
    )
    graph._capture(1, [CudaKernelCall("k", "call", launches)], lambda row: None)
    assert capture.ordered == ["a", "b"]


@pytest.mark.parametrize(
    ("edges", "chain"),
    [
        ([], [None]),
        ([(1, 2)], [None, (1, 2)]),
        ([(2, 3), (1, 2)], [None, (1, 2), (2, 3)]),
        ([(1, 2), (2, 3), (1, 3)], None),
        ([(1, 2), (1, 3)], None),
        ([(1, 3), (2, 3)], None),
        ([(1, 2), (3, 4)], None),
    ],
)
def test_chains_are_told_from_other_recordings(edges, chain) -> None:
    assert driver._chain(edges) == chain
