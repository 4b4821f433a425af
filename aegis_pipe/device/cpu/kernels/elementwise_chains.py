"""Chains of elementwise operators with NumPy: the operators' own kernels, over tile after tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import carve, elements_moved, scratch_bytes
from aegis_pipe.device.cpu.kernels.registry import KERNELS, CpuKernel
from aegis_pipe.device.cpu.kernels.tiles import tile_size, tile_views
from aegis_pipe.device.elementwise_chains import CHAIN, Chain
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorSpec

_UINT8 = np.dtype(np.uint8)


def _chosen(step: KernelRequest) -> tuple[CpuKernel, KernelChoice] | None:
    """Return a step's kernel, not one of the compiled ones, and its offer."""
    for kernel in KERNELS.candidates(step.operator):
        choice = kernel.choose(step)
        if choice is not None and not choice.kernel.startswith("native."):
            return kernel, choice
    return None


def _steps(request: KernelRequest, chain: Chain) -> list[KernelRequest]:
    """Return the steps over one tile of a dense result: the largest scratch they want."""
    tile = (tile_size(operands.output_spec(request).shape),)
    inputs = [
        TensorSpec(operands.input_spec(request, i).dtype, tile) for i in range(chain.input_count)
    ]
    return chain.requests(request, inputs, tile)


def _scratch(request: KernelRequest, chain: Chain) -> list[TensorSpec]:
    """Return specs: a tile for each step's result but the last one's, and the steps' workspace."""
    steps = _steps(request, chain)
    chosen = [_chosen(step) for step in steps]
    most = max(found[1].workspace_bytes for found in chosen if found is not None)
    return [*(operands.output_spec(step) for step in steps[:-1]), TensorSpec(_UINT8, (most,))]


def _choose(request: KernelRequest) -> KernelChoice | None:
    chain, result = Chain.of(request), operands.output_spec(request)
    if not result.element_count or any(_chosen(step) is None for step in _steps(request, chain)):
        return None
    return KernelChoice(
        kernel="elementwise.chain",
        workspace_bytes=scratch_bytes(_scratch(request, chain)),
        cost=elements_moved(request) + float(result.element_count * len(chain.steps)),
    )


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    chain, result = Chain.of(request), operands.required(outputs)
    *registers, scratch = carve(workspace, _scratch(request, chain))
    constants = [np.array(value, np.float32) for value in chain.constants]
    arrays = [operands.required(inputs, i) for i in range(chain.input_count)]
    calls: list[Callable[[], None]] = []
    for *reads, written in tile_views(result.shape, [*arrays, result]):
        tiles = [register[: written.size].reshape(written.shape) for register in registers]
        values = [*reads, *constants, *tiles, written]
        specs = [TensorSpec(read.dtype, written.shape) for read in reads]
        for i, step in enumerate(chain.requests(request, specs, written.shape)):
            found = _chosen(step)
            assert found is not None, step.operator
            kernel, offer = found
            operand_arrays = [values[value] for value in chain.steps[i].operands]
            own = scratch[: offer.workspace_bytes] if offer.workspace_bytes else None
            target = values[chain.first_result + i]
            calls.append(kernel.bind(step, offer, operand_arrays, [target], own))

    def run() -> None:
        for call in calls:
            call()

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (CpuKernel((CHAIN,), _choose, _bind),)
