"""Determinants, matrix after matrix: LAPACK factors a copy of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelRequest


def _bind(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, result = operands.required(inputs), operands.required(outputs).reshape(-1)
    matrices = data.reshape(-1, *data.shape[-2:])

    def run() -> None:
        for index, matrix in enumerate(matrices):
            result[index] = np.linalg.det(matrix)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (planned_kernel("determinant", ("Det",), _bind),)
