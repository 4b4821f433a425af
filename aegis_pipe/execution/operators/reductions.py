"""Reductions, arg-reductions, cumulative operators and TopK.

Canonical form:

    ReduceSum ... (X)      `axes`: ascending, possibly none; `keepdims` 0 or 1
    ArgMax, ArgMin (X)     `axis`, `keepdims`, `select_last_index` 0 or 1
    CumSum, CumProd (X)    `axis`, `exclusive` 0 or 1, `reverse` 0 or 1
    TopK (X)               `k`, `axis`, `largest` 0 or 1, `sorted` 0 or 1 -> values, indices; equal
                           values come in the order of their indices
"""

from __future__ import annotations

from collections.abc import Sequence

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.element_types import INT64
from aegis_pipe.execution.operators.elementwise import same_as_first
from aegis_pipe.execution.operators.layout import static_integers
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.tensor import TensorSpec

_SUM_AXES_ARE_OPERAND_OPSET = 13
_AXES_ARE_OPERAND_OPSET = 18
_REDUCTIONS = (
    *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"),
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
)
_TOP_K_BY_OPERAND_OPSET = 10


def _axes(context: OperatorContext) -> tuple[int, ...]:
    rank = len(reading.operand(context, 0, "data").shape)
    is_sum = context.node.operator == "ReduceSum"
    since = _SUM_AXES_ARE_OPERAND_OPSET if is_sum else _AXES_ARE_OPERAND_OPSET
    axes: Sequence[int] = ()
    if context.node.opset < since:
        axes = reading.integers(context, "axes", ())
    elif reading.optional_operand(context, 1) is not None:
        axes = static_integers(context, 1, "axes")
    if not axes and not reading.integer(context, "noop_with_empty_axes", 0):
        return tuple(range(rank))
    resolved = sorted(reading.resolve_axis(context, axis, rank) for axis in axes)
    if len(set(resolved)) != len(resolved):
        raise reading.invalid(context, f"axes {axes} repeat")
    # A scalar may name axis 0, which it has not.
    return tuple(resolved) if rank else ()


def _reduced(spec: TensorSpec, axes: Sequence[int], keepdims: int) -> tuple[int, ...]:
    if keepdims:
        return tuple([1 if i in axes else n for i, n in enumerate(spec.shape)])
    return tuple([n for i, n in enumerate(spec.shape) if i not in axes])


def _infer_reduce(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "data")
    keepdims = reading.integer(context, "keepdims", 1)
    return [reading.like(data, _reduced(data, _axes(context), keepdims))]


def _lower_reduce(context: OperatorContext) -> Lowered:
    axes, keepdims = _axes(context), reading.integer(context, "keepdims", 1)
    return Lowered(context.node.operator, {"axes": axes, "keepdims": keepdims}, (0,))


def _axis(context: OperatorContext, default: int) -> int:
    rank = len(reading.operand(context, 0, "data").shape)
    return reading.resolve_axis(context, reading.integer(context, "axis", default), rank)


def _infer_arg(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "data")
    axis = _axis(context, 0)
    if not (len(data.shape) > 0 and data.shape[axis] > 0):
        raise reading.invalid(context, f"axis {axis} of {data} is empty")
    keepdims = reading.integer(context, "keepdims", 1)
    return [TensorSpec(INT64, _reduced(data, (axis,), keepdims))]


def _lower_arg(context: OperatorContext) -> Lowered:
    attributes = {
        "axis": _axis(context, 0),
        "keepdims": reading.integer(context, "keepdims", 1),
        "select_last_index": reading.integer(context, "select_last_index", 0),
    }
    return Lowered(context.node.operator, attributes, (0,))


def _lower_cumulative(context: OperatorContext) -> Lowered:
    rank = len(reading.operand(context, 0, "x").shape)
    axis = static_integers(context, 1, "axis")[0]
    attributes = {
        "axis": reading.resolve_axis(context, axis, rank),
        "exclusive": reading.integer(context, "exclusive", 0),
        "reverse": reading.integer(context, "reverse", 0),
    }
    return Lowered(context.node.operator, attributes, (0,))


def _k(context: OperatorContext) -> int:
    data = reading.operand(context, 0, "X")
    by_operand = context.node.opset >= _TOP_K_BY_OPERAND_OPSET
    k = static_integers(context, 1, "K")[0] if by_operand else reading.integer(context, "k")
    axis = _axis(context, -1)
    if not (len(data.shape) > 0 and 0 <= k <= data.shape[axis]):
        raise reading.invalid(context, f"axis {axis} of {data} has not {k} elements")
    return k


def _infer_top_k(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "X")
    axis = _axis(context, -1)
    shape = (*data.shape[:axis], _k(context), *data.shape[axis + 1 :])
    return [reading.like(data, shape), TensorSpec(INT64, shape)]


def _lower_top_k(context: OperatorContext) -> Lowered:
    attributes = {
        "k": _k(context),
        "axis": _axis(context, -1),
        "largest": reading.integer(context, "largest", 1),
        "sorted": reading.integer(context, "sorted", 1),
    }
    return Lowered("TopK", attributes, (0,))


ENTRIES: tuple[OperatorEntry, ...] = (
    *(
        OperatorEntry(name, _infer_reduce, _lower_reduce, static_inputs=(1,))
        for name in _REDUCTIONS
    ),
    *(OperatorEntry(name, _infer_arg, _lower_arg) for name in ("ArgMax", "ArgMin")),
    *(
        OperatorEntry(name, same_as_first, _lower_cumulative, static_inputs=(1,))
        for name in ("CumSum", "CumProd")
    ),
    OperatorEntry("TopK", _infer_top_k, _lower_top_k, static_inputs=(1,)),
)
