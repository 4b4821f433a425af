"""How a kernel is written that takes its operands as they are, whatever their dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device import requests
from aegis_pipe.device.cpu.kernels.planned import (
    BindPlanned,
    carve,
    elements_moved,
    no_scratch,
    scratch_bytes,
)
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorSpec


def anything_numeric(request: KernelRequest) -> bool:
    """Accept all dtypes but strings."""
    return not any(
        spec is not None and spec.dtype.hasobject for spec in (*request.inputs, *request.outputs)
    )


def kernel_with_scratch(
    operator: str,
    bind: BindPlanned,
    *,
    accepts: Callable[[KernelRequest], bool] = anything_numeric,
    scratch: Callable[[KernelRequest], Sequence[TensorSpec]] = no_scratch,
    in_place: tuple[tuple[int, int], ...] = (),
) -> CpuKernel:
    """Return the kernel; `in_place` pairs are offered where their specs are the same."""

    def choose(request: KernelRequest) -> KernelChoice | None:
        if not accepts(request):
            return None
        return KernelChoice(
            kernel=operator,
            workspace_bytes=scratch_bytes(scratch(request)),
            in_place=requests.in_place(request, in_place),
            cost=elements_moved(request),
        )

    def bind_to_workspace(
        request: KernelRequest,
        choice: KernelChoice,
        inputs: Sequence[np.ndarray | None],
        outputs: Sequence[np.ndarray | None],
        workspace: np.ndarray | None,
    ) -> Callable[[], None]:
        return bind(request, inputs, outputs, carve(workspace, scratch(request)))

    return CpuKernel((operator,), choose, bind_to_workspace)
