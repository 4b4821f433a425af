"""Compiled transposed convolution over one to three dimensions (`c/transposed_convolution.c`).

native.conv_transpose  strips of output rows; constant weights are packed tap by tap
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import compiled, native, operands
from aegis_pipe.device.cpu.kernels.native import INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant

_AXES = 3


class _TransposedConvolution(ctypes.Structure):
    """`transposed_convolution` of `c/transposed_convolution.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "weights", "bias", "y", "workspace")),
        *((name, INTEGER) for name in ("images", "groups", "depth", "maps")),
        *((name, INTEGER * _AXES) for name in ("size", "out_size", "kernel")),
        *((name, INTEGER * _AXES) for name in ("stride", "dilation", "pad")),
        *((name, INTEGER) for name in ("weight_group", "weight_tap", "weight_map", "weight_depth")),
    )


def _axes(values: Sequence[int], filler: int) -> ctypes.Array[INTEGER]:
    """Return one number for each of the three axes, the innermost last."""
    return (INTEGER * _AXES)(*(filler,) * (_AXES - len(values)), *values)


def _weight_strides(depth: int, maps: int, taps: int, is_packed: bool) -> tuple[int, int, int, int]:
    """Return the weights' strides between groups, taps, maps and input channels, in elements.

    As they come they are [groups, depth, maps, taps], packed [groups, taps, maps, depth].
    """
    size = depth * maps * taps
    return (size, maps * depth, depth, 1) if is_packed else (size, 1, taps, maps * taps)


def _arguments(
    request: KernelRequest, is_packed: bool, arrays: Sequence[np.ndarray | None]
) -> _TransposedConvolution:
    """Return the arguments; `arrays`: x, weights, bias, y and workspace."""
    data, result = operands.input_spec(request, 0).shape, operands.output_spec(request).shape
    channels, maps, *kernel = operands.input_spec(request, 1).shape
    groups = operands.integer(request, "group")
    pads = operands.integers(request, "pads")
    return _TransposedConvolution(
        *(native.address(array) for array in arrays),
        *(data[0], groups, channels // groups, maps),
        *(_axes(sizes, 1) for sizes in (data[2:], result[2:], kernel)),
        *(_axes(operands.integers(request, name), 1) for name in ("strides", "dilations")),
        _axes(pads[: len(pads) // 2], 0),
        *_weight_strides(channels // groups, maps, math.prod(kernel), is_packed),
    )


def _packed(request: KernelRequest) -> dict[int, PackedConstant]:
    if 1 not in request.constants:
        return {}
    spec, groups = operands.input_spec(request, 1), operands.integer(request, "group")

    def fill(weights: np.ndarray, packed: np.ndarray) -> None:
        by_group = weights.reshape(groups, spec.shape[0] // groups, spec.shape[1], -1)
        by_tap = by_group.transpose(0, 3, 2, 1)
        np.copyto(packed.view(np.float32).reshape(by_tap.shape), by_tap)

    return {1: PackedConstant.filled(f"taps.transposed.{groups}", spec.size_bytes, fill)}


def _choose(request: KernelRequest) -> KernelChoice | None:
    data = operands.input_spec(request, 0).shape
    if native.LIBRARY is None or not compiled.is_float32(request) or not 3 <= len(data) <= 5:
        return None
    if min(operands.integers(request, "pads")) < 0:
        return None
    packed = _packed(request)
    arguments = _arguments(request, bool(packed), (None,) * 5)
    weights = operands.input_spec(request, 1)
    return KernelChoice(
        kernel="native.conv_transpose",
        workspace_bytes=native.LIBRARY.size_for(
            "aegis_transposed_convolution_workspace", arguments
        ),
        packed=packed,
        cost=float(data[0] * math.prod(data[2:]) * weights.element_count),
    )


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    arrays = (*inputs[:2], operands.optional(inputs, 2), *outputs, workspace)
    arguments = _arguments(request, bool(choice.packed), arrays)
    return native.call("aegis_transposed_convolution", arguments, arrays)


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel(("ConvTranspose",), _choose, _bind, shares_work=True),
)
