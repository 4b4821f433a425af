"""Values put into a larger tensor, or cut out of one.

Canonical form:

    MaxUnpool(X[N, C, spatial...], indices)     indices count through the whole of the result
    CenterCropPad(X) -> Y                       the middle of X in the middle of Y; zeros around
    TensorScatter(cache[batch, ...], update, write_indices[batch]?)
        `axis`, `mode` linear or circular: the update replaces a stretch of the cache
"""

from __future__ import annotations

from aegis_pipe.execution.operators import reading, windows
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec


def _infer_unpool(context: OperatorContext) -> list[TensorSpec]:
    data, indices = reading.operand(context, 0, "X"), reading.operand(context, 1, "I")
    fits = len(data.shape) > 2 and indices.shape == data.shape
    reading.require(fits, context, f"indices {indices} do not fit X {data}")
    if reading.optional_operand(context, 2) is not None:
        shape = tuple(map(int, reading.static_value(context, 2, "output_shape")))
        reading.require(len(shape) == len(data.shape), context, f"{shape} is no output_shape")
        return [reading.like(data, shape)]
    kernel_shape = reading.integers(context, "kernel_shape", ())
    geometry = windows.read_windows(context, data.shape[2:], kernel_shape)
    spatial = [
        (count - 1) * stride + extent - begin - end
        for count, stride, extent, begin, end in zip(
            data.shape[2:],
            geometry.strides,
            geometry.extents,
            geometry.pads_begin,
            geometry.pads_end,
            strict=True,
        )
    ]
    return [reading.like(data, (*data.shape[:2], *spatial))]


def _unpooled_shape(context: OperatorContext) -> tuple[int, ...]:
    """Return the shape through which the indices count: that without output_shape."""
    without = OperatorContext(context.node, context.inputs[:2], {})
    return tuple(_infer_unpool(without)[0].shape)


def _lower_unpool(context: OperatorContext) -> Lowered:
    return Lowered("MaxUnpool", {"counted_shape": _unpooled_shape(context)}, (0, 1))


def _infer_crop(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "input_data")
    rank = len(data.shape)
    axes = reading.integers(context, "axes", range(rank))
    wanted = tuple(map(int, reading.static_value(context, 1, "shape")))
    fits = len(axes) == len(wanted) and min(wanted, default=0) >= 0
    reading.require(fits, context, f"{list(wanted)} are no sizes of axes {list(axes)}")
    shape = [*data.shape]
    for axis, size in zip(axes, wanted, strict=True):
        shape[reading.resolve_axis(context, axis, rank)] = size
    return [reading.like(data, shape)]


def _lower_crop(context: OperatorContext) -> Lowered:
    return Lowered("CenterCropPad", {}, (0,))


def _infer_scatter(context: OperatorContext) -> list[TensorSpec]:
    cache, update = reading.operand(context, 0, "past_cache"), reading.operand(context, 1, "update")
    axis = _scatter_axis(context)
    around = [spec.shape[:axis] + spec.shape[axis + 1 :] for spec in (cache, update)]
    reading.require(
        len(cache.shape) == len(update.shape)
        and around[0] == around[1]
        and update.shape[axis] <= cache.shape[axis],
        context,
        f"update {update} does not fit into {cache}",
    )
    return [cache]


def _scatter_axis(context: OperatorContext) -> int:
    rank = len(reading.operand(context, 0, "past_cache").shape)
    axis = reading.resolve_axis(context, reading.integer(context, "axis", -2), rank)
    reading.require(axis > 0, context, "the first dimension is that of the batch")
    return axis


def _lower_scatter(context: OperatorContext) -> Lowered:
    mode = reading.text(context, "mode", "linear")
    reading.require(mode in ("linear", "circular"), context, f"mode `{mode}` is unknown")
    attributes: dict[str, Attribute] = {"axis": _scatter_axis(context), "mode": mode}
    return Lowered("TensorScatter", attributes, reading.data_positions(context, 3))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("MaxUnpool", _infer_unpool, _lower_unpool, static_inputs=(2,)),
    OperatorEntry("CenterCropPad", _infer_crop, _lower_crop, static_inputs=(1,)),
    OperatorEntry("TensorScatter", _infer_scatter, _lower_scatter),
)
