"""An LSTM whose weights are quantised: they are floats again, and its steps an LSTM's.

X and the state stay floats; the CPU rounds them to bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from aegis_pipe.device.cuda.kernels.each import each, given
from aegis_pipe.device.cuda.kernels.nested import bind_nested, nested_choice
from aegis_pipe.device.cuda.kernels.operands import operand, required
from aegis_pipe.device.cuda.kernels.recurrent import LAYERS
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import FLOAT32
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorSpec

_EIGHT_BITS = frozenset({np.dtype(np.int8), np.dtype(np.uint8)})
_SCALES = {1: 8, 2: 10}
"""Where the scale of W and that of R are; the zero point follows."""


def _real_request(request: KernelRequest) -> KernelRequest:
    inputs = list(request.inputs[:8])
    for position in _SCALES:
        directions, rows, columns = required(request, position).shape
        inputs[position] = TensorSpec(FLOAT32, (directions, columns, rows))
    return replace(request, operator="LSTM", inputs=tuple(inputs), constants={})


def _aligned(size: int) -> int:
    return -(-size // 256) * 256


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    if any(required(request, position).dtype not in _EIGHT_BITS for position in _SCALES):
        return None
    real = _real_request(request)
    found = nested_choice(machine, (LAYERS,), real)
    if found is None:
        return None
    weights = sum(_aligned(required(real, position).size_bytes) for position in _SCALES)
    return KernelChoice("recurrent.quantised", weights + found[1].workspace_bytes)


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request, real = binding.request, _real_request(binding.request)
    addresses, free = list(binding.inputs[:8]), binding.workspace
    launches: list[Enqueue] = []
    for position, scale_at in _SCALES.items():
        spec, scale = required(request, position), required(request, scale_at)
        _, rows, columns = spec.shape
        per_column = f"d * {columns} + c" if len(scale.shape) > 1 else "d"
        place = per_column if scale.element_count > 1 else "0"
        zero = f" - (float)zero[{place}]" if operand(request, scale_at + 1) is not None else ""
        statements = f"""
  const long long k = i % {rows}, c = i / {rows} % {columns}, d = i / {rows * columns};
  (void)d; (void)c;
  y[i] = ((float)x[(d * {rows} + k) * {columns} + c]{zero}) * scale[{place}];"""
        names = given(binding, {"x": position, "scale": scale_at, "zero": scale_at + 1})
        parameters = [*names, ("float* y", free)]
        launches += each(binding, spec.element_count, statements, parameters)
        addresses[position] = free
        free += _aligned(required(real, position).size_bytes)
    return launches + bind_nested(binding, (LAYERS,), real, addresses, binding.outputs, free)


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    CudaKernel(("com.microsoft.DynamicQuantizeLSTM",), _choose, _bind),
)
