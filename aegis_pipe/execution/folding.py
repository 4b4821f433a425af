"""Operators on known operands, computed at load with NumPy.

What exporters write around shapes and what dequantises weights comes down to a few operators: these
are computed here, at the cost of a NumPy call. All others are evaluated by ONNX's reference
operators, which build a model for each; so are dtypes that NumPy itself lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.errors import KernelError, UnsupportedOperatorError
from aegis_pipe.execution.graph import OperatorNode
from aegis_pipe.execution.onnx_types import DTYPE_OF_ELEMENT_TYPE
from aegis_pipe.execution.reference_operators import has_reference, reference_function

_Operands = Sequence[np.ndarray | None]
_Fold = Callable[[OperatorNode, _Operands], np.ndarray | None]
"""Returns the only result, or None where the reference has to say."""


def fold(node: OperatorNode, operands: _Operands) -> Sequence[np.ndarray] | None:
    """Return the node's results; None if they can not be computed at load.

    `operands` are by position, None where one is left out.
    """
    result = _fold_with_numpy(node, operands)
    if result is not None:
        return [result]
    if not has_reference(node):
        return None
    known = {i: array for i, array in enumerate(operands) if array is not None}
    try:
        return reference_function(node, (), known)(())
    except (KernelError, UnsupportedOperatorError):
        # The reference is incomplete in places; a kernel may do at run time what it can not.
        return None


def _fold_with_numpy(node: OperatorNode, operands: _Operands) -> np.ndarray | None:
    function = _FOLDS.get(node.operator)
    given = [array for array in operands if array is not None]
    is_plain = all(array.dtype.kind in "fiub" for array in given)
    if node.domain or function is None or not is_plain or len(node.outputs) != 1:
        return None
    try:
        with np.errstate(all="ignore"):
            result = function(node, operands)
    except (ValueError, IndexError, TypeError):
        # Operands that do not fit: the reference says what is wrong with them.
        return None
    # Of a scalar, `ascontiguousarray` would make a list.
    return None if result is None else np.ascontiguousarray(result).reshape(result.shape)


def _elementwise(function: Callable[..., np.ndarray]) -> _Fold:
    def compute(node: OperatorNode, operands: _Operands) -> np.ndarray | None:
        if len({array.dtype for array in operands if array is not None}) != 1:
            return None
        # Before opset 7, `axis` decides how operands meet.
        return None if node.opset < 7 else np.asarray(function(*operands))

    return compute


def _divided(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    if first.dtype.kind == "f":
        return np.asarray(first / second)
    if not second.all():
        raise ValueError("division by 0")
    # Integers are cut towards 0; NumPy rounds down.
    quotient = np.floor_divide(first, second)
    inexact = (quotient * second != first) & ((first < 0) != (second < 0))
    return np.asarray((quotient + inexact).astype(first.dtype))


def _cast(node: OperatorNode, operands: _Operands) -> np.ndarray | None:
    (source,) = operands
    target = DTYPE_OF_ELEMENT_TYPE.get(_integer(node, "to", 0))
    if source is None or target is None or target.kind not in "fiub":
        return None
    if source.dtype.kind == "f" and target.kind in "iu" and not np.isfinite(source).all():
        return None
    return source.astype(target)


def _integer(node: OperatorNode, name: str, default: int) -> int:
    value = node.attributes.get(name, default)
    if not isinstance(value, int):
        raise TypeError(name)
    return value


def _integers(node: OperatorNode, name: str, operands: _Operands, position: int) -> list[int]:
    """Return what newer opsets give as an operand and older ones as an attribute."""
    if position < len(operands) and (value := operands[position]) is not None:
        return [int(each) for each in value.reshape(-1)]
    given = node.attributes.get(name, ())
    if not isinstance(given, tuple):
        raise TypeError(name)
    return [int(each) for each in given]


def _first(operands: _Operands) -> np.ndarray:
    if operands[0] is None:
        raise TypeError("the first operand is missing")
    return operands[0]


def _concat(node: OperatorNode, operands: _Operands) -> np.ndarray | None:
    arrays = [array for array in operands if array is not None]
    if len({array.dtype for array in arrays}) != 1 or "axis" not in node.attributes:
        return None
    return np.concatenate(arrays, axis=_integer(node, "axis", 0))


def _gather(node: OperatorNode, operands: _Operands) -> np.ndarray | None:
    data, indices = operands
    if data is None or indices is None or indices.dtype.kind not in "iu":
        return None
    return np.asarray(np.take(data, indices, axis=_integer(node, "axis", 0)))


def _gather_elements(node: OperatorNode, operands: _Operands) -> np.ndarray | None:
    data, indices = operands
    if data is None or indices is None or indices.dtype.kind not in "iu":
        return None
    axis = _integer(node, "axis", 0) % data.ndim
    reached = [slice(None) if at == axis else slice(n) for at, n in enumerate(indices.shape)]
    found = np.take_along_axis(data[tuple(reached)], indices, axis)
    # Operands of other shapes would be spread, which the operator does not do.
    return found if found.shape == indices.shape else None


def _slice(node: OperatorNode, operands: _Operands) -> np.ndarray | None:
    data = _first(operands)
    starts = _integers(node, "starts", operands, 1)
    ends = _integers(node, "ends", operands, 2)
    axes = _integers(node, "axes", operands, 3) or list(range(len(starts)))
    steps = _integers(node, "", operands, 4) or [1] * len(starts)
    part = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        part[axis] = slice(start, end, step)
    return np.asarray(data[tuple(part)])


def _unsqueeze(node: OperatorNode, operands: _Operands) -> np.ndarray | None:
    axes = _integers(node, "axes", operands, 1)
    return np.expand_dims(_first(operands), tuple(axes)) if axes else None


def _squeeze(node: OperatorNode, operands: _Operands) -> np.ndarray | None:
    axes = _integers(node, "axes", operands, 1)
    return np.asarray(np.squeeze(_first(operands), tuple(axes) if axes else None))


def _reshape(node: OperatorNode, operands: _Operands) -> np.ndarray | None:
    data, shape = _first(operands), _integers(node, "shape", operands, 1)
    if not _integer(node, "allowzero", 0):
        shape = [data.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return data.reshape(shape)


def _transpose(node: OperatorNode, operands: _Operands) -> np.ndarray | None:
    order = _integers(node, "perm", (), 0)
    return np.transpose(_first(operands), order or None)


_ZERO = np.zeros(1, np.float32)


def _filled(node: OperatorNode, operands: _Operands) -> np.ndarray | None:
    value = node.attributes.get("value", _ZERO)
    if not isinstance(value, np.ndarray) or value.size != 1:
        return None
    return np.full(tuple(_first(operands).tolist()), value.reshape(()), value.dtype)


def _expanded(node: OperatorNode, operands: _Operands) -> np.ndarray | None:
    data, shape = _first(operands), _integers(node, "shape", operands, 1)
    return np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(shape)))


def _where(node: OperatorNode, operands: _Operands) -> np.ndarray | None:
    condition, first, second = operands
    if condition is None or first is None or second is None or first.dtype != second.dtype:
        return None
    return np.where(condition, first, second)


def _same(node: OperatorNode, operands: _Operands) -> np.ndarray | None:
    return _first(operands)


_FOLDS: dict[str, _Fold] = {
    "Add": _elementwise(np.add),
    "And": _elementwise(np.logical_and),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Div": _elementwise(_divided),
    "Equal": _elementwise(np.equal),
    "Expand": _expanded,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Greater": _elementwise(np.greater),
    "GreaterOrEqual": _elementwise(np.greater_equal),
    "Identity": _same,
    "Less": _elementwise(np.less),
    "LessOrEqual": _elementwise(np.less_equal),
    "Mul": _elementwise(np.multiply),
    "Neg": _elementwise(np.negative),
    "Not": _elementwise(np.logical_not),
    "Or": _elementwise(np.logical_or),
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _elementwise(np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
"""Operators with one result that models are full of around their shapes."""
