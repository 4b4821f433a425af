"""Gemm, then GELU as a kernel behind it: for products that cuBLASLt does not end so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from aegis_pipe.device.cuda.kernels import elementwise, library_products, products
from aegis_pipe.device.cuda.kernels.nested import bind_nested, nested_choice
from aegis_pipe.device.cuda.kernels.operands import result, text
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.kernel import KernelChoice, KernelRequest

_FUSED, _GELU = "com.microsoft.FusedGemm", "com.microsoft.BiasGelu"
_PRODUCTS = (*library_products.KERNEL_FAMILY, *products.KERNEL_FAMILY)
_APPROXIMATE = {"FastGelu": "tanh", "Gelu": "none"}
_KERNELS = tuple(each for each in elementwise.KERNEL_FAMILY if _GELU in each.operators)


def _product(request: KernelRequest) -> KernelRequest:
    ends = ("activation", "activation_alpha")
    kept = {name: value for name, value in request.attributes.items() if name not in ends}
    return replace(request, operator="Gemm", attributes=kept)


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    if text(request, "activation") not in _APPROXIMATE:
        return None
    found = nested_choice(machine, _PRODUCTS, _product(request))
    return None if found is None else replace(found[1], kernel="matmul.then_gelu")


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request, outputs = binding.request, binding.outputs
    spec = result(request)
    how = {"approximate": _APPROXIMATE[text(request, "activation")]}
    gelu = KernelRequest(_GELU, request.node, how, (spec, None), (spec,))
    return [
        *bind_nested(
            binding, _PRODUCTS, _product(request), binding.inputs, outputs, binding.workspace
        ),
        *bind_nested(binding, _KERNELS, gelu, [outputs[0], None], outputs),
    ]


KERNEL_FAMILY: tuple[CudaKernel, ...] = (CudaKernel((_FUSED,), _choose, _bind),)
