"""BatchNormalization at inference, where no convolution took it in."""

from __future__ import annotations

from collections.abc import Sequence

from aegis_pipe.device.cuda.kernels.operands import integer, number, required, result, wanted
from aegis_pipe.device.cuda.kernels.pointwise import Mapping, Pointwise, Read, launch_mapping
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import FLOATS, computed, dense_strides, literal
from aegis_pipe.kernel import KernelChoice, KernelRequest


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    if required(request).dtype not in FLOATS or integer(request, "training_mode"):
        return None
    return KernelChoice("batch_normalisation") if wanted(request) == [0] else None


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    source, target = required(request), result(request)
    shape = source.shape if len(source.shape) > 1 else (*source.shape, 1)
    per_channel = tuple(int(axis == 1) for axis in range(len(shape)))
    reads = [Read(source.dtype, dense_strides(shape))]
    reads += [Read(required(request, i).dtype, per_channel) for i in range(1, 5)]
    kind = computed(source.dtype)
    epsilon = literal(number(request, "epsilon"), kind)
    function = Pointwise(f"({{0}} - {{3}}) / sqrt({{4}} + {epsilon}) * {{1}} + {{2}}", (kind,) * 5)
    mapping = Mapping(shape, tuple(reads), target.dtype, function)
    return launch_mapping(binding, mapping, binding.given(), binding.outputs[0])


KERNEL_FAMILY: tuple[CudaKernel, ...] = (CudaKernel(("BatchNormalization",), _choose, _bind),)
