"""Matrix products.

Canonical form:

    MatMul(A, B)                  NumPy's matmul, 1-D operands included; no attributes
    com.microsoft.FusedMatMul(A, B)
        `alpha`, `transA`, `transB` (last two axes), `transBatchA`, `transBatchB`
    Gemm(A[M, K], B[K, N], C?)    `alpha`, `beta`, `transA`, `transB`; C broadcasts to [M, N]
    com.microsoft.FusedGemm       Gemm, then `activation` ("" for none) with `activation_alpha`
    MatMulInteger(A, B, a_zero_point?, b_zero_point?) -> int32
        zero points are scalars, [M] of A's rows, [N] of B's columns, or with batch dimensions
    QLinearMatMul(A, a_scale, a_zero_point, B, b_scale, b_zero_point, y_scale, y_zero_point)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec


def _product_shape(
    context: OperatorContext, left: tuple[int, ...], right: tuple[int, ...]
) -> tuple[int, ...]:
    message = f"shapes {list(left)} and {list(right)} do not multiply"
    reading.require(bool(left and right), context, message)
    matrix = left if len(left) > 1 else (1, *left)
    other = right if len(right) > 1 else (*right, 1)
    reading.require(matrix[-1] == other[-2], context, message)
    try:
        batch = np.broadcast_shapes(matrix[:-2], other[:-2])
    except ValueError as error:
        raise reading.invalid(context, message) from error
    rows = matrix[-2:-1] if len(left) > 1 else ()
    columns = other[-1:] if len(right) > 1 else ()
    return (*batch, *rows, *columns)


def _infer_matmul(context: OperatorContext) -> list[TensorSpec]:
    left, right = reading.operand(context, 0, "A"), reading.operand(context, 1, "B")
    return [reading.like(left, _product_shape(context, left.shape, right.shape))]


def _infer_matmul_integer(context: OperatorContext) -> list[TensorSpec]:
    return [TensorSpec(np.dtype(np.int32), _infer_matmul(context)[0].shape)]


def _infer_qlinear_matmul(context: OperatorContext) -> list[TensorSpec]:
    left, right = reading.operand(context, 0, "a"), reading.operand(context, 3, "b")
    result = reading.operand(context, 7, "y_zero_point")
    return [reading.like(result, _product_shape(context, left.shape, right.shape))]


def transposed_axes(rank: int, *, matrix: bool, batch: bool) -> tuple[int, ...]:
    """Return FusedMatMul's permutation: `batch` moves the first axis before the last."""
    axes = list(range(rank))
    if batch:
        axes = [*axes[1:-1], axes[0], axes[-1]]
    if matrix:
        axes[-2:] = axes[:-3:-1]
    return tuple(axes)


def _infer_fused_matmul(context: OperatorContext) -> list[TensorSpec]:
    shapes = []
    for position, name in enumerate("AB"):
        spec = reading.operand(context, position, name)
        axes = transposed_axes(
            len(spec.shape),
            matrix=bool(reading.integer(context, f"trans{name}", 0)) and len(spec.shape) > 1,
            batch=bool(reading.integer(context, f"transBatch{name}", 0)) and len(spec.shape) > 2,
        )
        shapes.append(tuple([spec.shape[axis] for axis in axes]))
    left = reading.operand(context, 0, "A")
    return [reading.like(left, _product_shape(context, shapes[0], shapes[1]))]


def _infer_gemm(context: OperatorContext) -> list[TensorSpec]:
    left, right = reading.operand(context, 0, "A"), reading.operand(context, 1, "B")
    message = f"{left} and {right} do not multiply"
    reading.require(len(left.shape) == len(right.shape) == 2, context, message)
    rows, depth = left.shape[:: -1 if reading.integer(context, "transA", 0) else 1]
    right_depth, columns = right.shape[:: -1 if reading.integer(context, "transB", 0) else 1]
    reading.require(depth == right_depth, context, message)
    return [reading.like(left, (rows, columns))]


def _plain(operand_count: int) -> Callable[[OperatorContext], Lowered]:
    def lower(context: OperatorContext) -> Lowered:
        positions = reading.data_positions(context, operand_count)
        return Lowered(context.node.qualified_operator, {}, positions)

    return lower


def _lower_fused_matmul(context: OperatorContext) -> Lowered:
    attributes: dict[str, Attribute] = {
        name: reading.integer(context, name, 0)
        for name in ("transA", "transB", "transBatchA", "transBatchB")
    }
    attributes["alpha"] = reading.number(context, "alpha", 1.0)
    return Lowered(context.node.qualified_operator, attributes, (0, 1))


def _lower_gemm(context: OperatorContext) -> Lowered:
    attributes: dict[str, Attribute] = {
        "alpha": reading.number(context, "alpha", 1.0),
        "beta": reading.number(context, "beta", 1.0),
        "transA": reading.integer(context, "transA", 0),
        "transB": reading.integer(context, "transB", 0),
    }
    if context.node.domain:
        attributes["activation"] = reading.text(context, "activation", "")
        attributes["activation_alpha"] = reading.number(context, "activation_alpha", 0.01)
    positions = reading.data_positions(context, 3)
    return Lowered(context.node.qualified_operator, attributes, positions)


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("MatMul", _infer_matmul, _plain(2)),
    OperatorEntry("com.microsoft.FusedMatMul", _infer_fused_matmul, _lower_fused_matmul),
    OperatorEntry("Gemm", _infer_gemm, _lower_gemm),
    OperatorEntry("com.microsoft.FusedGemm", _infer_gemm, _lower_gemm),
    OperatorEntry("MatMulInteger", _infer_matmul_integer, _plain(4)),
    OperatorEntry("QLinearMatMul", _infer_qlinear_matmul, _plain(8)),
)
