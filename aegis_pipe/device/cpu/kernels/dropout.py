"""Dropout at inference: the same bytes, or a copy beside an all-true mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest


def _choose(request: KernelRequest) -> KernelChoice | None:
    if operands.integer(request, "training"):
        return None
    if not operands.has_output(request, 1):
        return KernelChoice("dropout", view=(0, 0))
    elements = operands.input_spec(request, 0).element_count
    return KernelChoice("dropout", in_place=((0, 0),), cost=3.0 * elements)


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    data, mask = operands.required(inputs), operands.required(outputs, 1)
    result = operands.optional(outputs, 0)

    def run() -> None:
        if result is not None:
            np.copyto(result, data)
        mask.fill(1)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (CpuKernel(("Dropout",), _choose, _bind),)
