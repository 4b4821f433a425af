"""Compiled comparisons, logic and selection (`c/comparisons.c`).

native.compare  two operands of one type whose broadcasting comes down to four dimensions at most
native.select   `Where`, elements of 1 to 8 bytes
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import broadcasting, native, operands
from aegis_pipe.device.cpu.kernels.native import INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.planned import elements_moved
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest

_RANK = broadcasting.RANK
COMPARISONS = {
    "Equal": "equal",
    "Greater": "greater",
    "Less": "less",
    "GreaterOrEqual": "greater_or_equal",
    "LessOrEqual": "less_or_equal",
    "And": "and",
    "Or": "or",
    "Xor": "xor",
}
NUMBERS = frozenset({"float32", "int64", "int32", "uint8", "int8"})
_OF_TRUTH = frozenset({"Equal", "And", "Or", "Xor"})
"""What truth values are compared by; the last three take nothing else."""


class _Comparison(ctypes.Structure):
    """`comparison` of `c/comparisons.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("a", "b", "y")),
        *((name, INTEGER * _RANK) for name in ("shape", "a_strides", "b_strides")),
    )


class _Selection(ctypes.Structure):
    """`selection` of `c/comparisons.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("condition", "a", "b", "y")),
        *(
            (name, INTEGER * _RANK)
            for name in ("shape", "condition_strides", "a_strides", "b_strides")
        ),
    )


def _walk(request: KernelRequest) -> tuple[tuple[int, ...], ...] | None:
    """Return the result's shape and each operand's strides, of rank `_RANK`."""
    shapes = [operands.input_spec(request, i).shape for i in range(len(request.inputs))]
    return broadcasting.walk(operands.output_spec(request).shape, shapes)


def _choose_comparison(request: KernelRequest) -> KernelChoice | None:
    dtype, result = operands.input_spec(request, 0).dtype.name, operands.output_spec(request)
    is_known = request.operator in _OF_TRUTH if dtype == "bool" else dtype in NUMBERS
    if native.LIBRARY is None or not is_known or not result.element_count:
        return None
    return None if _walk(request) is None else _choice(request, "native.compare")


def _choose_selection(request: KernelRequest) -> KernelChoice | None:
    result = operands.output_spec(request)
    is_known = result.dtype.itemsize in (1, 2, 4, 8) and result.element_count > 0
    if native.LIBRARY is None or not is_known:
        return None
    return None if _walk(request) is None else _choice(request, "native.select")


def _choice(request: KernelRequest, kernel: str) -> KernelChoice:
    return KernelChoice(kernel=kernel, cost=elements_moved(request))


def function(request: KernelRequest) -> str:
    """Return the function by operator and dtype."""
    if request.operator == "Where":
        return f"select_{operands.output_spec(request).dtype.itemsize}"
    return f"{COMPARISONS[request.operator]}_{operands.input_spec(request, 0).dtype.name}"


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    walk = _walk(request)
    assert walk is not None, request.node
    result = operands.required(outputs)
    kind = _Selection if request.operator == "Where" else _Comparison
    arguments = kind(
        *(native.address(array) for array in (*inputs, result)),
        *((INTEGER * _RANK)(*values) for values in walk),
    )
    name = f"aegis_{function(request)}"
    return native.call(name, arguments, (*inputs, *outputs))


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel(tuple(COMPARISONS), _choose_comparison, _bind, shares_work=True),
    CpuKernel(("Where",), _choose_selection, _bind, shares_work=True),
)
