"""Products of quantised matrices, as ONNX Runtime's quantiser writes them.

Canonical form, which MatMulIntegerToFloat and DynamicQuantizeMatMul become too:

    com.microsoft.QGemm(A[..., M, K], B[..., K, N], a_scale?, a_zero?, b_scale, b_zero?, bias?,
                        y_scale?, y_zero?)            `transA`, `transB`, `alpha`, `levels`

A is 8 bits wide, or float: then quantised on the way in, over its own range, and a_scale and
a_zero are left out. Parameters of A and Y are scalars, those of B scalars or [N]. An int32 bias
is on the scale of the product and added before rescaling, a float bias after. The result is
quantised if there is a y_scale, else float. `levels` as in `quantised_layers`.
"""

from __future__ import annotations

import numpy as np

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec

_CANONICAL = "com.microsoft.QGemm"
_PLAIN: dict[str, Attribute] = {"transA": 0, "transB": 0, "alpha": 1.0, "levels": ()}


def _product_shape(
    context: OperatorContext, left: tuple[int, ...], right: tuple[int, ...]
) -> tuple[int, ...]:
    message = f"shapes {list(left)} and {list(right)} do not multiply"
    fits = len(left) > 1 and len(right) > 1 and left[-1] == right[-2]
    reading.require(fits, context, message)
    try:
        batch = np.broadcast_shapes(left[:-2], right[:-2])
    except ValueError as error:
        raise reading.invalid(context, message) from error
    return (*batch, left[-2], right[-1])


def _infer_matmul(context: OperatorContext) -> list[TensorSpec]:
    left, right = reading.operand(context, 0, "A"), reading.operand(context, 1, "B")
    is_dynamic = context.node.operator == "DynamicQuantizeMatMul"
    dtype = left.dtype if is_dynamic else reading.operand(context, 2, "a_scale").dtype
    return [TensorSpec(dtype, _product_shape(context, left.shape, right.shape))]


def _lower_integer_to_float(context: OperatorContext) -> Lowered:
    left, right, a_scale, b_scale, a_zero, b_zero, bias = reading.data_positions(context, 7)
    positions = (left, right, a_scale, a_zero, b_scale, b_zero, bias, -1, -1)
    return Lowered(_CANONICAL, _PLAIN, positions)


def _lower_dynamic(context: OperatorContext) -> Lowered:
    left, right, b_scale, b_zero, bias = reading.data_positions(context, 5)
    return Lowered(_CANONICAL, _PLAIN, (left, right, -1, -1, b_scale, b_zero, bias, -1, -1))


def _infer_gemm(context: OperatorContext) -> list[TensorSpec]:
    left, right = reading.operand(context, 0, "A"), reading.operand(context, 3, "B")
    is_matrix = len(left.shape) == len(right.shape) == 2
    reading.require(is_matrix, context, f"{left} and {right} are not matrices")
    rows = left.shape[:: -1 if reading.integer(context, "transA", 0) else 1]
    columns = right.shape[:: -1 if reading.integer(context, "transB", 0) else 1]
    zero = reading.optional_operand(context, 8)
    dtype = zero.dtype if zero else reading.operand(context, 1, "a_scale").dtype
    if not zero and reading.optional_operand(context, 7):
        dtype = left.dtype
    return [TensorSpec(dtype, _product_shape(context, rows, columns))]


def _lower_gemm(context: OperatorContext) -> Lowered:
    left, a_scale, a_zero, right, b_scale, b_zero, bias, y_scale, y_zero = reading.data_positions(
        context, 9
    )
    attributes: dict[str, Attribute] = {
        "transA": reading.integer(context, "transA", 0),
        "transB": reading.integer(context, "transB", 0),
        "alpha": reading.number(context, "alpha", 1.0),
        "levels": reading.integers(context, "levels", ()),
    }
    positions = (left, right, a_scale, a_zero, b_scale, b_zero, bias, y_scale, y_zero)
    return Lowered(_CANONICAL, attributes, positions)


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("com.microsoft.MatMulIntegerToFloat", _infer_matmul, _lower_integer_to_float),
    OperatorEntry("com.microsoft.DynamicQuantizeMatMul", _infer_matmul, _lower_dynamic),
    OperatorEntry("com.microsoft.QGemm", _infer_gemm, _lower_gemm),
)
