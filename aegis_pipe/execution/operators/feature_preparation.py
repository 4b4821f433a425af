"""Preparation of features for the classical models of ai.onnx.ml; numbers only, no strings.

Canonical form:

    ai.onnx.ml.Scaler(X)        (X - `offset`) * `scale`, float64 arrays of 1 or F -> float32
    ai.onnx.ml.Normalizer(X)    each row divided by its `norm`, MAX, L1 or L2 -> float32
    ai.onnx.ml.Binarizer(X)     1 where X > `threshold`, else 0
    ai.onnx.ml.Imputer(X)       `replaced` (a number, may be NaN) becomes `imputed`, array of 1 or F
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


def _data(context: OperatorContext) -> TensorSpec:
    spec = reading.operand(context, 0, "X")
    reading.require(len(spec.shape) > 0, context, f"{spec} has no features")
    return spec


def _infer_float(context: OperatorContext) -> list[TensorSpec]:
    return [TensorSpec(learned_scores.FLOAT32, _data(context).shape)]


def _infer_same(context: OperatorContext) -> list[TensorSpec]:
    return [_data(context)]


def _per_feature(context: OperatorContext, name: str, values: np.ndarray) -> np.ndarray:
    width = _data(context).shape[-1]
    fits = values.size in (1, width)
    reading.require(fits, context, f"{values.size} values of {name} do not fit {width} features")
    return values


def _lower_scaler(context: OperatorContext) -> Lowered:
    attributes: dict[str, Attribute] = {}
    for name, neutral in (("offset", 0.0), ("scale", 1.0)):
        values = np.array(reading.numbers(context, name) or (neutral,), np.float64)
        attributes[name] = _per_feature(context, name, values)
    return Lowered(context.node.qualified_operator, attributes, (0,))


def _lower_normalizer(context: OperatorContext) -> Lowered:
    norm = reading.text(context, "norm", "MAX")
    reading.require(norm in ("MAX", "L1", "L2"), context, f"norm `{norm}` is unknown")
    return Lowered(context.node.qualified_operator, {"norm": norm}, (0,))


def _lower_binarizer(context: OperatorContext) -> Lowered:
    attributes = {"threshold": reading.number(context, "threshold", 0.0)}
    return Lowered(context.node.qualified_operator, attributes, (0,))


def _lower_imputer(context: OperatorContext) -> Lowered:
    dtype = _data(context).dtype
    if dtype.kind == "f":
        replaced = reading.number(context, "replaced_value_float", 0.0)
        imputed = np.array(reading.numbers(context, "imputed_value_floats"), dtype)
    else:
        replaced = reading.integer(context, "replaced_value_int64", 0)
        imputed = np.array(reading.integers(context, "imputed_value_int64s", ()), dtype)
    attributes: dict[str, Attribute] = {
        "replaced": replaced,
        "imputed": _per_feature(context, "imputed", imputed),
    }
    return Lowered(context.node.qualified_operator, attributes, (0,))


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
    OperatorEntry("ai.onnx.ml.Scaler", _infer_float, _lower_scaler),
    OperatorEntry("ai.onnx.ml.Normalizer", _infer_float, _lower_normalizer),
    OperatorEntry("ai.onnx.ml.Binarizer", _infer_same, _lower_binarizer),
    OperatorEntry("ai.onnx.ml.Imputer", _infer_same, _lower_imputer),
    OperatorEntry("ai.onnx.ml.FeatureVectorizer", _infer_vectorizer, _lower_vectorizer),
    OperatorEntry("ai.onnx.ml.OneHotEncoder", _infer_one_hot, _lower_one_hot),
    OperatorEntry("ai.onnx.ml.LabelEncoder", _infer_labels, _lower_labels),
)
