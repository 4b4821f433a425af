"""Compiled depthwise convolutions and pools of images with channels last (`c/channels_last.c`).

native.conv.depthwise_channels_last
native.pool.max_channels_last, native.pool.average_channels_last
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import compiled, native, operands
from aegis_pipe.device.cpu.kernels.native import FLOAT, INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.planned import as_bytes, elements_moved
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant

_LANES = 16
_CONVOLUTION = "com.microsoft.NhwcFusedConv"
_RESIDUAL = 3
_POOLS = {
    "com.microsoft.NhwcMaxPool": "max",
    "aegis.NhwcAveragePool": "average",
}
_FUNCTIONS = {
    "native.conv.depthwise_channels_last": "aegis_depthwise_channels_last",
    "native.pool.max_channels_last": "aegis_max_pool_channels_last",
    "native.pool.average_channels_last": "aegis_average_pool_channels_last",
}


class _Windows(ctypes.Structure):
    """`windows` of `c/channels_last.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "w", "bias", "residual", "y")),
        *((name, INTEGER) for name in ("batch", "channels", "height", "width")),
        *((name, INTEGER) for name in ("out_height", "out_width")),
        *((name, INTEGER) for name in ("kernel_height", "kernel_width")),
        *((name, INTEGER) for name in ("stride_height", "stride_width")),
        *((name, INTEGER) for name in ("dilation_height", "dilation_width")),
        *((name, INTEGER) for name in ("pad_top", "pad_left", "pad_bottom", "pad_right")),
        *((name, FLOAT) for name in ("low", "high")),
        *((name, INTEGER) for name in ("clips", "counts_pads")),
    )


def _is_image(request: KernelRequest) -> bool:
    return len(operands.input_spec(request, 0).shape) in (3, 4)


def _choose_depthwise(request: KernelRequest) -> KernelChoice | None:
    if native.LIBRARY is None or 1 not in request.constants or not compiled.is_float32(request):
        return None
    channels, depth, *kernel = operands.input_spec(request, 1).shape
    groups = operands.integer(request, "group")
    if not _is_image(request) or not groups == channels > depth == 1:
        return None
    if min(operands.integers(request, "pads")) < 0 or compiled.clip_bounds(request) is None:
        return None
    taps = math.prod(kernel)
    return KernelChoice(
        kernel="native.conv.depthwise_channels_last",
        packed={1: packed_depthwise(groups, taps)},
        in_place=((_RESIDUAL, 0),) if operands.has_input(request, _RESIDUAL) else (),
        cost=float(operands.output_spec(request).element_count * taps),
    )


def packed_depthwise(channels: int, taps: int) -> PackedConstant:
    """Return how weights [channels, 1, taps...] are wanted: [channels / 16, taps, 16]."""
    return PackedConstant(
        layout=f"taps.{_LANES}",
        size_bytes=taps * compiled.round_up(channels, _LANES) * 4,
        pack=lambda array: as_bytes(compiled.in_tiles(array.reshape(channels, taps).T, _LANES)),
    )


def _choose_pool(request: KernelRequest) -> KernelChoice | None:
    if native.LIBRARY is None or not compiled.is_float32(request) or not _is_image(request):
        return None
    if operands.has_output(request, 1) or min(operands.integers(request, "pads")) < 0:
        return None
    return KernelChoice(
        kernel=f"native.pool.{_POOLS[request.operator]}_channels_last",
        cost=elements_moved(request) * math.prod(operands.integers(request, "kernel_shape")),
    )


def _pair(values: Sequence[int], filler: int) -> tuple[int, int]:
    return (filler, values[0]) if len(values) == 1 else (values[0], values[1])


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    x, y = operands.required(inputs), operands.required(outputs)
    is_convolution = request.operator == _CONVOLUTION
    bounds = compiled.clip_bounds(request) if is_convolution else compiled.UNBOUNDED
    assert bounds is not None, request.operator
    pads = operands.integers(request, "pads")
    half = len(pads) // 2
    arguments = _Windows(
        native.address(x),
        *(native.address(operands.optional(inputs, position)) for position in (1, 2, 3)),
        native.address(y),
        *(x.shape[0], x.shape[-1]),
        *_pair(x.shape[1:-1], 1),
        *_pair(y.shape[1:-1], 1),
        *_pair(operands.integers(request, "kernel_shape"), 1),
        *_pair(operands.integers(request, "strides"), 1),
        *_pair(operands.integers(request, "dilations"), 1),
        *_pair(pads[:half], 0),
        *_pair(pads[half:], 0),
        *bounds,
        bounds != compiled.UNBOUNDED,
        bool(request.attributes.get("count_include_pad", 0)),
    )
    return native.call(_FUNCTIONS[choice.kernel], arguments, (*inputs, *outputs))


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel((_CONVOLUTION,), _choose_depthwise, _bind, shares_work=True),
    CpuKernel(tuple(_POOLS), _choose_pool, _bind, shares_work=True),
)
