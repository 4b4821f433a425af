"""Compiled convolutions of bytes (`c/quantised_convolution.c`), two-dimensional; 1D has height 1.

native.bytes.conv            products of bytes
native.bytes.conv_depthwise  one input and one output channel a group
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from aegis_pipe.device.cpu.kernels import byte_units, compiled, native, operands
from aegis_pipe.device.cpu.kernels.native import INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.planned import as_bytes
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant
from aegis_pipe.record import record

CHANNELS_LAST = "com.microsoft.QLinearConv"
_OPERATORS = ("QLinearConv", CHANNELS_LAST, "ConvInteger")
_EXACT_TAPS_MAX = 256
"""Sums of so many products of a window stay below 2^24, where floats have no gaps."""

_Pair = tuple[int, int]


@record(eq=True)
class _Positions:
    """Where an operator has its operands; beyond the end if it has them not."""

    w: int
    x_scale: int = 99
    x_zero: int = 99
    w_scale: int = 99
    w_zero: int = 99
    y_scale: int = 99
    y_zero: int = 99
    bias: int = 99


def _positions(request: KernelRequest) -> _Positions:
    if request.operator == "ConvInteger":
        return _Positions(w=1, x_zero=2, w_zero=3)
    return _Positions(x_scale=1, x_zero=2, w=3, w_scale=4, w_zero=5, y_scale=6, y_zero=7, bias=8)


class _Arguments(ctypes.Structure):
    """`byte_convolution` of `c/quantised_convolution.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "w", "y", "workspace")),
        *((name, INTEGER) for name in ("batch", "groups", "depth", "maps")),
        *((name, INTEGER) for name in ("height", "width", "out_height", "out_width")),
        *((name, INTEGER) for name in ("kernel_height", "kernel_width")),
        *((name, INTEGER) for name in ("stride_height", "stride_width")),
        *((name, INTEGER) for name in ("dilation_height", "dilation_width")),
        *((name, INTEGER) for name in ("pad_top", "pad_left", "copy_height", "copy_width")),
        ("is_planar", INTEGER),
        ("scales", byte_units.Scales),
    )


@record(eq=True)
class _Convolution:
    """Sizes; pairs are (height, width). A group has `depth` input and `maps` output channels."""

    batch: int
    groups: int
    depth: int
    maps: int
    size: _Pair
    out_size: _Pair
    kernel: _Pair
    strides: _Pair
    dilations: _Pair
    pads: _Pair
    """Before the first row and column."""
    is_planar: bool

    @property
    def taps(self) -> int:
        """Taps of a window."""
        return math.prod(self.kernel)

    @property
    def met_size(self) -> _Pair:
        """Rows and columns of the padded image that the windows reach over."""
        height, width = (
            (count - 1) * stride + (kernel - 1) * dilation + 1
            for count, stride, kernel, dilation in zip(
                self.out_size, self.strides, self.kernel, self.dilations, strict=True
            )
        )
        return height, width

    @property
    def is_inside(self) -> bool:
        """Whether no window reaches beyond the image."""
        met = zip(self.met_size, self.size, strict=True)
        return self.pads == (0, 0) and all(reach <= size for reach, size in met)

    @property
    def is_depthwise(self) -> bool:
        """Whether every output channel comes from one input channel, its own."""
        return self.depth == self.maps == 1 < self.groups and self.taps <= _EXACT_TAPS_MAX


def _pair(values: Sequence[int], filler: int) -> _Pair:
    height, width = ((filler,) * (2 - len(values)) + tuple(values))[:2]
    return height, width


def _convolution(request: KernelRequest) -> _Convolution:
    weights = operands.input_spec(request, _positions(request).w).shape
    data, result = operands.input_spec(request, 0).shape, operands.output_spec(request).shape
    is_planar = request.operator != CHANNELS_LAST
    spatial = slice(2, None) if is_planar else slice(1, -1)
    groups = operands.integer(request, "group")
    pads = operands.integers(request, "pads")
    shape = _Convolution(
        batch=data[0],
        groups=groups,
        depth=weights[1],
        maps=weights[0] // groups,
        size=_pair(data[spatial], 1),
        out_size=_pair(result[spatial], 1),
        kernel=_pair(weights[2:], 1),
        strides=_pair(operands.integers(request, "strides"), 1),
        dilations=_pair(operands.integers(request, "dilations"), 1),
        pads=_pair(pads[: len(pads) // 2], 0),
        is_planar=is_planar,
    )
    if shape.kernel == shape.strides == (1, 1) and shape.is_inside and shape.size == shape.out_size:
        # Rows do not matter to a 1x1 kernel: one long row has no short ends.
        row = (1, math.prod(shape.size))
        return replace(shape, size=row, out_size=row)
    return shape


def _accepted(request: KernelRequest) -> _Convolution | None:
    """Return the convolution if the compiled kernels can do it at all."""
    at = _positions(request)
    if native.LIBRARY is None or at.w not in request.constants:
        return None
    data, weights = operands.input_spec(request, 0), operands.input_spec(request, at.w)
    if not {data.dtype, weights.dtype} <= set(byte_units.EIGHT_BITS):
        return None
    if operands.has_input(request, at.w_zero) and at.w_zero not in request.constants:
        return None
    if len(data.shape) not in (3, 4) or min(operands.integers(request, "pads")) < 0:
        return None
    if not byte_units.is_single(request, at.x_scale, at.x_zero, at.y_scale, at.y_zero):
        return None
    has_elements = data.element_count and operands.output_spec(request).element_count
    return _convolution(request) if has_elements else None


def _choose(request: KernelRequest) -> KernelChoice | None:
    shape = _accepted(request)
    if shape is None or shape.is_depthwise:
        return None
    depth = shape.taps * shape.depth
    group_bytes = byte_units.panels_bytes(depth, shape.maps)
    packed = PackedConstant.filled(
        layout=f"byte_windows.{shape.groups}",
        size_bytes=shape.groups * group_bytes,
        fill=lambda array, panels: _pack(shape, array, panels),
    )
    return _choice(request, shape, "native.bytes.conv", packed)


def _pack(shape: _Convolution, array: np.ndarray, panels: np.ndarray) -> None:
    """Pack [groups * maps, depth, kernel...] as [taps * depth, maps] matrices, one a group."""
    windows = array.reshape(shape.groups, shape.maps, shape.depth, shape.taps)
    for group, into in zip(windows, panels.reshape(shape.groups, -1), strict=True):
        matrix = np.ascontiguousarray(group.transpose(2, 1, 0)).reshape(-1, shape.maps)
        byte_units.pack(matrix, into)


def _choose_depthwise(request: KernelRequest) -> KernelChoice | None:
    shape = _accepted(request)
    if shape is None or not shape.is_depthwise:
        return None
    zero = request.constants.get(_positions(request).w_zero)
    columns = compiled.round_up(shape.groups, 16)
    packed = PackedConstant(
        layout=f"byte_taps.{byte_units.digest(zero)}",
        size_bytes=4 * (shape.taps + 1) * columns,
        pack=lambda array: _pack_depthwise(shape, array, zero, columns),
    )
    return _choice(request, shape, "native.bytes.conv_depthwise", packed)


def _pack_depthwise(
    shape: _Convolution, array: np.ndarray, zero: np.ndarray | None, columns: int
) -> np.ndarray:
    """Return float32 [taps, channels], weights less their zero points; then their sums as int32."""
    taps = array.reshape(shape.groups, shape.taps).astype(np.float32)
    if zero is not None:
        taps -= zero.reshape(-1, 1).astype(np.float32)
    padded = np.zeros((shape.taps, columns), np.float32)
    padded[:, : shape.groups] = taps.T
    sums = padded.sum(axis=0).astype(np.int32)
    return np.concatenate([as_bytes(padded), as_bytes(sums)])


def _choice(
    request: KernelRequest, shape: _Convolution, kernel: str, packed: PackedConstant
) -> KernelChoice:
    assert native.LIBRARY is not None
    # Addresses do not count for the size.
    sizes = _arguments(request, shape, [None] * len(request.inputs), None, None)
    function = f"aegis_{_FUNCTIONS[kernel]}_workspace"
    products = shape.batch * shape.groups * shape.maps * math.prod(shape.out_size)
    return KernelChoice(
        kernel=kernel,
        workspace_bytes=native.LIBRARY.size_for(function, sizes),
        packed={_positions(request).w: packed},
        cost=float(products * shape.taps * shape.depth) / 4,
    )


_FUNCTIONS = {
    "native.bytes.conv": "byte_conv",
    "native.bytes.conv_depthwise": "byte_conv_depthwise",
}


def _copy_size(request: KernelRequest, shape: _Convolution) -> _Pair:
    """Return rows and columns of the padded image that windows meet, 0 if it is read as it is."""
    is_signed = byte_units.is_signed(operands.input_spec(request, 0))
    if shape.is_inside and not shape.is_planar and not is_signed:
        return 0, 0
    height, width = shape.met_size
    return max(height, shape.pads[0]), max(width, shape.pads[1])


def _arguments(
    request: KernelRequest,
    shape: _Convolution,
    inputs: Sequence[np.ndarray | None],
    output: np.ndarray | None,
    workspace: np.ndarray | None,
) -> _Arguments:
    at = _positions(request)
    return _Arguments(
        native.address(inputs[0]),
        native.address(inputs[at.w]),
        native.address(output),
        native.address(workspace),
        *(shape.batch, shape.groups, shape.depth, shape.maps),
        *shape.size,
        *shape.out_size,
        *shape.kernel,
        *shape.strides,
        *shape.dilations,
        *shape.pads,
        *_copy_size(request, shape),
        shape.is_planar,
        _scales(request, at, inputs),
    )


def _scales(
    request: KernelRequest, at: _Positions, inputs: Sequence[np.ndarray | None]
) -> byte_units.Scales:
    result = operands.output_spec(request)
    specs = (operands.input_spec(request, 0), operands.input_spec(request, at.w), result)
    w_zero, w_scale = operands.optional(inputs, at.w_zero), operands.optional(inputs, at.w_scale)
    return byte_units.Scales(
        native.address(operands.optional(inputs, at.x_zero)),
        native.address(w_zero),
        native.address(operands.optional(inputs, at.x_scale)),
        native.address(w_scale),
        native.address(operands.optional(inputs, at.y_scale)),
        native.address(operands.optional(inputs, at.y_zero)),
        native.address(operands.optional(inputs, at.bias)),
        None,
        *map(byte_units.is_signed, specs),
        byte_units.size_of(w_zero),
        byte_units.size_of(w_scale),
        byte_units.result_kind(result),
        1.0,
        byte_units.has_zeros(request, at.w, at.w_zero),
        *byte_units.result_bounds(request),
    )


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    shape = _convolution(request)
    arguments = _arguments(request, shape, inputs, operands.required(outputs), workspace)
    function = f"aegis_{_FUNCTIONS[choice.kernel]}"
    return native.call(function, arguments, (*inputs, *outputs, workspace))


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel(_OPERATORS, _choose_depthwise, _bind, shares_work=True),
    CpuKernel(_OPERATORS, _choose, _bind, shares_work=True),
)
