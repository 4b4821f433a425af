"""Compiled casts (`c/conversions.c`): between integers, truth values and floats."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import native, operands
from aegis_pipe.device.cpu.kernels.native import INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest

_INTEGERS = frozenset(
    {"int64", "int32", "int16", "uint64", "uint32", "uint16", "uint8", "int8", "bool"}
)
_FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})
_TARGETS = dict.fromkeys(_INTEGERS | _FLOATS, _INTEGERS | _FLOATS) | {
    # NumPy rounds once.
    "float64": _INTEGERS | {"float32", "bfloat16"},
}
"""What each is cast to; to itself, nothing is to be done."""


class _Conversion(ctypes.Structure):
    """`conversion` of `c/conversions.c`."""

    _fields_ = (("x", POINTER), ("y", POINTER), ("count", INTEGER))


def _names(request: KernelRequest) -> tuple[str, str]:
    return operands.input_spec(request, 0).dtype.name, operands.output_spec(request).dtype.name


def _choose(request: KernelRequest) -> KernelChoice | None:
    source, target = _names(request)
    is_known = source != target and target in _TARGETS.get(source, ())
    count = operands.output_spec(request).element_count
    if native.LIBRARY is None or not is_known or not count:
        return None
    return KernelChoice(kernel="native.cast", cost=2.0 * count)


def function(request: KernelRequest) -> str:
    """Return the function by both dtypes."""
    return f"cast_{'_'.join(_names(request))}"


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    x, y = operands.required(inputs), operands.required(outputs)
    arguments = _Conversion(native.address(x), native.address(y), x.size)
    return native.call(f"aegis_{function(request)}", arguments, (x, y))


KERNEL_FAMILY: tuple[CpuKernel, ...] = (CpuKernel(("Cast",), _choose, _bind, shares_work=True),)
