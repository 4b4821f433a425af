"""Sampling of images at positions that data tell.

Canonical form:

    GridSample(X[N, C, spatial...], grid[N, points..., rank])
        `mode` linear, nearest or cubic; `padding_mode` zeros, border or reflection;
        `align_corners`; a point names the last spatial dimension first, from -1 to 1;
        what com.microsoft.GridSample becomes too
    AffineGrid(theta[N, rank, rank + 1]) -> grid[N, spatial..., rank]      `align_corners`
    DeformConv(X[N, C, H, W], W[M, C / group, kH, kW], offset[N, 2 * taps * offset_group, ...],
               B[M]?, mask[N, taps * offset_group, ...]?)
        the attributes of `windows.Windows`, `group`, `offset_group`
"""

from __future__ import annotations

import math

from aegis_pipe.execution.operators import reading, windows
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec

_MODES = {"bilinear": "linear", "bicubic": "cubic"}
"""Names before opset 20."""


def _infer_grid_sample(context: OperatorContext) -> list[TensorSpec]:
    data, grid = reading.operand(context, 0, "X"), reading.operand(context, 1, "grid")
    rank = len(data.shape) - 2
    reading.require(
        rank > 0
        and len(grid.shape) == rank + 2
        and grid.shape[0] == data.shape[0]
        and grid.shape[-1] == rank,
        context,
        f"grid {grid} does not name points of {data}",
    )
    return [reading.like(data, (*data.shape[:2], *grid.shape[1:-1]))]


def _lower_grid_sample(context: OperatorContext) -> Lowered:
    mode = reading.text(context, "mode", "linear")
    mode, padding = _MODES.get(mode, mode), reading.text(context, "padding_mode", "zeros")
    known = mode in ("linear", "nearest", "cubic") and padding in ("zeros", "border", "reflection")
    reading.require(known, context, f"mode `{mode}` or padding_mode `{padding}` is unknown")
    attributes: dict[str, Attribute] = {
        "mode": mode,
        "padding_mode": padding,
        "align_corners": reading.integer(context, "align_corners", 0),
    }
    return Lowered("GridSample", attributes, (0, 1))


def _infer_affine_grid(context: OperatorContext) -> list[TensorSpec]:
    theta = reading.operand(context, 0, "theta")
    size = tuple(map(int, reading.static_value(context, 1, "size")))
    rank = len(size) - 2
    fits = rank in (2, 3) and theta.shape == (size[0], rank, rank + 1)
    reading.require(fits, context, f"theta {theta} does not fit the size {list(size)}")
    return [reading.like(theta, (size[0], *size[2:], rank))]


def _lower_affine_grid(context: OperatorContext) -> Lowered:
    align = reading.integer(context, "align_corners", 0)
    return Lowered("AffineGrid", {"align_corners": align}, (0,))


def _deform_windows(context: OperatorContext) -> windows.Windows:
    data, weights = reading.operand(context, 0, "X"), reading.operand(context, 1, "W")
    is_image = len(data.shape) == len(weights.shape) == 4
    reading.require(is_image, context, f"X {data} and W {weights} are not those of an image")
    kernel_shape = reading.integers(context, "kernel_shape", weights.shape[2:])
    return windows.read_windows(context, data.shape[2:], kernel_shape)


def _infer_deform(context: OperatorContext) -> list[TensorSpec]:
    data, weights = reading.operand(context, 0, "X"), reading.operand(context, 1, "W")
    offset, mask = reading.operand(context, 2, "offset"), reading.optional_operand(context, 4)
    geometry = _deform_windows(context)
    group = reading.integer(context, "group", 1)
    offset_group = reading.integer(context, "offset_group", 1)
    spatial = geometry.output_shape(data.shape[2:])
    taps = math.prod(geometry.kernel_shape) * offset_group
    reading.require(
        group > 0
        and offset_group > 0
        and data.shape[1] == weights.shape[1] * group
        and weights.shape[0] % group == data.shape[1] % offset_group == 0
        and offset.shape == (data.shape[0], 2 * taps, *spatial)
        and (mask is None or mask.shape == (data.shape[0], taps, *spatial)),
        context,
        f"X {data}, W {weights} and offset {offset} do not fit",
    )
    return [reading.like(data, (data.shape[0], weights.shape[0], *spatial))]


def _lower_deform(context: OperatorContext) -> Lowered:
    attributes = {
        **_deform_windows(context).attributes(),
        "group": reading.integer(context, "group", 1),
        "offset_group": reading.integer(context, "offset_group", 1),
    }
    return Lowered("DeformConv", attributes, reading.data_positions(context, 5))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("GridSample", _infer_grid_sample, _lower_grid_sample),
    OperatorEntry("com.microsoft.GridSample", _infer_grid_sample, _lower_grid_sample),
    OperatorEntry("AffineGrid", _infer_affine_grid, _lower_affine_grid, static_inputs=(1,)),
    OperatorEntry("DeformConv", _infer_deform, _lower_deform),
)
