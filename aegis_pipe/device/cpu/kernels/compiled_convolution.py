"""Compiled two-dimensional convolutions (`c/convolution.c`); one dimension is a height of 1.

native.conv.depthwise_pixels    one input and one output channel a group: pixels in the lanes
native.conv.depthwise_channels  the same for small planes: channels in the lanes
native.conv.pixels              1x1 without padding: pixels in the lanes, as they lie in memory
native.conv.channels            all else, and all images with channels last: output channels in
                                the lanes
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from aegis_pipe.device.cpu.kernels import compiled, native, operands
from aegis_pipe.device.cpu.kernels.native import FLOAT, INTEGER, POINTER, NativeCall
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant

_PLANAR = ("Conv", "com.microsoft.FusedConv")
_CHANNELS_LAST = "com.microsoft.NhwcFusedConv"
_BLOCK_FLOATS = 48 << 10
"""What a block of pixels reads should leave room in a second-level cache for the weights."""
_PIXELS_MIN = 128
"""With fewer pixels a panel of them is too often a part of a panel."""
_DEPTHWISE_CHANNELS_PIXELS_MAX = 256
"""Planes up to this size leave too many lanes empty if pixels fill them."""
_RESIDUAL = 3
"""Position of the operand that is added to the result."""
_LANES = 16
"""Lanes of the depthwise kernels, whatever the machine's registers."""


