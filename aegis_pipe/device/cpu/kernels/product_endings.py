"""Activations that end a matrix product (`com.microsoft.FusedGemm`), as operators of their own.

The compiled product (`compiled_matrix_products.py`) takes the operator's own function along. What
it does not take is run here as both operators, one behind the other.
"""

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
from aegis_pipe.kernel import Attribute, KernelRequest
from aegis_pipe.tensor import TensorSpec

_OPERATORS: dict[str, tuple[str, dict[str, Attribute]]] = {
    "Gelu": ("com.microsoft.BiasGelu", {"approximate": "none"}),
    "FastGelu": ("com.microsoft.BiasGelu", {"approximate": "tanh"}),
    "HardSwish": ("HardSwish", {}),
    "LeakyRelu": ("LeakyRelu", {}),
    "Sigmoid": ("Sigmoid", {}),
    "Swish": ("Swish", {}),
    "Tanh": ("Tanh", {}),
}
"""By activation: the operator, and its attributes but for those that the product states."""
ENDINGS = tuple(_OPERATORS)
_WITH_ALPHA = ("LeakyRelu", "Swish")


def ending(request: KernelRequest) -> KernelRequest | None:
    """Return a product's activation as a request of its own; None if it is not in `ENDINGS`."""
    activation = request.attributes.get("activation", "")
    if activation not in ENDINGS:
        return None
    operator, attributes = _OPERATORS[str(activation)]
    if operator in _WITH_ALPHA:
        attributes = {"alpha": operands.number(request, "activation_alpha")}
    spec = operands.output_spec(request)
    return KernelRequest(operator, request.node, attributes, (spec,), (spec,))


def _parts(request: KernelRequest) -> tuple[KernelRequest, KernelRequest] | None:
    """Return the product alone and its ending."""
    end = ending(request)
    if end is None:
        return None
    ends = ("activation", "activation_alpha")
    kept = {name: value for name, value in request.attributes.items() if name not in ends}
    return replace(request, operator="Gemm", attributes=kept, constants={}), end


def _accepts(request: KernelRequest) -> bool:
    parts = _parts(request)
    return parts is not None and all(map(accepts_nested, parts))


def _scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    """Return the product, which not every ending may overwrite, and both workspaces."""
    parts = _parts(request)
    assert parts is not None, request.node
    return (operands.output_spec(request), *map(nested_scratch, parts))


def _cost(request: KernelRequest) -> float:
    parts = _parts(request)
    assert parts is not None, request.node
    return sum(map(nested_cost, parts))


def _bind(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    parts = _parts(request)
    assert parts is not None, request.node
    product, *workspaces = scratch
    multiply = bind_nested(parts[0], inputs, [product], workspaces[0])
    end = bind_nested(parts[1], [product], outputs, workspaces[1])

    def run() -> None:
        multiply()
        end()

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "gemm.ended",
        ("com.microsoft.FusedGemm",),
        _bind,
        accepts=_accepts,
        scratch=_scratch,
        cost=_cost,
    ),
)
