"""Images with channels last: turned around, given to the kernel for channels first, turned back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.nested import (
    accepts_nested,
    bind_nested,
    nested_cost,
    nested_scratch,
)
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_INNER = {
    "com.microsoft.NhwcMaxPool": ("MaxPool", (0,)),
    "aegis.NhwcAveragePool": ("AveragePool", (0,)),
    "com.microsoft.NhwcFusedConv": ("com.microsoft.FusedConv", (0, 3)),
    "com.microsoft.QLinearConv": ("QLinearConv", (0,)),
}


def first_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape with channels first."""
    return (shape[0], shape[-1], *shape[1:-1])


def _turned(spec: TensorSpec | None) -> TensorSpec | None:
    return spec and TensorSpec(spec.dtype, first_shape(spec.shape))


def _images(request: KernelRequest) -> list[int]:
    return [i for i in _INNER[request.operator][1] if operands.has_input(request, i)]


def _inner_request(request: KernelRequest) -> KernelRequest:
    operator, images = _INNER[request.operator]
    return replace(
        request,
        operator=operator,
        inputs=tuple([_turned(s) if i in images else s for i, s in enumerate(request.inputs)]),
        outputs=tuple(map(_turned, request.outputs)),
        constants={},
        reference=None,
    )


def _accepts(request: KernelRequest) -> bool:
    return accepts_nested(_inner_request(request))


def _scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    inner = _inner_request(request)
    images = [operands.input_spec(inner, i) for i in _images(request)]
    return (nested_scratch(inner), operands.output_spec(inner), *images)


def _cost(request: KernelRequest) -> float:
    return nested_cost(_inner_request(request))


def _bind(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    workspace, turned_result, *turned = scratch
    arrays = list(inputs)
    copies = []
    for position, array in zip(_images(request), turned, strict=True):
        copies.append((array, np.moveaxis(operands.required(inputs, position), -1, 1)))
        arrays[position] = array
    result = operands.required(outputs)
    call = bind_nested(_inner_request(request), arrays, [turned_result], workspace)
    turned_back = np.moveaxis(turned_result, 1, -1)

    def run() -> None:
        for target, source in copies:
            np.copyto(target, source)
        call()
        np.copyto(result, turned_back)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "channels_last", tuple(_INNER), _bind, accepts=_accepts, scratch=_scratch, cost=_cost
    ),
)
