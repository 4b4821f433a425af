"""Kernels that prepare operands for another kernel and run it on the way.

The inner operator is an ordinary request; it gets a part of the outer kernel's workspace. Its
constants are not passed on: they would be packed for it, but the outer kernel prepares them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels.native import NativeCall
from aegis_pipe.device.cpu.kernels.registry import KERNELS, CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorSpec

_UINT8 = np.dtype(np.uint8)


def _chosen(inner: KernelRequest) -> tuple[CpuKernel, KernelChoice] | None:
    for kernel in KERNELS.candidates(inner.operator):
        choice = kernel.choose(inner)
        if choice is not None:
            return kernel, choice
    return None


def accepts_nested(inner: KernelRequest) -> bool:
    """Return whether some kernel runs the inner request."""
    return _chosen(inner) is not None


def nested_scratch(inner: KernelRequest) -> TensorSpec:
    """Return the scratch array that is the inner kernel's workspace."""
    chosen = _chosen(inner)
    assert chosen is not None, inner.operator
    return TensorSpec(_UINT8, (chosen[1].workspace_bytes,))


def nested_cost(inner: KernelRequest) -> float:
    """Return the inner kernel's cost."""
    chosen = _chosen(inner)
    assert chosen is not None, inner.operator
    return chosen[1].cost


def bind_nested(
    inner: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray,
) -> Callable[[], None]:
    """Return the inner kernel's call; all arrays have to be dense."""
    chosen = _chosen(inner)
    assert chosen is not None, inner.operator
    kernel, choice = chosen
    assert not choice.packed, choice.kernel
    call = kernel.bind(inner, choice, inputs, outputs, workspace if workspace.size else None)
    if isinstance(call, NativeCall) and choice.workspace_bytes:
        # The workspace is one thread's.
        call.weigh(0)
    return call
