"""Kernels whose result is known at load."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.cpu.kernels.scratch import kernel_with_scratch
from aegis_pipe.kernel import KernelRequest


def _bind_copy(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    value, result = operands.array(request, "value"), operands.required(outputs)

    def run() -> None:
        np.copyto(result, value)

    return run


def _bind_range(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    start, delta = operands.array(request, "start"), operands.array(request, "delta")
    result = operands.required(outputs)
    steps = np.arange(result.size, dtype=np.int64)

    def run() -> None:
        np.copyto(result, steps, casting="unsafe")
        np.multiply(result, delta, out=result)
        np.add(result, start, out=result)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    kernel_with_scratch("Constant", _bind_copy),
    kernel_with_scratch("ConstantOfShape", _bind_copy),
    kernel_with_scratch("Range", _bind_range),
)
