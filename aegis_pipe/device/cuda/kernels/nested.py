"""A kernel as part of another: bound to a request of its own, over addresses of the outer one."""

from __future__ import annotations

from collections.abc import Sequence

from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.kernel import KernelChoice, KernelRequest


def nested_choice(
    machine: Machine, kernels: Sequence[CudaKernel], request: KernelRequest
) -> tuple[CudaKernel, KernelChoice] | None:
    """Return the first of `kernels` that takes the request, and its offer."""
    for kernel in kernels:
        if request.operator in kernel.operators:
            choice = kernel.choose(request, machine)
            if choice is not None:
                return kernel, choice
    return None


def is_nested(machine: Machine, kernels: Sequence[CudaKernel], request: KernelRequest) -> bool:
    """Return whether one of `kernels` takes the request, without a workspace."""
    found = nested_choice(machine, kernels, request)
    return found is not None and not found[1].workspace_bytes


def bind_nested(
    outer: Binding,
    kernels: Sequence[CudaKernel],
    request: KernelRequest,
    inputs: Sequence[int | None],
    outputs: Sequence[int | None],
    workspace: int = 0,
) -> list[Enqueue]:
    """Bind the first of `kernels` that takes the request; one has to."""
    found = nested_choice(outer.machine, kernels, request)
    assert found is not None, f"no kernel within {outer.request.operator} takes {request.operator}"
    kernel, choice = found
    binding = type(outer)(
        request,
        choice,
        outer.machine,
        tuple(inputs),
        tuple(outputs),
        workspace,
        outer.fault_words,
        outer.faults,
        outer.unwaited,
    )
    return [*kernel.bind(binding)]
