"""Pools over regions of interest.

Canonical form, regions being x1, y1, x2, y2 in units that `spatial_scale` turns into elements:

    RoiAlign(X[N, C, H, W], rois[regions, 4], batch_indices[regions])
        `output_height`, `output_width`, `mode` avg or max, `sampling_ratio` (0: as many samples
        as a bin has elements), `half_pixel` 1 if the centre of an element is at 0.5
    MaxRoiPool(X[N, C, H, W], rois[regions, 5], the image's index first)
        `output_height`, `output_width`
"""

from __future__ import annotations

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec

_HALF_PIXEL_OPSET = 16


def _bins(context: OperatorContext) -> tuple[int, int]:
    if context.node.operator == "RoiAlign":
        return (
            reading.integer(context, "output_height", 1),
            reading.integer(context, "output_width", 1),
        )
    height, width = (*reading.integers(context, "pooled_shape", ()), 0, 0)[:2]
    return height, width


def _infer(context: OperatorContext) -> list[TensorSpec]:
    data, regions = reading.operand(context, 0, "X"), reading.operand(context, 1, "rois")
    columns = 4 if context.node.operator == "RoiAlign" else 5
    reading.require(
        len(data.shape) == 4 and len(regions.shape) == 2 and regions.shape[1] == columns,
        context,
        f"{regions} are not regions of {data}",
    )
    reading.require(min(_bins(context)) > 0, context, "the pooled shape has to be positive")
    return [reading.like(data, (regions.shape[0], data.shape[1], *_bins(context)))]


def _lower(context: OperatorContext) -> Lowered:
    height, width = _bins(context)
    attributes: dict[str, Attribute] = {
        "output_height": height,
        "output_width": width,
        "spatial_scale": reading.number(context, "spatial_scale", 1.0),
    }
    if context.node.operator == "MaxRoiPool":
        return Lowered("MaxRoiPool", attributes, (0, 1))
    default = "half_pixel" if context.node.opset >= _HALF_PIXEL_OPSET else "output_half_pixel"
    mode = reading.text(context, "coordinate_transformation_mode", default)
    attributes |= {
        "mode": reading.text(context, "mode", "avg"),
        "sampling_ratio": reading.integer(context, "sampling_ratio", 0),
        "half_pixel": int(mode == "half_pixel"),
    }
    return Lowered("RoiAlign", attributes, (0, 1, 2))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("RoiAlign", _infer, _lower),
    OperatorEntry("MaxRoiPool", _infer, _lower),
)
