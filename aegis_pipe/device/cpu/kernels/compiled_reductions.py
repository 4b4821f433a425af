"""Compiled reductions of float32 along neighbouring dimensions (`c/reductions.c`)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import compiled, native, operands
from aegis_pipe.device.cpu.kernels.native import FLOAT, INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest

_FUNCTIONS = {
    "ReduceSum": "sum",
    "ReduceMean": "mean",
    "ReduceMax": "max",
    "ReduceMin": "min",
    "ReduceSumSquare": "square_sum",
    "ReduceL1": "magnitude_sum",
    "ReduceL2": "length",
}


class _Reduction(ctypes.Structure):
    """`reduction` of `c/reductions.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "y")),
        *((name, INTEGER) for name in ("outer", "length", "inner")),
        ("divisor", FLOAT),
    )


def _sizes(request: KernelRequest) -> tuple[int, int, int] | None:
    """Return what lies before, in and behind the reduced dimensions; None if they lie apart."""
    shape = operands.input_spec(request, 0).shape
    reduced = [axis for axis in operands.integers(request, "axes") if shape[axis] > 1]
    if not reduced:
        return math.prod(shape), 1, 1
    first, last = min(reduced), max(reduced)
    kept_between = [
        size for axis, size in enumerate(shape[first:last], first) if axis not in reduced
    ]
    if any(size > 1 for size in kept_between):
        return None
    outer, length = math.prod(shape[:first]), math.prod(shape[first : last + 1])
    return outer, length, math.prod(shape[last + 1 :])


def _choose(request: KernelRequest) -> KernelChoice | None:
    if native.LIBRARY is None or not compiled.is_float32(request) or _sizes(request) is None:
        return None
    elements = operands.input_spec(request, 0).element_count
    return KernelChoice(kernel="native.reduce", cost=float(elements))


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    sizes = _sizes(request)
    assert sizes is not None, request.node
    arguments = _Reduction(
        native.address(operands.required(inputs)),
        native.address(operands.required(outputs)),
        *sizes,
        sizes[1],
    )
    function = f"aegis_reduce_{_FUNCTIONS[request.operator]}"
    return native.call(function, arguments, (*inputs, *outputs))


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel(tuple(_FUNCTIONS), _choose, _bind, shares_work=True),
)
