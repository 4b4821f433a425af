"""BatchNormalization in training mode: by the batch's moments, which update the running ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import all_float, planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec


def _accepts(request: KernelRequest) -> bool:
    return bool(operands.integer(request, "training_mode")) and all_float(request)


def _scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    data = operands.input_spec(request, 0)
    channels = TensorSpec(data.dtype, (1, data.shape[1], *[1] * (len(data.shape) - 2)))
    return (data, channels, channels)


def _bind(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data = operands.required(inputs)
    centred, mean, variance = scratch
    scale, bias, *running = (operands.required(inputs, i).reshape(mean.shape) for i in range(1, 5))
    result = operands.required(outputs)
    updated = [operands.optional(outputs, 1), operands.optional(outputs, 2)]
    axes = (0, *range(2, data.ndim))
    momentum, epsilon = operands.number(request, "momentum"), operands.number(request, "epsilon")

    def run() -> None:
        np.mean(data, axis=axes, out=mean, keepdims=True)
        np.subtract(data, mean, out=centred)
        np.multiply(centred, centred, out=result)
        np.mean(result, axis=axes, out=variance, keepdims=True)
        for target, before, now in zip(updated, running, (mean, variance), strict=True):
            if target is not None:
                by_channel = target.reshape(now.shape)
                np.multiply(now, 1 - momentum, out=by_channel)
                by_channel += before * momentum
        np.add(variance, epsilon, out=variance)
        np.sqrt(variance, out=variance)
        np.divide(centred, variance, out=result)
        np.multiply(result, scale, out=result)
        np.add(result, bias, out=result)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "batch_normalisation.training",
        ("BatchNormalization",),
        _bind,
        accepts=_accepts,
        scratch=_scratch,
    ),
)
