"""The CUDA device's kernel table: one entry per kernel, first registered is asked first.

A kernel file defines `KERNEL_FAMILY`, and has one line in `kernels/__init__.py`. Choosing and
binding happen at load; what binding returns is captured into graphs, and enqueues kernels at fixed
addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.compiler import DiskCache, KernelCompiler
from aegis_pipe.device.cuda.cublaslt import (
    CublasLt,
    MatrixProduct,
    MatrixProductAlgorithm,
    MatrixProductPlan,
)
from aegis_pipe.device.cuda.cudnn_attention import AttentionPlan, FusedAttention
from aegis_pipe.device.cuda.cudnn_convolution import Convolution, ConvolutionPlans, Cudnn
from aegis_pipe.device.cuda.faults import FaultWord, FaultWords
from aegis_pipe.device.cuda.graph import Enqueue as Enqueue, WaitingLaunch
from aegis_pipe.device.cuda.kernels.source import EARLY_CAPABILITY, does_wait
from aegis_pipe.device.cuda.tuning import Tuner
from aegis_pipe.kernel import KernelChoice, KernelRequest

Way = Callable[[int, Sequence[int]], None]
"""Enqueues itself on a stream, given the addresses of its operands."""


@dataclass(slots=True, eq=False)
class Machine:
    """What kernels may know of the device they are chosen for."""

    compiler: KernelCompiler
    cache: DiskCache
    model: str
    capability: int
    """Major and minor as one number: 90."""
    multiprocessors: int
    shared_bytes_max: int = 227 << 10
    """Of a block that asks for it: 9.0 and 10.0 have so much, 12.0 has 99 KiB."""
    cublaslt: CublasLt | None = None
    cudnn: Cudnn | None = None
    tuner: Tuner | None = None
    """Without libraries, as where sources are only compiled, our own kernels do it all."""
    products: dict[MatrixProduct, PlannedProduct | None] = field(default_factory=dict)
    convolutions: dict[Convolution, PlannedConvolution | None] = field(default_factory=dict)
    attentions: dict[FusedAttention, AttentionPlan | None] = field(default_factory=dict)
    """What was chosen, by what it is for; None where the library has no way."""

    def way(self, source: str, *, grid: tuple[int, int, int], block: int, shared_bytes: int) -> Way:
        """Compile a source that waits for the kernel ahead; return its launch, to be measured."""
        function = self.compiler.function(source, shared_bytes)
        early = self.capability >= EARLY_CAPABILITY

        def enqueue(stream: int, addresses: Sequence[int]) -> None:
            arguments = driver.Arguments(list(addresses))
            driver.launch(
                function, grid, (block, 1, 1), shared_bytes, stream, arguments, early=early
            )

        return enqueue

    def close(self) -> None:
        """Close libraries and unload kernels."""
        for product in self.products.values():
            if product is not None:
                product.plan.close()
        self.products.clear()
        self.convolutions.clear()
        self.attentions.clear()
        for owner in (self.tuner, self.cublaslt, self.cudnn):
            if owner is not None:
                owner.close()
        self.compiler.close()


@dataclass(frozen=True, slots=True, eq=False)
class PlannedProduct:
    """A product with the algorithm that was chosen for it."""

    plan: MatrixProductPlan
    algorithm: MatrixProductAlgorithm
    microseconds: float


@dataclass(frozen=True, slots=True, eq=False)
class PlannedConvolution:
    """A convolution with the plan that was chosen for it."""

    plans: ConvolutionPlans
    index: int
    workspace_bytes: int


@dataclass(slots=True, eq=False)
class Binding:
    """A choice and the addresses it is bound to; 0 or None where an operand is left out."""

    request: KernelRequest
    choice: KernelChoice
    machine: Machine
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]
    workspace: int
    fault_words: FaultWords
    faults: list[FaultWord] = field(default_factory=list)
    unwaited: list[int] = field(default_factory=list)
    """Addresses that a library's kernel may read before it has waited for the kernel ahead: of
    everything computed but the operand that is multiplied, `early_starts` says why."""

    def reads_unwaited(self, *positions: int) -> None:
        """Note those of the operands at these positions that are there and not constant."""
        for position in positions:
            if position < len(self.inputs) and position not in self.request.constants:
                address = self.inputs[position]
                if address is not None:
                    self.unwaited.append(address)

    def given(self) -> list[int]:
        """Return the addresses of the operands that are there."""
        return [address for address in self.inputs if address is not None]

    def fault(self) -> int:
        """Return the address of an int32 to which the kernel writes what is wrong with its data."""
        word = self.fault_words.word(self.request.node, self.choice.kernel)
        self.faults.append(word)
        return word.address

    def kernel(
        self,
        source: str,
        arguments: Sequence[driver.Argument | None],
        *,
        grid: int | tuple[int, int, int],
        block: int,
        shared_bytes: int = 0,
    ) -> Enqueue:
        """Compile a source and return its launch."""
        function = self.machine.compiler.function(source, shared_bytes)
        packed = driver.Arguments([0 if each is None else each for each in arguments])
        blocks = (grid, 1, 1) if isinstance(grid, int) else grid
        early = self.machine.capability >= EARLY_CAPABILITY and does_wait(source)

        def enqueue(stream: int) -> None:
            driver.launch(
                function, blocks, (block, 1, 1), shared_bytes, stream, packed, early=early
            )

        return WaitingLaunch(enqueue) if early else enqueue


@dataclass(frozen=True, slots=True, eq=False)
class CudaKernel:
    """One kernel and the canonical operators it can run."""

    operators: tuple[str, ...]
    choose: Callable[[KernelRequest, Machine], KernelChoice | None]
    """The offer, or None if this kernel does not do this request."""
    bind: Callable[[Binding], Sequence[Enqueue]]
    prepare: Callable[[Sequence[KernelRequest], Machine], None] | None = None
    """Begins what choosing for these requests will wait for; returns at once."""
    alternatives: Callable[[KernelRequest, Machine], Sequence[KernelChoice]] | None = None
    """Offers with a variant, of which none is chosen before it was tried within a model."""
    sources: Callable[[KernelRequest, KernelChoice, Machine], Sequence[str]] | None = None
    """What binding an alternative compiles."""


class KernelTable:
    """Kernels by operator, in the order they were registered."""

    def __init__(self) -> None:
        self._by_operator: dict[str, list[CudaKernel]] = {}

    def register(self, *kernels: CudaKernel) -> None:
        """Add kernels; earlier ones are asked first."""
        for kernel in kernels:
            for operator in kernel.operators:
                self._by_operator.setdefault(operator, []).append(kernel)

    def candidates(self, operator: str) -> Sequence[CudaKernel]:
        """Return the kernels that know this operator."""
        return self._by_operator.get(operator, ())

    def operators(self) -> tuple[str, ...]:
        """All operators some kernel knows, sorted."""
        return tuple(sorted(self._by_operator))
