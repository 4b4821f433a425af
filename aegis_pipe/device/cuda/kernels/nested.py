"""A kernel as part of another: bound to a request of its own, over addresses of the outer one."""

from __future__ import annotations

from collections.abc import Sequence

from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.kernel import KernelRequest


def bind_nested(
    outer: Binding,
    kernels: Sequence[CudaKernel],
    request: KernelRequest,
    inputs: Sequence[int | None],
    outputs: Sequence[int | None],
) -> list[Enqueue]:
    """Bind the first of `kernels` that takes the request and needs no workspace."""
    for kernel in kernels:
        choice = kernel.choose(request, outer.machine)
        if request.operator in kernel.operators and choice is not None:
            assert not choice.workspace_bytes, f"{choice.kernel} needs a workspace"
            binding = type(outer)(
                request,
                choice,
                outer.machine,
                tuple(inputs),
                tuple(outputs),
                0,
                outer.fault_words,
                outer.faults,
            )
            return [*kernel.bind(binding)]
    raise AssertionError(f"no kernel within {outer.request.operator} takes {request.operator}")
