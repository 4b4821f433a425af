"""Rearrangements between blocks of an image and its channels.

Canonical form:

    DepthToSpace(X[N, C, H, W])   `blocksize`, `mode` "DCR" or "CRD"
    SpaceToDepth(X[N, C, H, W])   `blocksize`, `mode` "DCR" or "CRD"
    Col2Im(X[N, C * block, L])    the attributes of `windows.Windows`, with the block as
                                  `kernel_shape`; the image is the output's shape
"""

from __future__ import annotations

import math

from aegis_pipe.execution.operators import reading, windows
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec


def _infer_blocks(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "input")
    size = reading.integer(context, "blocksize")
    reading.require(len(data.shape) == 4 and size > 0, context, f"{data} is not N, C, H, W")
    batch, channels, height, width = data.shape
    if context.node.operator == "DepthToSpace":
        fits = channels % (size * size) == 0
        shape = (batch, channels // (size * size), height * size, width * size)
    else:
        fits = height % size == 0 and width % size == 0
        shape = (batch, channels * size * size, height // size, width // size)
    reading.require(fits, context, f"{data} does not divide into blocks of {size}")
    return [reading.like(data, shape)]


def _lower_blocks(context: OperatorContext) -> Lowered:
    attributes: dict[str, Attribute] = {
        "blocksize": reading.integer(context, "blocksize"),
        "mode": reading.text(context, "mode", "DCR"),
    }
    return Lowered(context.node.operator, attributes, (0,))


def _col2im(context: OperatorContext) -> tuple[windows.Windows, tuple[int, ...]]:
    """Return the windows and the image's spatial dimensions."""
    image = tuple(map(int, reading.static_value(context, 1, "image_shape")))
    block = tuple(map(int, reading.static_value(context, 2, "block_shape")))
    return windows.read_windows(context, image, block), image


def _infer_col2im(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "input")
    geometry, image = _col2im(context)
    block = math.prod(geometry.kernel_shape)
    reading.require(
        len(data.shape) == 3
        and data.shape[1] % block == 0
        and data.shape[2] == math.prod(geometry.output_shape(image)),
        context,
        f"columns {data} do not fit an image {list(image)}",
    )
    return [reading.like(data, (data.shape[0], data.shape[1] // block, *image))]


def _lower_col2im(context: OperatorContext) -> Lowered:
    return Lowered("Col2Im", _col2im(context)[0].attributes(), (0,))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("DepthToSpace", _infer_blocks, _lower_blocks),
    OperatorEntry("SpaceToDepth", _infer_blocks, _lower_blocks),
    OperatorEntry("Col2Im", _infer_col2im, _lower_col2im, static_inputs=(1, 2)),
)
