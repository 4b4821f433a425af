"""QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear.

Canonical form:

    QuantizeLinear(X, scale, zero_point?)      `axis`; `block_size`, 0: a scale for the tensor or
                                               each position of the axis; `saturate` 0 or 1;
                                               `precision`: dtype name to divide in, "" if open
    DequantizeLinear(X, scale, zero_point?)    `axis`, `block_size`
    DynamicQuantizeLinear(X) -> Y, scale, zero_point

What quantisers write for 16 bits before opset 21, com.microsoft.QuantizeLinear and its inverse,
becomes these.
"""

from __future__ import annotations

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.element_types import FLOAT32, UINT8, element_type
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec


def _check_scale(context: OperatorContext) -> dict[str, Attribute]:
    data, scale = reading.operand(context, 0, "x"), reading.operand(context, 1, "scale")
    zero_point = reading.optional_operand(context, 2)
    if not (
        zero_point is None
        or zero_point.shape == scale.shape
        or zero_point.element_count == scale.element_count == 1
    ):
        raise reading.invalid(context, f"zero point {zero_point} and scale {scale} differ in shape")
    block_size = reading.integer(context, "block_size", 0)
    attributes: dict[str, Attribute] = {"axis": 0, "block_size": block_size}
    if scale.element_count == 1 and not block_size:
        return attributes
    rank = len(data.shape)
    axis = reading.resolve_axis(context, reading.integer(context, "axis", 1), rank)
    if block_size:
        shape = list(data.shape)
        shape[axis] = -(-shape[axis] // block_size)
        fits = scale.shape == tuple(shape)
    else:
        fits = rank > 0 and scale.shape == (data.shape[axis],)
    if not fits:
        raise reading.invalid(context, f"scale {scale} does not fit axis {axis} of {data}")
    return attributes | {"axis": axis}


def _infer_quantise(context: OperatorContext) -> list[TensorSpec]:
    _check_scale(context)
    zero_point = reading.optional_operand(context, 2)
    dtype = zero_point.dtype if zero_point else UINT8
    if not zero_point and reading.integer(context, "output_dtype", 0):
        dtype = element_type(context, "output_dtype")
    return [TensorSpec(dtype, reading.operand(context, 0, "x").shape)]


def _lower_quantise(context: OperatorContext) -> Lowered:
    has_precision = reading.integer(context, "precision", 0) != 0
    attributes = _check_scale(context) | {
        "saturate": reading.integer(context, "saturate", 1),
        "precision": element_type(context, "precision").name if has_precision else "",
    }
    return Lowered("QuantizeLinear", attributes, reading.data_positions(context, 3))


def _infer_dequantise(context: OperatorContext) -> list[TensorSpec]:
    _check_scale(context)
    dtype = reading.operand(context, 1, "scale").dtype
    if reading.integer(context, "output_dtype", 0):
        dtype = element_type(context, "output_dtype")
    return [TensorSpec(dtype, reading.operand(context, 0, "x").shape)]


def _lower_dequantise(context: OperatorContext) -> Lowered:
    positions = reading.data_positions(context, 3)
    return Lowered("DequantizeLinear", _check_scale(context), positions)


def _infer_dynamic(context: OperatorContext) -> list[TensorSpec]:
    shape = reading.operand(context, 0, "x").shape
    return [TensorSpec(UINT8, shape), TensorSpec(FLOAT32, ()), TensorSpec(UINT8, ())]


def _lower_dynamic(context: OperatorContext) -> Lowered:
    return Lowered("DynamicQuantizeLinear", {}, (0,))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("QuantizeLinear", _infer_quantise, _lower_quantise),
    OperatorEntry("DequantizeLinear", _infer_dequantise, _lower_dequantise),
    OperatorEntry("com.microsoft.QuantizeLinear", _infer_quantise, _lower_quantise),
    OperatorEntry("com.microsoft.DequantizeLinear", _infer_dequantise, _lower_dequantise),
    OperatorEntry("DynamicQuantizeLinear", _infer_dynamic, _lower_dynamic),
)
