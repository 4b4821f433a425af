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
from dataclasses import replace

import numpy as np

from aegis_pipe.device.cpu.kernels import compiled, native, operands
from aegis_pipe.device.cpu.kernels.native import FLOAT, INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.planned import as_bytes
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant
from aegis_pipe.record import record

_PLANAR = ("Conv", "com.microsoft.FusedConv")
CHANNELS_LAST = "com.microsoft.NhwcFusedConv"
"""Its images have their channels last, its weights as in `Conv`."""
_BLOCK_FLOATS, _LARGE_BLOCK_FLOATS = 48 << 10, 144 << 10
"""What a block of pixels reads should leave room in a second-level cache for the weights; where
those are too many for that anyway, few blocks matter more, because each fetches them all."""
_MANY_WEIGHTS = 256 << 10
_CHUNK_ABOVE, _CHUNK = 1024, 512
"""Floats of a window from which on it is summed in chunks, and their size: a panel of weights that
long stays in a second-level cache while all pixels of a block meet it."""
_PIXELS_MIN = 128
"""With fewer pixels a panel of them is too often a part of a panel."""
_DEPTHWISE_CHANNELS_PIXELS_MAX = 256
"""Planes up to this size leave too many lanes empty if pixels fill them."""
RESIDUAL = 3
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
        *((name, INTEGER) for name in ("block", "chunk", "workspace_floats")),
        *((name, INTEGER) for name in ("x_is_planar", "y_is_planar")),
        *((name, FLOAT) for name in ("low", "high")),
        ("clips", INTEGER),
    )


_Pair = tuple[int, int]


@record(eq=True)
class Convolution:
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


def read_convolution(request: KernelRequest) -> Convolution:
    """Return a request's sizes; where rows do not matter, as one long row."""
    # Several kernels are asked about each convolution, and the one that is taken binds it.
    found = request.notes.get("convolution")
    if found is None:
        found = request.notes["convolution"] = _read_convolution(request)
    assert isinstance(found, Convolution), found
    return found


