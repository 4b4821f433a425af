"""Layers on quantised tensors, as ONNX Runtime's quantiser writes them.

Canonical form, with scales (float32) and zero points scalars, zero points left out being 0:

    com.microsoft.QLinearSigmoid(X, x_scale, x_zero?, y_scale, y_zero?)
    com.microsoft.QLinearLeakyRelu(the same)            `alpha`
    aegis.QLinearClip(the same)                         `levels`; made by our own passes
    com.microsoft.QLinearSoftmax(the same)              the attributes of Softmax
    com.microsoft.QLinearAveragePool(the same)          those of AveragePool, and `channels_last`
    com.microsoft.QLinearGlobalAveragePool(the same)    `channels_last`
    com.microsoft.QLinearConv(the operands of QLinearConv)    its attributes and `levels`; X and the
        result are N, spatial..., C. With channels first it is QLinearConv, `levels` and all
    aegis.QLinearConvAdd(the same, then R, r_scale, r_zero?, sum_scale, sum_zero?)    the same, and
        `sum_levels`: R, as large as the result, is added as by QLinearAdd; made by our own passes
    com.microsoft.QLinearConcat(y_scale, y_zero, then X, x_scale, x_zero of each part)   `axis`
    com.microsoft.DynamicQuantizeLSTM(the operands of LSTM, W_scale, W_zero, R_scale, R_zero)
        the attributes of LSTM; W[D, I, 4 H] and R[D, H, 4 H] are quantised, their scales and
        zero points [D] or [D, 4 H]. A kernel may round X and the state to 8 bits, as ONNX Runtime
        does, or multiply them as they are.

`levels`, the lowest and the highest of the result, or () for all that its type has, stand for an
activation; only this project's passes write them.
"""

from __future__ import annotations

from dataclasses import replace

from aegis_pipe.execution.operators import convolution, pooling, reading, recurrent, softmax
from aegis_pipe.execution.operators.channels_last import (
    as_channels_first,
    channels_last,
)
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec

_REAL = {
    entry.name: entry
    for entry in (
        *convolution.ENTRIES,
        *pooling.ENTRIES,
        *recurrent.ENTRIES,
        *softmax.ENTRIES,
    )
}


def _infer_same(context: OperatorContext) -> list[TensorSpec]:
    return [reading.operand(context, 0, "X")]


def _lower_unary(context: OperatorContext) -> Lowered:
    attributes: dict[str, Attribute] = {}
    if context.node.operator == "QLinearLeakyRelu":
        attributes["alpha"] = reading.number(context, "alpha", 0.01)
    if context.node.operator == "QLinearClip":
        attributes["levels"] = reading.integers(context, "levels", ())
    return Lowered(context.node.qualified_operator, attributes, reading.data_positions(context, 5))


def _lower_softmax(context: OperatorContext) -> Lowered:
    opset = reading.integer(context, "opset", 13)
    node = replace(context.node, operator="Softmax", domain="", opset=opset)
    real = _REAL["Softmax"].lower(replace(context, node=node))
    positions = reading.data_positions(context, 5)
    return Lowered(context.node.qualified_operator, real.attributes, positions)


def _is_channels_last(context: OperatorContext) -> bool:
    return reading.integer(context, "channels_last", 0) != 0


def _real_pool(context: OperatorContext) -> tuple[OperatorEntry, OperatorContext]:
    name = context.node.operator.removeprefix("QLinear")
    images = (0,) if _is_channels_last(context) else ()
    return _REAL[name], as_channels_first(context, name, "", images)


def _infer_pool(context: OperatorContext) -> list[TensorSpec]:
    entry, real = _real_pool(context)
    results = entry.infer(real)
    return [channels_last(spec) for spec in results] if _is_channels_last(context) else [*results]


def _lower_pool(context: OperatorContext) -> Lowered:
    entry, real = _real_pool(context)
    attributes = {
        **entry.lower(real).attributes,
        "channels_last": int(_is_channels_last(context)),
    }
    positions = reading.data_positions(context, 5)
    return Lowered(context.node.qualified_operator, attributes, positions)


