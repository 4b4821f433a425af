"""Preparation of features for the classical models of ai.onnx.ml; numbers only, no strings.

Canonical form:

    ai.onnx.ml.FeatureVectorizer(X...)              columns side by side -> float32
    ai.onnx.ml.OneHotEncoder(X)     `categories` int64[n] along a new last axis -> float32;
                                    `zeros` 0 makes a category not listed an error
    ai.onnx.ml.LabelEncoder(X)      `keys` (ascending, NaN last) and `values` of equal length,
                                    `default`, an array of one element
"""

from __future__ import annotations

import numpy as np

from aegis_pipe.execution.operators import learned_scores, reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec


def _infer_vectorizer(context: OperatorContext) -> list[TensorSpec]:
    rows, width = learned_scores.rows_and_width(context)
    for position in range(1, len(context.inputs)):
        shape = reading.operand(context, position, "X").shape
        shape = (1, *shape) if len(shape) == 1 else shape
        fits = len(shape) == 2 and shape[0] == rows
        reading.require(fits, context, f"input {position} does not have {rows} rows")
        width += shape[1]
    declared = reading.integers(context, "inputdimensions", ())
    reading.require(sum(declared) in (0, width), context, f"inputdimensions are not {width}")
    return [TensorSpec(learned_scores.FLOAT32, (rows, width))]


def _lower_vectorizer(context: OperatorContext) -> Lowered:
    return Lowered(context.node.qualified_operator, {}, tuple(range(len(context.inputs))))


def _infer_one_hot(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "X")
    listed = context.node.attributes.get("cats_strings") or context.node.attributes.get(
        "cats_int64s"
    )
    reading.require(isinstance(listed, tuple), context, "there are no categories")
    assert isinstance(listed, tuple)
    return [TensorSpec(learned_scores.FLOAT32, (*data.shape, len(listed)))]


def _lower_one_hot(context: OperatorContext) -> Lowered:
    attributes: dict[str, Attribute] = {
        "categories": np.array(reading.integers(context, "cats_int64s", ()), np.int64),
        "zeros": reading.integer(context, "zeros", 1),
    }
    return Lowered(context.node.qualified_operator, attributes, (0,))


_LABEL_KINDS = (("int64s", np.int64), ("floats", np.float32))


def _labels(context: OperatorContext, name: str) -> np.ndarray | None:
    """Return keys or values, or None if they are strings."""
    attributes = context.node.attributes
    tensor = attributes.get(f"{name}_tensor")
    if isinstance(tensor, np.ndarray):
        return None if tensor.dtype == learned_scores.STRING else tensor.reshape(-1)
    for kind, dtype in _LABEL_KINDS:
        if attributes.get(f"{name}_{kind}"):
            return np.array(attributes[f"{name}_{kind}"], dtype)
    return None


def _default(context: OperatorContext, dtype: np.dtype) -> np.ndarray:
    tensor = context.node.attributes.get("default_tensor")
    if isinstance(tensor, np.ndarray):
        return tensor.reshape(1).astype(dtype)
    if dtype.kind == "f":
        return np.array([reading.number(context, "default_float", -0.0)], dtype)
    return np.array([reading.integer(context, "default_int64", -1)], dtype)


def _infer_labels(context: OperatorContext) -> list[TensorSpec]:
    values = _labels(context, "values")
    dtype = learned_scores.STRING if values is None else values.dtype
    return [TensorSpec(dtype, reading.operand(context, 0, "X").shape)]


def _lower_labels(context: OperatorContext) -> Lowered:
    keys, values = _labels(context, "keys"), _labels(context, "values")
    if keys is None or values is None:
        return Lowered(context.node.qualified_operator, {}, (0,))
    reading.require(len(keys) == len(values), context, "keys and values differ in length")
    # The first of equal keys counts; NaN equals NaN.
    keys, first = np.unique(keys, return_index=True)
    attributes: dict[str, Attribute] = {
        "keys": keys,
        "values": values[first],
        "default": _default(context, values.dtype),
    }
    return Lowered(context.node.qualified_operator, attributes, (0,))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("ai.onnx.ml.FeatureVectorizer", _infer_vectorizer, _lower_vectorizer),
    OperatorEntry("ai.onnx.ml.OneHotEncoder", _infer_one_hot, _lower_one_hot),
    OperatorEntry("ai.onnx.ml.LabelEncoder", _infer_labels, _lower_labels),
)