def _read_convolution(request: KernelRequest) -> Convolution:
    data, weights = operands.input_spec(request, 0).shape, operands.input_spec(request, 1).shape
    is_planar = request.operator in _PLANAR
    image = slice(2, None) if is_planar else slice(1, -1)
    groups = operands.integer(request, "group")
    pads = operands.integers(request, "pads")
    shape = Convolution(
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


def accepted(request: KernelRequest) -> Convolution | None:
    """Return the convolution if the compiled kernels can do it at all."""
    if native.LIBRARY is None or 1 not in request.constants or not compiled.is_float32(request):
        return None
    if len(operands.input_spec(request, 0).shape) not in (3, 4):
        return None
    if min(operands.integers(request, "pads")) < 0:
        return None
    return read_convolution(request) if compiled.clip_bounds(request) is not None else None


def _choice(
    request: KernelRequest,
    shape: Convolution,
    kernel: str,
    workspace_floats: int,
    layout: str,
    tile: int,
) -> KernelChoice:
    return KernelChoice(
        kernel=kernel,
        workspace_bytes=workspace_floats * 4,
        in_place=_over_residual(request),
        packed={1: _packed(shape, layout, tile)},
        cost=shape.multiply_adds,
    )


def _packed(shape: Convolution, layout: str, tile: int) -> PackedConstant:
    assert native.LIBRARY is not None
    taps = math.prod(shape.kernel) * shape.depth
    packed_floats = shape.groups * taps * compiled.round_up(shape.maps, tile)
    return PackedConstant.filled(
        layout=f"{layout}.{native.LIBRARY.name}.{shape.groups}",
        size_bytes=packed_floats * 4,
        fill=lambda array, packed: _pack(shape, array, tile, packed),
    )


def packed_pointwise(maps: int, depth: int) -> PackedConstant:
    """Return how 1x1 weights [maps, depth, 1, 1] are wanted, output channels in the lanes."""
    assert native.LIBRARY is not None
    one = (1, 1)
    shape = Convolution(1, 1, depth, maps, one, one, one, one, one, (0, 0))
    return _packed(shape, "columns", native.LIBRARY.panel_columns)


def _pack(shape: Convolution, array: np.ndarray, tile: int, packed: np.ndarray) -> None:
    """Turn [groups * maps, depth, kernel...] into [groups, maps / tile, taps, depth, tile]."""
    assert native.LIBRARY is not None
    plain = np.ascontiguousarray(array, dtype=np.float32).reshape(shape.groups, -1)
    taps = math.prod(shape.kernel)
    for source, target in zip(plain, packed.reshape(shape.groups, -1), strict=True):
        native.LIBRARY.pack_taps(
            source.ctypes.data, shape.maps, shape.depth, taps, tile, target.ctypes.data
        )


def _choose_depthwise_pixels(request: KernelRequest) -> KernelChoice | None:
    shape = accepted(request)
    if shape is None or not shape.is_depthwise:
        return None
    is_small = shape.pixels <= _DEPTHWISE_CHANNELS_PIXELS_MAX
    if is_small and not operands.has_input(request, RESIDUAL):
        return None
    return KernelChoice(
        kernel="native.conv.depthwise_pixels",
        workspace_bytes=_depthwise_pixels_floats(shape) * 4,
        in_place=_over_residual(request),
        cost=shape.multiply_adds,
    )


def _over_residual(request: KernelRequest) -> tuple[tuple[int, int], ...]:
    """Offer to write over the residual: every tile reads of it just what it then writes."""
    return ((RESIDUAL, 0),) if operands.has_input(request, RESIDUAL) else ()


def _choose_depthwise_channels(request: KernelRequest) -> KernelChoice | None:
    shape = accepted(request)
    if shape is None or not shape.is_depthwise or operands.has_input(request, RESIDUAL):
        return None
    taps = math.prod(shape.kernel)
    packed = PackedConstant(
        layout=f"taps.{_LANES}",
        size_bytes=taps * compiled.round_up(shape.groups, _LANES) * 4,
        pack=lambda array: as_bytes(compiled.in_tiles(array.reshape(shape.groups, taps).T, _LANES)),
    )
    return KernelChoice(
        kernel="native.conv.depthwise_channels",
        workspace_bytes=_depthwise_channels_floats(shape) * 4,
        packed={1: packed},
        cost=shape.multiply_adds,
    )


def _depthwise_pixels_floats(shape: Convolution) -> int:
    height, width = _sorted_copy(shape)
    return compiled.round_up(height * shape.strides[1] * width, _LANES)


def _depthwise_channels_floats(shape: Convolution) -> int:
    return (math.prod(_padded_copy(shape)) + shape.pixels + math.prod(shape.size)) * _LANES


def _pixels_floats(shape: Convolution) -> int:
    assert native.LIBRARY is not None
    thinned = shape.depth * shape.pixels if shape.is_strided else 0
    return compiled.round_up(shape.depth * native.LIBRARY.panel_columns + thinned, _LANES)


def _channels_floats(shape: Convolution) -> int:
    return _block(shape).workspace_floats


def _sorted_copy(shape: Convolution) -> _Pair:
    """Return height and width of the copied plane, its columns sorted by the stride."""
    stride = shape.strides[1]
    last_tap = (shape.kernel[1] - 1) * shape.dilations[1] // stride
    read = compiled.round_up(shape.out_size[1], _LANES) + last_tap
    written = -(-(shape.pads[1] + shape.size[1]) // stride)
    return max(shape.met_size[0], shape.pads[0]), max(read, written)


def _choose_pixels(request: KernelRequest) -> KernelChoice | None:
    shape = accepted(request)
    if shape is None or not shape.is_pointwise or shape.pixels < _PIXELS_MIN:
        return None
    assert native.LIBRARY is not None
    floats = _pixels_floats(shape)
    return _choice(request, shape, "native.conv.pixels", floats, "rows", native.LIBRARY.tile_rows)


def _choose_channels(request: KernelRequest) -> KernelChoice | None:
    shape = accepted(request)
    if shape is None:
        return None
    assert native.LIBRARY is not None
    floats = _block(shape).workspace_floats
    return _choice(
        request, shape, "native.conv.channels", floats, "columns", native.LIBRARY.panel_columns
    )


@record(eq=True)
class _Block:
    """How many pixels are done together, and the copy of what they read."""

    pixels: int
    copy_width: int
    """0: nothing is copied."""
    chunk: int
    """Floats of a window that are summed for the whole block before the next ones; 0: all."""
    workspace_floats: int
    """A whole number of cache lines."""


def _block(shape: Convolution) -> _Block:
    assert native.LIBRARY is not None
    out_height, out_width = shape.out_size
    is_deep = math.prod(shape.kernel) * shape.depth > _CHUNK_ABOVE
    has_many_weights = math.prod(shape.kernel) * shape.depth * shape.maps > _MANY_WEIGHTS
    most = _LARGE_BLOCK_FLOATS if has_many_weights else _BLOCK_FLOATS
    chunk, kept_columns = (_CHUNK, native.LIBRARY.panel_columns) if is_deep else (0, 0)
    if shape.is_inside and not shape.is_planar:
        whole = max(1, most // (shape.depth * math.prod(shape.strides)))
        pixels = _even_part(shape.pixels, whole)
        return _Block(pixels, 0, chunk, pixels * kept_columns)
    met_height, copy_width = shape.met_size
    copy_width = max(copy_width, shape.pads[1])
    row_floats = copy_width * shape.depth
    shared_rows = met_height - (out_height - 1) * shape.strides[0]
    rows = max(1, (most // row_floats - shared_rows) // shape.strides[0] + 1)
    rows = _even_part(out_height, rows)
    copied_rows = (rows - 1) * shape.strides[0] + shared_rows
    floats = compiled.round_up(copied_rows * row_floats, _LANES)
    pixels = rows * out_width
    return _Block(pixels, copy_width, chunk, pixels * kept_columns + floats)


def _even_part(whole: int, most: int) -> int:
    """Return the part if the whole is cut as rarely and as evenly as can be."""
    return -(-whole // -(-whole // most))


def _padded_copy(shape: Convolution) -> _Pair:
    """Return height and width of the padded image."""
    height, width = shape.met_size
    return max(height, shape.pads[0]), max(width, shape.pads[1])


def _block_copy(shape: Convolution) -> _Pair:
    return 0, _block(shape).copy_width


_FUNCTIONS = {
    "native.conv.depthwise_pixels": (
        "aegis_conv_depthwise_pixels",
        _sorted_copy,
        _depthwise_pixels_floats,
    ),
    "native.conv.depthwise_channels": (
        "aegis_conv_depthwise_channels",
        _padded_copy,
        _depthwise_channels_floats,
    ),
    "native.conv.pixels": ("aegis_conv_pixels", _padded_copy, _pixels_floats),
    "native.conv.channels": ("aegis_conv_channels", _block_copy, _channels_floats),
}
"""By kernel: the function, the size of what it copies, and the workspace of one thread."""


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    shape = read_convolution(request)
    function, copy_size, workspace_floats = _FUNCTIONS[choice.kernel]
    block = _block(shape)
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
        *(block.pixels, block.chunk, workspace_floats(shape)),
        *(shape.is_planar, shape.is_planar),
        *bounds,
        bounds != compiled.UNBOUNDED,
    )
    return native.call(function, arguments, (*inputs, *outputs, workspace))


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel(_PLANAR, _choose_depthwise_pixels, _bind, shares_work=True),
    CpuKernel(_PLANAR, _choose_depthwise_channels, _bind, shares_work=True),
    CpuKernel(_PLANAR, _choose_pixels, _bind, shares_work=True),
    CpuKernel((*_PLANAR, CHANNELS_LAST), _choose_channels, _bind, shares_work=True),
)
