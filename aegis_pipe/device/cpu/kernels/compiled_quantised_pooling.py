"""Compiled pools over bytes with channels last (`c/quantised_pooling.c`).

native.bytes.max_pool      NhwcMaxPool
native.bytes.average_pool  QLinearAveragePool and QLinearGlobalAveragePool
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import byte_units, native, operands
from aegis_pipe.device.cpu.kernels.native import FLOAT, INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.planned import elements_moved
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest

_MAX = "com.microsoft.NhwcMaxPool"
_GLOBAL = "com.microsoft.QLinearGlobalAveragePool"
_OPERATORS = (_MAX, "com.microsoft.QLinearAveragePool", _GLOBAL)


class _Pool(ctypes.Structure):
    """`byte_pool` of `c/quantised_pooling.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "y", "x_scale", "y_scale", "x_zero", "y_zero")),
        *((name, INTEGER) for name in ("batch", "channels", "height", "width")),
        *((name, INTEGER) for name in ("out_height", "out_width")),
        *((name, INTEGER) for name in ("kernel_height", "kernel_width")),
        *((name, INTEGER) for name in ("stride_height", "stride_width")),
        *((name, INTEGER) for name in ("dilation_height", "dilation_width")),
        *((name, INTEGER) for name in ("pad_top", "pad_left", "pad_bottom", "pad_right")),
        *((name, INTEGER) for name in ("counts_padding", "is_signed")),
        *((name, FLOAT) for name in ("low", "high")),
    )


def _choose(request: KernelRequest) -> KernelChoice | None:
    data, result = operands.input_spec(request, 0), operands.output_spec(request)
    is_last = request.operator == _MAX or request.attributes.get("channels_last")
    if native.LIBRARY is None or not is_last or len(data.shape) not in (3, 4):
        return None
    if {data.dtype, result.dtype} - set(byte_units.EIGHT_BITS) or data.dtype != result.dtype:
        return None
    if not result.element_count or operands.has_output(request, 1):
        return None
    if not byte_units.is_single(request, *range(1, len(request.inputs))):
        return None
    if request.operator != _GLOBAL and min(operands.integers(request, "pads")) < 0:
        return None
    name = "max" if request.operator == _MAX else "average"
    taps = data.element_count // result.element_count
    return KernelChoice(
        kernel=f"native.bytes.{name}_pool", cost=elements_moved(request) * max(1, taps)
    )


def _windows(request: KernelRequest, size: Sequence[int]) -> Sequence[int]:
    """Return kernel, strides, dilations, pads before, pads after: (height, width) each."""
    if request.operator == _GLOBAL:
        return (*size, 1, 1, 1, 1, 0, 0, 0, 0)
    pads = operands.integers(request, "pads")
    half = len(pads) // 2
    values = (*(operands.integers(request, n) for n in ("kernel_shape", "strides", "dilations")),)
    return [
        *(each for value in values for each in _pair(value, 1)),
        *_pair(pads[:half], 0),
        *_pair(pads[half:], 0),
    ]


def _pair(values: Sequence[int], filler: int) -> tuple[int, int]:
    height, width = ((filler,) * (2 - len(values)) + tuple(values))[:2]
    return height, width


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    x, y = operands.required(inputs), operands.required(outputs)
    size, out_size = _pair(x.shape[1:-1], 1), _pair(y.shape[1:-1], 1)
    scales = [operands.optional(inputs, position) for position in (1, 3, 2, 4)]
    arguments = _Pool(
        *map(native.address, (x, y, *scales)),
        *(x.shape[0], x.shape[-1], *size, *out_size),
        *_windows(request, size),
        bool(request.attributes.get("count_include_pad", 0)),
        byte_units.is_signed(x),
        *byte_units.level_bounds(y.dtype),
    )
    assert math.prod(out_size) * y.shape[0] * y.shape[-1] == y.size, request.node
    function = f"aegis_byte_{choice.kernel.rpartition('.')[2]}"
    return native.call(function, arguments, (*inputs, y))


KERNEL_FAMILY: tuple[CpuKernel, ...] = (CpuKernel(_OPERATORS, _choose, _bind, shares_work=True),)
