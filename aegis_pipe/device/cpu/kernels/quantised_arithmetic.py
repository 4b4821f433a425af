"""Addition and multiplication of quantised tensors, by way of float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import FLOAT32, planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.cpu.kernels.requantise import subtract_zero
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec


def _accepts(request: KernelRequest) -> bool:
    scalars = [spec for i, spec in enumerate(request.inputs) if i not in (0, 3) and spec]
    return all(spec.element_count == 1 for spec in scalars) and all(
        operands.input_spec(request, position).dtype in (np.int8, np.uint8) for position in (0, 3)
    )


def _scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    return (
        TensorSpec(FLOAT32, operands.output_spec(request).shape),
        TensorSpec(FLOAT32, operands.input_spec(request, 3).shape),
    )


def _scalar(inputs: Sequence[np.ndarray | None], position: int) -> np.ndarray | None:
    array = operands.optional(inputs, position)
    return None if array is None else array.reshape(())


def _bind(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    left, right = operands.required(inputs, 0), operands.required(inputs, 3)
    left_zero, right_zero, zero = (_scalar(inputs, position) for position in (2, 5, 7))
    scales = [operands.required(inputs, position).reshape(()) for position in (1, 4, 6)]
    result = operands.required(outputs)
    total, other = scratch
    wide_left = np.broadcast_to(left, total.shape)
    combine = np.add if request.operator.endswith("Add") else np.multiply
    limits = np.iinfo(result.dtype)
    low, high = operands.integers(request, "levels") or (limits.min, limits.max)

    def run() -> None:
        subtract_zero(wide_left, left_zero, total)
        np.multiply(total, scales[0], out=total)
        subtract_zero(right, right_zero, other)
        np.multiply(other, scales[1], out=other)
        combine(total, other, out=total)
        np.divide(total, scales[2], out=total)
        np.rint(total, out=total)
        if zero is not None:
            np.add(total, zero, out=total, dtype=FLOAT32)
        np.clip(total, low, high, out=total)
        np.copyto(result, total, casting="unsafe")

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "quantised_arithmetic",
        ("com.microsoft.QLinearAdd", "com.microsoft.QLinearMul"),
        _bind,
        accepts=_accepts,
        scratch=_scratch,
    ),
)
