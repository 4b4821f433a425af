"""Operators that are dissolved into simpler ones while loading.

Like the rules of `flattening`: each deals with one operator in a `Frame`, and returns False where
the operator is to be treated as any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from aegis_pipe.errors import InvalidModelError
from aegis_pipe.execution.graph import OperatorNode
from aegis_pipe.execution.onnx_types import DTYPE_OF_ELEMENT_TYPE, ELEMENT_TYPE_OF_DTYPE
from aegis_pipe.execution.partial_evaluation import Frame, Rule, Scope
from aegis_pipe.execution.source_model import SourceNode, describe
from aegis_pipe.tensor import TensorId

_NUMPY_BROADCASTING_OPSET = 7
_HALF_FLOATS = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
_FLOAT32 = np.dtype(np.float32)


def _flex_attention(frame: Frame, node: SourceNode, scope: Scope, path: str) -> bool:
    """Two products with a softmax between, and the model's own functions around that.

    Query heads that share a key head become rows of one matrix, so that keys are not repeated.
    """
    query, key, value = (frame.tensor(scope, name, node) for name in node.inputs)
    shapes = [frame.specs[tensor].shape for tensor in (query, key, value)]
    if any(len(shape) != 4 for shape in shapes) or shapes[0][1] % max(shapes[1][1], 1):
        raise InvalidModelError(
            f"queries {shapes[0]} do not fit keys {shapes[1]} and values {shapes[2]}",
            context=describe(node),
        )
    part = _Part(frame, f"{path}{node.name or node.operator}/")
    (batch, heads, length, size), (_, shared, total, _), _ = shapes
    dtype = frame.specs[query].dtype
    given = node.attributes.get("scale")
    scale = given if isinstance(given, float) else 1 / math.sqrt(size)
    root = part.constant(np.array(math.sqrt(scale), dtype))
    rows = part.reshape(
        part.emit("Mul", query, root), (batch, shared, heads // shared * length, size)
    )
    columns = part.emit("Transpose", part.emit("Mul", key, root), perm=(0, 1, 3, 2))
    scores = part.reshape(part.emit("MatMul", rows, columns), (batch, heads, length, total))
    precision = _softmax_precision(node, dtype)
    scores = part.cast(scores, precision)
    scores = part.modified(node, "score_mod", scores, scope)
    weights = part.modified(node, "prob_mod", part.emit("Softmax", scores, axis=3), scope)
    by_key = part.reshape(weights, (batch, shared, heads // shared * length, total))
    mixed = part.emit("MatMul", by_key, part.cast(value, precision))
    result = part.reshape(part.cast(mixed, dtype), (batch, heads, length, shapes[2][3]))
    output = frame.new_tensor(path, node.outputs[0])
    scope[node.outputs[0]] = frame.emit("Identity", [result], output)
    return True


def _softmax_precision(node: SourceNode, dtype: np.dtype) -> np.dtype:
    number = node.attributes.get("softmax_precision")
    if isinstance(number, int) and number in DTYPE_OF_ELEMENT_TYPE:
        return DTYPE_OF_ELEMENT_TYPE[number]
    return _FLOAT32 if dtype in _HALF_FLOATS else dtype


class _Part:
    """Adds operators under one path of names."""

    def __init__(self, frame: Frame, path: str) -> None:
        self._frame, self._path = frame, path

    def constant(self, value: np.ndarray) -> TensorId:
        return self._frame.add_constant(value, self._path, "constant")

    def emit(self, operator: str, *inputs: TensorId, **attributes: int | Sequence[int]) -> TensorId:
        result = self._frame.new_tensor(self._path, operator)
        named = {k: v if isinstance(v, int) else tuple(v) for k, v in attributes.items()}
        return self._frame.emit(operator, inputs, result, named)

    def reshape(self, tensor: TensorId, shape: Sequence[int]) -> TensorId:
        if self._frame.specs[tensor].shape == tuple(shape):
            return tensor
        return self.emit("Reshape", tensor, self.constant(np.array(shape, np.int64)))

    def cast(self, tensor: TensorId, dtype: np.dtype) -> TensorId:
        if self._frame.specs[tensor].dtype == dtype:
            return tensor
        return self.emit("Cast", tensor, to=ELEMENT_TYPE_OF_DTYPE[dtype])

    def modified(
        self, node: SourceNode, attribute: str, tensor: TensorId, scope: Scope
    ) -> TensorId:
        """Run one of the node's functions on a tensor, if it has that function."""
        if attribute not in node.attributes:
            return tensor
        body, inner = node.body(attribute), scope.new_child()
        if (len(body.inputs), len(body.outputs)) != (1, 1):
            raise InvalidModelError(
                f"`{attribute}` does not take one tensor and return one", context=describe(node)
            )
        inner[body.inputs[0].name] = tensor
        (result,) = self._frame.run(body, inner, f"{self._path}{attribute}/")
        if not isinstance(result, str):
            raise InvalidModelError(f"`{attribute}` returns no tensor", context=describe(node))
        return result


def _axis_of_second(frame: Frame, node: SourceNode, scope: Scope, path: str) -> bool:
    """Before opset 7, `axis` says where the second operand's dimensions lie in the first's."""
    if frame.session.opsets[""] >= _NUMPY_BROADCASTING_OPSET or len(node.inputs) != 2:
        return False
    first, second = (frame.tensor(scope, name, node) for name in node.inputs)
    shape, rank = frame.specs[second].shape, len(frame.specs[first].shape)
    axis = node.attributes.get("axis")
    if node.operator == "PRelu":
        axis = 1 if len(shape) == 1 else None
    if not isinstance(axis, int) or (missing := rank - axis % rank - len(shape)) <= 0:
        return False
    part = _Part(frame, f"{path}{node.name or node.operator}/")
    aligned = part.reshape(second, (*shape, *[1] * missing))
    output = frame.new_tensor(path, node.outputs[0])
    operator: OperatorNode = frame.operator_node(node, [first, aligned], [output], path)
    frame.apply(operator)
    scope[node.outputs[0]] = output
    return True


DECOMPOSITIONS: dict[str, Rule] = {
    "ai.onnx.preview.FlexAttention": _flex_attention,
    **dict.fromkeys(
        (
            "Add",
            "And",
            "Div",
            "Equal",
            "Greater",
            "Less",
            "Mul",
            "Or",
            "PRelu",
            "Pow",
            "Sub",
            "Xor",
        ),
        _axis_of_second,
    ),
}