class _Arguments(ctypes.Structure):
    """`convolution` of `c/convolution.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "w", "bias", "residual", "y", "workspace")),
        *((name, INTEGER) for name in ("batch", "groups", "depth", "maps")),
        *((name, INTEGER) for name in ("height", "width", "out_height", "out_width")),
        *((name, INTEGER) for name in ("kernel_height", "kernel_width")),
        *((name, INTEGER) for name in ("stride_height", "stride_width")),
        *((name, INTEGER) for name in ("dilation_height", "dilation_width")),
        *((name, INTEGER) for name in ("pad_top", "pad_left", "copy_height", "copy_width")),
        *((name, INTEGER) for name in ("block", "workspace_floats", "x_is_planar", "y_is_planar")),
        *((name, FLOAT) for name in ("low", "high")),
        ("clips", INTEGER),
    )


_Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
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
    is_planar: bool = True
    """N, C, H, W; otherwise the channels are last."""

    @property
    def pixels(self) -> int:
        """Results of one output channel of one image."""
        return math.prod(self.out_size)

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
    def is_pointwise(self) -> bool:
        """Whether every result meets one pixel, none of it padding."""
        reached = all(
            (count - 1) * stride < size
            for count, stride, size in zip(self.out_size, self.strides, self.size, strict=True)
        )
        return self.kernel == (1, 1) and self.pads == (0, 0) and reached

    @property
    def is_inside(self) -> bool:
        """Whether no window meets padding."""
        fits = all(met <= size for met, size in zip(self.met_size, self.size, strict=True))
        return self.pads == (0, 0) and fits

    @property
    def is_strided(self) -> bool:
        """Whether some pixels are left out."""
        return self.strides != (1, 1)

    @property
    def is_depthwise(self) -> bool:
        """Whether every output channel comes from one input channel, its own."""
        return self.depth == self.maps == 1 < self.groups

    @property
    def multiply_adds(self) -> float:
        """Work of all images."""
        taps = math.prod(self.kernel) * self.depth
        return float(self.batch * self.groups * self.maps * self.pixels * taps)


def _pair(values: Sequence[int], filler: int) -> _Pair:
    height, width = ((filler,) * (2 - len(values)) + tuple(values))[:2]
    return height, width


def _convolution(request: KernelRequest) -> _Convolution:
    data, weights = operands.input_spec(request, 0).shape, operands.input_spec(request, 1).shape
    is_planar = request.operator in _PLANAR
    image = slice(2, None) if is_planar else slice(1, -1)
    groups = operands.integer(request, "group")
    pads = operands.integers(request, "pads")
    shape = _Convolution(
        batch=data[0],
        groups=groups,
        depth=weights[1],
        maps=weights[0] // groups,
        size=_pair(data[image], 1),
        out_size=_pair(operands.output_spec(request).shape[image], 1),
        kernel=_pair(weights[2:], 1),
        strides=_pair(operands.integers(request, "strides"), 1),
        dilations=_pair(operands.integers(request, "dilations"), 1),
        pads=_pair(pads[: len(pads) // 2], 0),
        is_planar=is_planar,
    )
    if shape.is_pointwise and not shape.is_strided and shape.size == shape.out_size:
        # Rows do not matter to a 1x1 kernel: one long row has no short ends, and channels-last
        # images follow each other like rows.
        images = 1 if is_planar or groups > 1 else shape.batch
        line = (1, shape.pixels * images)
        return replace(shape, batch=shape.batch // images, size=line, out_size=line)
    return shape


def _accepted(request: KernelRequest) -> _Convolution | None:
    """Return the convolution if the compiled kernels can do it at all."""
    if native.LIBRARY is None or 1 not in request.constants or not compiled.is_float32(request):
        return None
    if len(operands.input_spec(request, 0).shape) not in (3, 4):
        return None
    if min(operands.integers(request, "pads")) < 0:
        return None
    return _convolution(request) if compiled.clip_bounds(request) is not None else None


def _choice(
    request: KernelRequest,
    shape: _Convolution,
    kernel: str,
    workspace_floats: int,
    layout: str,
    tile: int,
) -> KernelChoice:
    assert native.LIBRARY is not None
    taps = math.prod(shape.kernel) * shape.depth
    packed_floats = shape.groups * taps * compiled.round_up(shape.maps, tile)
    packed = PackedConstant(
        layout=f"{layout}.{native.LIBRARY.name}.{shape.groups}",
        size_bytes=packed_floats * 4,
        pack=lambda array: _pack(shape, array, tile),
    )
    return KernelChoice(
        kernel=kernel,
        workspace_bytes=workspace_floats * 4,
        in_place=_over_residual(request),
        packed={1: packed},
        cost=shape.multiply_adds,
    )


def _pack(shape: _Convolution, array: np.ndarray, tile: int) -> np.ndarray:
    """Turn [groups * maps, depth, kernel...] into [groups, maps / tile, taps, depth, tile]."""
    taps = array.reshape(shape.groups, shape.maps, shape.depth, -1).transpose(0, 3, 2, 1)
    rows = taps.reshape(shape.groups, -1, shape.maps)
    return compiled.as_bytes(compiled.in_tiles(rows, tile))


def _choose_depthwise_pixels(request: KernelRequest) -> KernelChoice | None:
    shape = _accepted(request)
    if shape is None or not shape.is_depthwise:
        return None
    is_small = shape.pixels <= _DEPTHWISE_CHANNELS_PIXELS_MAX
    if is_small and not operands.has_input(request, _RESIDUAL):
        return None
    height, width = _sorted_copy(shape)
    return KernelChoice(
        kernel="native.conv.depthwise_pixels",
        workspace_bytes=height * shape.strides[1] * width * 4,
        in_place=_over_residual(request),
        cost=shape.multiply_adds,
    )


def _over_residual(request: KernelRequest) -> tuple[tuple[int, int], ...]:
    """Offer to write over the residual: every tile reads of it just what it then writes."""
    return ((_RESIDUAL, 0),) if operands.has_input(request, _RESIDUAL) else ()


def _choose_depthwise_channels(request: KernelRequest) -> KernelChoice | None:
    shape = _accepted(request)
    if shape is None or not shape.is_depthwise or operands.has_input(request, _RESIDUAL):
        return None
    taps = math.prod(shape.kernel)
    pixels = math.prod(_padded_copy(shape)) + shape.pixels + math.prod(shape.size)
    packed = PackedConstant(
        layout=f"taps.{_LANES}",
        size_bytes=taps * compiled.round_up(shape.groups, _LANES) * 4,
        pack=lambda array: compiled.as_bytes(
            compiled.in_tiles(array.reshape(shape.groups, taps).T, _LANES)
        ),
    )
    return KernelChoice(
        kernel="native.conv.depthwise_channels",
        workspace_bytes=pixels * _LANES * 4,
        packed={1: packed},
        cost=shape.multiply_adds,
    )


def _sorted_copy(shape: _Convolution) -> _Pair:
    """Return height and width of the copied plane, its columns sorted by the stride."""
    stride = shape.strides[1]
    last_tap = (shape.kernel[1] - 1) * shape.dilations[1] // stride
    read = compiled.round_up(shape.out_size[1], _LANES) + last_tap
    written = -(-(shape.pads[1] + shape.size[1]) // stride)
    return max(shape.met_size[0], shape.pads[0]), max(read, written)


def _choose_pixels(request: KernelRequest) -> KernelChoice | None:
    shape = _accepted(request)
    if shape is None or not shape.is_pointwise or shape.pixels < _PIXELS_MIN:
        return None
    assert native.LIBRARY is not None
    floats = shape.depth * native.LIBRARY.panel_columns
    if shape.is_strided:
        floats += shape.depth * shape.pixels
    return _choice(request, shape, "native.conv.pixels", floats, "rows", native.LIBRARY.tile_rows)


def _choose_channels(request: KernelRequest) -> KernelChoice | None:
    shape = _accepted(request)
    if shape is None:
        return None
    assert native.LIBRARY is not None
    floats = _block(shape).workspace_floats
    return _choice(
        request, shape, "native.conv.channels", floats, "columns", native.LIBRARY.panel_columns
    )


@dataclass(frozen=True, slots=True)
class _Block:
    """How many pixels are done together, and the copy of what they read."""

    pixels: int
    copy_width: int
    """0: nothing is copied."""
    workspace_floats: int
    """A whole number of cache lines."""


def _block(shape: _Convolution) -> _Block:
    out_height, out_width = shape.out_size
    if shape.is_inside and not shape.is_planar:
        whole = max(1, _BLOCK_FLOATS // (shape.depth * math.prod(shape.strides)))
        return _Block(_even_part(shape.pixels, whole), 0, 0)
    met_height, copy_width = shape.met_size
    copy_width = max(copy_width, shape.pads[1])
    row_floats = copy_width * shape.depth
    shared_rows = met_height - (out_height - 1) * shape.strides[0]
    rows = max(1, (_BLOCK_FLOATS // row_floats - shared_rows) // shape.strides[0] + 1)
    rows = _even_part(out_height, rows)
    copied_rows = (rows - 1) * shape.strides[0] + shared_rows
    floats = compiled.round_up(copied_rows * row_floats, _LANES)
    return _Block(rows * out_width, copy_width, floats)


def _even_part(whole: int, most: int) -> int:
    """Return the part if the whole is cut as rarely and as evenly as can be."""
    return -(-whole // -(-whole // most))


def _padded_copy(shape: _Convolution) -> _Pair:
    """Return height and width of the padded image."""
    height, width = shape.met_size
    return max(height, shape.pads[0]), max(width, shape.pads[1])


_FUNCTIONS = {
    "native.conv.depthwise_pixels": ("aegis_conv_depthwise_pixels", _sorted_copy),
    "native.conv.depthwise_channels": ("aegis_conv_depthwise_channels", _padded_copy),
    "native.conv.pixels": ("aegis_conv_pixels", _padded_copy),
    "native.conv.channels": ("aegis_conv_channels", lambda shape: (0, _block(shape).copy_width)),
}


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    assert native.LIBRARY is not None
    shape = _convolution(request)
    function, copy_size = _FUNCTIONS[choice.kernel]
    bounds = compiled.clip_bounds(request)
    assert bounds is not None, request.operator
    arguments = _Arguments(
        native.address(operands.required(inputs, 0)),
        native.address(operands.required(inputs, 1)),
        native.address(operands.optional(inputs, 2)),
        native.address(operands.optional(inputs, 3)),
        native.address(operands.required(outputs)),
        native.address(workspace),
        *(shape.batch, shape.groups, shape.depth, shape.maps),
        *shape.size,
        *shape.out_size,
        *shape.kernel,
        *shape.strides,
        *shape.dilations,
        *shape.pads,
        *copy_size(shape),
        _block(shape).pixels,
        _block(shape).workspace_floats,
        *(shape.is_planar, shape.is_planar),
        *bounds,
        bounds != compiled.UNBOUNDED,
    )
    return NativeCall(native.LIBRARY, function, arguments, (*inputs, *outputs, workspace))


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel(_PLANAR, _choose_depthwise_pixels, _bind),
    CpuKernel(_PLANAR, _choose_depthwise_channels, _bind),
    CpuKernel(_PLANAR, _choose_pixels, _bind),
    CpuKernel((*_PLANAR, _CHANNELS_LAST), _choose_channels, _bind, shares_work=True),
)
