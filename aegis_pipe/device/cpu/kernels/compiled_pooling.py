"""Compiled pools over one or two spatial dimensions (`c/pooling.c`).

native.pool.max, native.pool.average                a row of windows at a time
native.pool.global_max, native.pool.global_average  one reduction a plane
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import compiled, native, operands
from aegis_pipe.device.cpu.kernels.native import INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.planned import elements_moved
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest

_LANES = 16
_STRIP = 8
"""Rows of windows that are prepared together; `STRIP` of `c/pooling.c`."""


class _Pool(ctypes.Structure):
    """`pool` of `c/pooling.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "y", "workspace")),
        *((name, INTEGER) for name in ("planes", "height", "width", "out_height", "out_width")),
        *((name, INTEGER) for name in ("kernel_height", "kernel_width")),
        *((name, INTEGER) for name in ("stride_height", "stride_width")),
        *((name, INTEGER) for name in ("dilation_height", "dilation_width")),
        *((name, INTEGER) for name in ("pad_top", "pad_left", "pad_bottom", "pad_right")),
        *((name, INTEGER) for name in ("row_floats", "counts_pads", "workspace_floats")),
    )


class _GlobalPool(ctypes.Structure):
    """`global_pool` of `c/pooling.c`."""

    _fields_ = (("x", POINTER), ("y", POINTER), ("planes", INTEGER), ("count", INTEGER))


_FUNCTIONS = {
    "MaxPool": ("native.pool.max", "aegis_max_pool"),
    "AveragePool": ("native.pool.average", "aegis_average_pool"),
    "GlobalMaxPool": ("native.pool.global_max", "aegis_global_max_pool"),
    "GlobalAveragePool": ("native.pool.global_average", "aegis_global_average_pool"),
}


def _pair(values: Sequence[int], filler: int) -> tuple[int, int]:
    return (filler, values[0]) if len(values) == 1 else (values[0], values[1])


def _row_floats(request: KernelRequest) -> int:
    """Return the room for one sorted row: all that is written to it, and all that is read."""
    width = operands.input_spec(request, 0).shape[-1]
    out_width = operands.output_spec(request).shape[-1]
    kernel, stride, dilation = (
        operands.integers(request, name)[-1] for name in ("kernel_shape", "strides", "dilations")
    )
    pads = operands.integers(request, "pads")
    written = -(-(pads[len(pads) // 2 - 1] + compiled.round_up(width, _LANES)) // stride)
    read = compiled.round_up(out_width, _LANES) + (kernel - 1) * dilation // stride
    return compiled.round_up(max(width, written, read), _LANES)


def _workspace_floats(request: KernelRequest) -> int:
    stride = operands.integers(request, "strides")[-1]
    return (_STRIP * stride + 2) * _row_floats(request)


def _choose_pool(request: KernelRequest) -> KernelChoice | None:
    if native.LIBRARY is None or not compiled.is_float32(request):
        return None
    if len(operands.input_spec(request, 0).shape) not in (3, 4):
        return None
    if operands.has_output(request, 1) or min(operands.integers(request, "pads")) < 0:
        return None
    return KernelChoice(
        kernel=_FUNCTIONS[request.operator][0],
        workspace_bytes=_workspace_floats(request) * 4,
        cost=elements_moved(request) * math.prod(operands.integers(request, "kernel_shape")),
    )


def _bind_pool(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    x, y = operands.required(inputs), operands.required(outputs)
    pads = operands.integers(request, "pads")
    half = len(pads) // 2
    arguments = _Pool(
        *(native.address(array) for array in (x, y, workspace)),
        math.prod(x.shape[:2]),
        *_pair(x.shape[2:], 1),
        *_pair(y.shape[2:], 1),
        *_pair(operands.integers(request, "kernel_shape"), 1),
        *_pair(operands.integers(request, "strides"), 1),
        *_pair(operands.integers(request, "dilations"), 1),
        *_pair(pads[:half], 0),
        *_pair(pads[half:], 0),
        _row_floats(request),
        bool(request.attributes.get("count_include_pad", 0)),
        _workspace_floats(request),
    )
    function = _FUNCTIONS[request.operator][1]
    return native.call(function, arguments, (x, y, workspace))


def _choose_global(request: KernelRequest) -> KernelChoice | None:
    if native.LIBRARY is None or not compiled.is_float32(request):
        return None
    return KernelChoice(kernel=_FUNCTIONS[request.operator][0], cost=elements_moved(request))


def _bind_global(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    x, y = operands.required(inputs), operands.required(outputs)
    arguments = _GlobalPool(
        native.address(x), native.address(y), math.prod(x.shape[:2]), math.prod(x.shape[2:])
    )
    return native.call(_FUNCTIONS[request.operator][1], arguments, (x, y))


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel(("MaxPool", "AveragePool"), _choose_pool, _bind_pool, shares_work=True),
    CpuKernel(("GlobalMaxPool", "GlobalAveragePool"), _choose_global, _bind_global),
)
