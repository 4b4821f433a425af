"""Softmax, LogSoftmax and Hardmax over [outer, length, inner] views of the operands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec


def _blocks(request: KernelRequest) -> tuple[int, int, int]:
    """Return (outer, length, inner); the middle is normalised."""
    shape = operands.input_spec(request, 0).shape
    axes = operands.integers(request, "axes")
    first, last = (axes[0], axes[-1] + 1) if axes else (len(shape), len(shape))
    return math.prod(shape[:first]), math.prod(shape[first:last]), math.prod(shape[last:])


def _scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    outer, _, inner = _blocks(request)
    return (TensorSpec(operands.input_spec(request, 0).dtype, (outer, 1, inner)),)


def softmax(data: np.ndarray, axis: int, statistic: np.ndarray, out: np.ndarray) -> None:
    """Write the softmax of `data`; `statistic` has its shape with 1 at `axis`.

    Rows of -inf alone become NaN. `out` may be `data`.
    """
    np.maximum.reduce(data, axis=axis, keepdims=True, out=statistic)
    np.subtract(data, statistic, out=out)
    np.exp(out, out=out)
    np.add.reduce(out, axis=axis, keepdims=True, out=statistic)
    np.divide(out, statistic, out=out)


def _bind_softmax(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data = operands.required(inputs).reshape(_blocks(request))
    result = operands.required(outputs).reshape(data.shape)
    statistic = scratch[0]

    def run() -> None:
        softmax(data, 1, statistic, result)

    return run


def _log_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    data = operands.input_spec(request, 0)
    return (*_scratch(request), TensorSpec(data.dtype, _blocks(request)))


def _bind_log_softmax(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data = operands.required(inputs).reshape(_blocks(request))
    result = operands.required(outputs).reshape(data.shape)
    statistic, powers = scratch

    def run() -> None:
        np.maximum.reduce(data, axis=1, keepdims=True, out=statistic)
        np.subtract(data, statistic, out=result)
        np.exp(result, out=powers)
        np.add.reduce(powers, axis=1, keepdims=True, out=statistic)
        np.log(statistic, out=statistic)
        np.subtract(result, statistic, out=result)

    return run


def _hard_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    outer, length, inner = _blocks(request)
    dtype = operands.input_spec(request, 0).dtype
    rows = TensorSpec(dtype, (outer, inner, length))
    return (TensorSpec(np.dtype(np.intp), (outer, inner)), rows)


def _bind_hardmax(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data = operands.required(inputs).reshape(_blocks(request))
    result = operands.required(outputs).reshape(data.shape)
    first_largest, rows = scratch
    places = np.arange(data.shape[1])[:, None]
    scattered = data.swapaxes(1, 2)

    def run() -> None:
        # NumPy's argmax would itself copy what is not contiguous, or not writeable.
        np.copyto(rows, scattered)
        np.argmax(rows, axis=-1, out=first_largest)
        np.equal(places, first_largest[:, None], out=result)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel("softmax", ("Softmax",), _bind_softmax, scratch=_scratch, in_place=((0, 0),)),
    planned_kernel(
        "log_softmax", ("LogSoftmax",), _bind_log_softmax, scratch=_log_scratch, in_place=((0, 0),)
    ),
    planned_kernel("hardmax", ("Hardmax",), _bind_hardmax, scratch=_hard_scratch),
)
