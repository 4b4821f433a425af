"""Compiled 3x3 convolutions with fewer multiplications (`c/winograd.c`), channels last.

native.conv.winograd  where enough pixels meet the same weights to pay for the larger weights
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import compiled, native, operands
from aegis_pipe.device.cpu.kernels.compiled_convolution import (
    CHANNELS_LAST,
    RESIDUAL,
    Convolution,
    accepted,
    read_convolution,
)
from aegis_pipe.device.cpu.kernels.native import FLOAT, INTEGER, POINTER, NativeCall
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant

_CHANNELS_MIN = 16
"""With fewer, turning tiles to points and back costs more than it saves."""
_TURNING = 1.35
"""Time of a convolution by tiles beside that of its multiplications."""
_FLOAT_PRICE_MIN, _FLOAT_PRICE_MAX = 8.0, 18.0
_FAR_FLOATS = 8 << 20
"""Multiply-adds that could be done while one float of the weights is fetched; the more weights, the
further away they lie."""
_BLOCK_FLOATS = 256 << 10
"""What a block of tiles may take of a second-level cache."""
_PANEL_COLUMNS = 64
"""Channels of results at a time, on the machine that takes the most."""
_TILE_GROUP = 12
"""Blocks are multiples of every machine's rows of a register tile."""


class _Winograd(ctypes.Structure):
    """`winograd` of `c/winograd.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "u", "bias", "residual", "y", "workspace")),
        *((name, INTEGER) for name in ("batch", "height", "width", "out_height", "out_width")),
        *((name, INTEGER) for name in ("depth", "maps", "pad_top", "pad_left")),
        *((name, INTEGER) for name in ("m", "block", "workspace_floats")),
        *((name, FLOAT) for name in ("low", "high")),
        ("clips", INTEGER),
    )


def _tiles(shape: Convolution, m: int) -> int:
    height, width = shape.out_size
    return shape.batch * -(-height // m) * -(-width // m)


def _block(shape: Convolution, m: int) -> int:
    """Return how many tiles are done together."""
    room = _BLOCK_FLOATS // ((m + 2) ** 2 * (shape.depth + _PANEL_COLUMNS))
    block = max(_TILE_GROUP, room // _TILE_GROUP * _TILE_GROUP)
    return min(block, compiled.round_up(_tiles(shape, m), _TILE_GROUP))


def _price(shape: Convolution, m: int) -> float:
    """Return the time a tile size takes, in multiply-adds; m = 1 is the plain convolution.

    Depends on the shape alone, so that every machine chooses alike.
    """
    points = 9 if m == 1 else (m + 2) ** 2
    weights = float(shape.depth * shape.maps)
    far = min(1.0, points * weights / _FAR_FLOATS)
    fetching = _FLOAT_PRICE_MIN + far * (_FLOAT_PRICE_MAX - _FLOAT_PRICE_MIN)
    if m == 1:
        return shape.multiply_adds + points * weights * fetching
    tiles = _tiles(shape, m)
    blocks = -(-tiles // _block(shape, m))
    return points * weights * (tiles * _TURNING + blocks * fetching)


def _tile_size(shape: Convolution) -> int:
    """Return m, the width of a tile of results; 1 where plain convolution is as fast."""
    is_plain = shape.kernel == (3, 3) and shape.dilations == (1, 1) and not shape.is_strided
    if not is_plain or shape.groups > 1 or min(shape.depth, shape.maps) < _CHANNELS_MIN:
        return 1
    return min((1, 2, 4), key=lambda m: _price(shape, m))


def _choose(request: KernelRequest) -> KernelChoice | None:
    shape = accepted(request)
    m = _tile_size(shape) if shape is not None else 1
    if shape is None or m == 1:
        return None
    library = native.LIBRARY
    assert library is not None
    points, maps, depth = (m + 2) ** 2, shape.maps, shape.depth

    def fill(array: np.ndarray, packed: np.ndarray) -> None:
        plain = np.ascontiguousarray(array, dtype=np.float32)
        library.pack_winograd(plain.ctypes.data, maps, depth, m, packed.ctypes.data)

    size_bytes = points * depth * compiled.round_up(maps, library.panel_columns) * 4
    return KernelChoice(
        kernel="native.conv.winograd",
        workspace_bytes=library.winograd_workspace(m, depth, _block(shape, m)) * 4,
        in_place=((RESIDUAL, 0),) if operands.has_input(request, RESIDUAL) else (),
        packed={1: PackedConstant.filled(f"winograd{m}.{library.name}", size_bytes, fill)},
        cost=shape.multiply_adds,
    )


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    library = native.LIBRARY
    assert library is not None
    shape = read_convolution(request)
    m = _tile_size(shape)
    block = _block(shape, m)
    bounds = compiled.clip_bounds(request)
    assert bounds is not None, request.operator
    arguments = _Winograd(
        *(native.address(operands.optional(inputs, position)) for position in range(4)),
        native.address(operands.required(outputs)),
        native.address(workspace),
        shape.batch,
        *shape.size,
        *shape.out_size,
        *(shape.depth, shape.maps),
        *shape.pads,
        *(m, block, library.winograd_workspace(m, shape.depth, block)),
        *bounds,
        bounds != compiled.UNBOUNDED,
    )
    return NativeCall(library, "aegis_conv_winograd", arguments, (*inputs, *outputs, workspace))


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel((CHANNELS_LAST,), _choose, _bind, shares_work=True),
)
