"""Compiled inverted residual blocks (`c/inverted_residual.c`): native.inverted_residual."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import compiled, native, operands
from aegis_pipe.device.cpu.kernels.compiled_channels_last import packed_depthwise
from aegis_pipe.device.cpu.kernels.compiled_convolution import packed_pointwise
from aegis_pipe.device.cpu.kernels.native import FLOAT, INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorSpec

_OPERATOR = "aegis.InvertedResidual"
_WIDEN, _DEPTHWISE, _NARROW, _RESIDUAL = 1, 3, 5, 7
"""Positions of the layers' weights, each with its bias behind it, and of what is added."""
_STRIP_FLOATS = 96 << 10
"""Of the rows that are widened for a strip: they share a second-level cache with all weights."""


class _Layer(ctypes.Structure):
    """`layer` of `c/inverted_residual.c`."""

    _fields_ = (("w", POINTER), ("bias", POINTER), ("low", FLOAT), ("high", FLOAT))


class _Block(ctypes.Structure):
    """`inverted_residual` of `c/inverted_residual.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "residual", "y", "workspace")),
        *((name, _Layer) for name in ("widen", "depthwise", "narrow")),
        *((name, INTEGER) for name in ("batch", "height", "width", "depth", "channels", "maps")),
        *((name, INTEGER) for name in ("out_height", "out_width")),
        *((name, INTEGER) for name in ("stride", "pad_top", "pad_left", "strip")),
        *((name, INTEGER) for name in ("wide_floats", "workspace_floats")),
    )


def _is_known(request: KernelRequest) -> bool:
    if native.LIBRARY is None or not compiled.is_float32(request):
        return False
    weights = [p for p in (_WIDEN, _DEPTHWISE, _NARROW) if operands.has_input(request, p)]
    strides = operands.integers(request, "strides")
    return (
        all(position in request.constants for position in weights)
        and operands.integers(request, "kernel_shape") == (3, 3)
        and strides in ((1, 1), (2, 2))
        and set(operands.integers(request, "dilations")) == {1}
        and min(operands.integers(request, "pads")) >= 0
    )


def _strip(request: KernelRequest) -> tuple[int, int, int]:
    """Return rows of a strip, floats of what is widened for it, and of one worker's workspace."""
    x, y = operands.input_spec(request, 0).shape, operands.output_spec(request).shape
    channels = operands.input_spec(request, _DEPTHWISE).shape[0]
    stride = operands.integers(request, "strides")[0]
    row, out_row = x[2] * channels, y[2] * channels
    most = max(1, (_STRIP_FLOATS // row - 3) // stride + 1)
    rows = -(-y[1] // -(-y[1] // most))
    widened = ((rows - 1) * stride + 3) * row if operands.has_input(request, _WIDEN) else 0
    wide_floats = compiled.round_up(widened, 16)
    return rows, wide_floats, wide_floats + compiled.round_up(rows * out_row, 16)


def _choose(request: KernelRequest) -> KernelChoice | None:
    if not _is_known(request):
        return None
    x, y = operands.input_spec(request, 0), operands.output_spec(request)
    taps, narrow = (operands.input_spec(request, p).shape for p in (_DEPTHWISE, _NARROW))
    packed = {
        _DEPTHWISE: packed_depthwise(taps[0], math.prod(taps[2:])),
        _NARROW: packed_pointwise(narrow[0], narrow[1]),
    }
    cost = _pixels(y) * taps[0] * (math.prod(taps[2:]) + narrow[0])
    if operands.has_input(request, _WIDEN):
        wide = operands.input_spec(request, _WIDEN).shape
        packed[_WIDEN] = packed_pointwise(wide[0], wide[1])
        cost += _pixels(x) * wide[0] * wide[1]
    return KernelChoice(
        kernel="native.inverted_residual",
        workspace_bytes=_strip(request)[2] * 4,
        packed=packed,
        cost=float(cost),
    )


def _pixels(image: TensorSpec) -> int:
    return math.prod(image.shape[:3])


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    x, y = operands.required(inputs), operands.required(outputs)
    bounds = operands.numbers(request, "bounds")
    layers = [
        _Layer(
            native.address(operands.optional(inputs, position)),
            native.address(operands.optional(inputs, position + 1)),
            *bounds[2 * index : 2 * index + 2],
        )
        for index, position in enumerate((_WIDEN, _DEPTHWISE, _NARROW))
    ]
    strip, wide_floats, workspace_floats = _strip(request)
    arguments = _Block(
        native.address(x),
        native.address(operands.optional(inputs, _RESIDUAL)),
        native.address(y),
        native.address(workspace),
        *layers,
        *(*x.shape, operands.input_spec(request, _DEPTHWISE).shape[0], y.shape[3]),
        *y.shape[1:3],
        operands.integers(request, "strides")[0],
        *operands.integers(request, "pads")[:2],
        *(strip, wide_floats, workspace_floats),
    )
    kept = (*inputs, *outputs, workspace)
    return native.call("aegis_inverted_residual", arguments, kept)


KERNEL_FAMILY: tuple[CpuKernel, ...] = (CpuKernel((_OPERATOR,), _choose, _bind, shares_work=True),)