def _infer_conv(context: OperatorContext) -> list[TensorSpec]:
    images = (0,) if _is_channels_last(context) else ()
    results = _REAL["QLinearConv"].infer(as_channels_first(context, "QLinearConv", "", images))
    return [channels_last(spec) for spec in results] if images else [*results]


def _lower_conv(context: OperatorContext) -> Lowered:
    images = (0,) if _is_channels_last(context) else ()
    real = _REAL["QLinearConv"].lower(as_channels_first(context, "QLinearConv", "", images))
    name = context.node.qualified_operator if images else "QLinearConv"
    attributes = {**real.attributes, "levels": reading.integers(context, "levels", ())}
    return Lowered(name, attributes, real.data_inputs)


def _infer_conv_add(context: OperatorContext) -> list[TensorSpec]:
    results = _infer_conv(context)
    added = reading.operand(context, 9, "R")
    reading.require(added.shape == results[0].shape, context, f"{added} does not fit {results[0]}")
    return results


def _lower_conv_add(context: OperatorContext) -> Lowered:
    attributes = dict(_lower_conv(context).attributes)
    attributes["sum_levels"] = reading.integers(context, "sum_levels", ())
    positions = reading.data_positions(context, 14)
    return Lowered(context.node.qualified_operator, attributes, positions)


def _concat_axis(context: OperatorContext) -> int:
    rank = len(reading.operand(context, 2, "inputs").shape)
    return reading.resolve_axis(context, reading.integer(context, "axis"), rank)


def _infer_concat(context: OperatorContext) -> list[TensorSpec]:
    first, axis = reading.operand(context, 2, "inputs"), _concat_axis(context)
    parts = [
        reading.operand(context, position, "inputs").shape
        for position in range(2, len(context.inputs), 3)
    ]
    around = {(len(part), part[:axis], part[axis + 1 :]) for part in parts}
    reading.require(len(around) == 1, context, "the parts do not fit beside each other")
    total = sum(part[axis] for part in parts)
    return [reading.like(first, (*first.shape[:axis], total, *first.shape[axis + 1 :]))]


def _lower_concat(context: OperatorContext) -> Lowered:
    positions = reading.data_positions(context, len(context.inputs))
    return Lowered(context.node.qualified_operator, {"axis": _concat_axis(context)}, positions)


def _real_lstm(context: OperatorContext) -> OperatorContext:
    """Return the context of the LSTM whose weights are transposed, and float like X."""
    data = reading.operand(context, 0, "X")
    specs = list(context.inputs[:8])
    for position, name in ((1, "W"), (2, "R")):
        spec = reading.operand(context, position, name)
        reading.require(len(spec.shape) == 3, context, f"{name} {spec} has not 3 dimensions")
        directions, rows, columns = spec.shape
        specs[position] = reading.like(data, (directions, columns, rows))
    node = replace(context.node, operator="LSTM", domain="")
    return OperatorContext(node, tuple(specs), {})


def _infer_lstm(context: OperatorContext) -> list[TensorSpec]:
    return [*_REAL["LSTM"].infer(_real_lstm(context))]


def _lower_lstm(context: OperatorContext) -> Lowered:
    attributes = _REAL["LSTM"].lower(_real_lstm(context)).attributes
    positions = reading.data_positions(context, 12)
    return Lowered(context.node.qualified_operator, attributes, positions)


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("com.microsoft.QLinearSigmoid", _infer_same, _lower_unary),
    OperatorEntry("com.microsoft.QLinearLeakyRelu", _infer_same, _lower_unary),
    OperatorEntry("aegis.QLinearClip", _infer_same, _lower_unary),
    OperatorEntry("com.microsoft.QLinearSoftmax", _infer_same, _lower_softmax),
    OperatorEntry("com.microsoft.QLinearAveragePool", _infer_pool, _lower_pool),
    OperatorEntry("com.microsoft.QLinearGlobalAveragePool", _infer_pool, _lower_pool),
    OperatorEntry("com.microsoft.QLinearConv", _infer_conv, _lower_conv),
    OperatorEntry("aegis.QLinearConvAdd", _infer_conv_add, _lower_conv_add),
    OperatorEntry("com.microsoft.QLinearConcat", _infer_concat, _lower_concat),
    OperatorEntry("com.microsoft.DynamicQuantizeLSTM", _infer_lstm, _lower_lstm),
)
