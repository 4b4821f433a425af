"""Operators whose result is known at load, or all but.

Canonical form:

    Constant()          `value`: what Constant, Shape, Size and EyeLike become
    ConstantOfShape()   `value`: one element, repeated over the output
    Range()             `start`, `delta`: one element each, of the output's dtype

A model loader usually folds these away; what it leaves is what would be large as a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.element_types import FLOAT32, INT64, element_type
from aegis_pipe.execution.operators.layout import static_integers
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.tensor import TensorSpec

_SCALAR_ATTRIBUTES = {
    "value_int": INT64,
    "value_ints": INT64,
    "value_float": FLOAT32,
    "value_floats": FLOAT32,
}


def _spec_of(value: np.ndarray) -> TensorSpec:
    return TensorSpec(value.dtype, value.shape)


def _constant(context: OperatorContext) -> np.ndarray:
    tensor = context.node.attributes.get("value")
    if isinstance(tensor, np.ndarray):
        return tensor
    for name, dtype in _SCALAR_ATTRIBUTES.items():
        if name in context.node.attributes:
            return np.array(context.node.attributes[name], dtype)
    raise reading.invalid(context, "the constant has no numeric value")


def _shape_value(context: OperatorContext) -> np.ndarray:
    shape = reading.operand(context, 0, "data").shape
    start = reading.integer(context, "start", 0)
    end = reading.integer(context, "end", len(shape))
    return np.array(shape[start:end], np.int64)


def _size_value(context: OperatorContext) -> np.ndarray:
    return np.array(reading.operand(context, 0, "data").element_count, np.int64)


def _eye_value(context: OperatorContext) -> np.ndarray:
    like = reading.operand(context, 0, "input")
    if len(like.shape) != 2:
        raise reading.invalid(context, f"{like} is no matrix")
    given = "dtype" in context.node.attributes
    dtype = element_type(context, "dtype") if given else like.dtype
    rows, columns = like.shape
    return np.eye(rows, columns, reading.integer(context, "k", 0)).astype(dtype)


_ZERO = np.zeros(1, np.float32)


def _fill_value(context: OperatorContext) -> np.ndarray:
    value = context.node.attributes.get("value", _ZERO)
    reading.require(
        isinstance(value, np.ndarray) and value.size == 1, context, "`value` has to be one element"
    )
    return np.asarray(value).reshape(())


def _infer_fill(context: OperatorContext) -> list[TensorSpec]:
    shape = static_integers(context, 0, "input")
    if min(shape, default=0) < 0:
        raise reading.invalid(context, f"{shape} is no shape")
    return [TensorSpec(_fill_value(context).dtype, tuple(shape))]


def _lower_fill(context: OperatorContext) -> Lowered:
    return Lowered("ConstantOfShape", {"value": _fill_value(context)}, ())


def _infer_range(context: OperatorContext) -> list[TensorSpec]:
    start, limit, delta = (
        reading.static_value(context, i, name).reshape(-1)[0]
        for i, name in enumerate(("start", "limit", "delta"))
    )
    reading.require(delta != 0, context, "delta is 0")
    dtype = reading.operand(context, 0, "start").dtype
    if np.issubdtype(dtype, np.integer):
        return [TensorSpec(dtype, (len(range(int(start), int(limit), int(delta))),))]
    count = math.ceil((float(limit) - float(start)) / float(delta))
    return [TensorSpec(dtype, (max(count, 0),))]


def _lower_range(context: OperatorContext) -> Lowered:
    start = reading.static_value(context, 0, "start").reshape(())
    delta = reading.static_value(context, 2, "delta").reshape(())
    return Lowered("Range", {"start": start, "delta": delta}, ())


def _entry(name: str, value: Callable[[OperatorContext], np.ndarray]) -> OperatorEntry:
    def infer(context: OperatorContext) -> list[TensorSpec]:
        return [_spec_of(value(context))]

    def lower(context: OperatorContext) -> Lowered:
        return Lowered("Constant", {"value": value(context)}, ())

    return OperatorEntry(name, infer, lower)


ENTRIES: tuple[OperatorEntry, ...] = (
    _entry("Constant", _constant),
    _entry("Shape", _shape_value),
    _entry("Size", _size_value),
    _entry("EyeLike", _eye_value),
    OperatorEntry("ConstantOfShape", _infer_fill, _lower_fill, static_inputs=(0,)),
    OperatorEntry("Range", _infer_range, _lower_range, static_inputs=(0, 1, 2)),
)
