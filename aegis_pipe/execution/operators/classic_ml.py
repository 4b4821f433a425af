"""Simple operators of ai.onnx.ml that prepare features.

Canonical form, over X[N, C] or X[C]; the outputs of Scaler and Normalizer are float32:

    ai.onnx.ml.Scaler(X)      `offset`, `scale`: float32[C] or [1]; (X - offset) * scale
    ai.onnx.ml.Normalizer(X)  `norm`: "MAX", "L1" or "L2" of each row
    ai.onnx.ml.Binarizer(X)   `threshold`: 1 above it, else 0
    ai.onnx.ml.Imputer(X)     `replaced`: the value that stands for a missing one (NaN, too),
                              `imputed`: array [C] or [1] of X's dtype, to put in its place
"""

from __future__ import annotations

import numpy as np

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.element_types import FLOAT32
from aegis_pipe.execution.operators.elementwise import same_as_first
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.tensor import TensorSpec


def _infer_float(context: OperatorContext) -> list[TensorSpec]:
    return [TensorSpec(FLOAT32, reading.operand(context, 0, "X").shape)]


def _per_feature(context: OperatorContext, name: str, dtype: np.dtype) -> np.ndarray:
    data = reading.operand(context, 0, "X")
    values = np.array(reading.numbers(context, name), dtype)
    reading.require(
        len(data.shape) > 0 and values.size in (1, data.shape[-1]),
        context,
        f"attribute `{name}` has {values.size} values for {data}",
    )
    return values


def _lower_scaler(context: OperatorContext) -> Lowered:
    names = ("offset", "scale")
    attributes = {name: _per_feature(context, name, FLOAT32) for name in names}
    return Lowered("ai.onnx.ml.Scaler", attributes, (0,))


def _lower_normalizer(context: OperatorContext) -> Lowered:
    norm = reading.text(context, "norm", "MAX")
    reading.require(norm in ("MAX", "L1", "L2"), context, f"norm `{norm}` is unknown")
    return Lowered("ai.onnx.ml.Normalizer", {"norm": norm}, (0,))


def _lower_binarizer(context: OperatorContext) -> Lowered:
    threshold = reading.number(context, "threshold", 0.0)
    return Lowered("ai.onnx.ml.Binarizer", {"threshold": threshold}, (0,))


def _lower_imputer(context: OperatorContext) -> Lowered:
    dtype = reading.operand(context, 0, "X").dtype
    if np.issubdtype(dtype, np.integer):
        values = reading.integers(context, "imputed_value_int64s", ())
        replaced: float = reading.integer(context, "replaced_value_int64", 0)
        imputed = np.array(values, dtype)
    else:
        replaced = reading.number(context, "replaced_value_float", 0.0)
        imputed = _per_feature(context, "imputed_value_floats", dtype)
    return Lowered("ai.onnx.ml.Imputer", {"replaced": replaced, "imputed": imputed}, (0,))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("ai.onnx.ml.Scaler", _infer_float, _lower_scaler),
    OperatorEntry("ai.onnx.ml.Normalizer", _infer_float, _lower_normalizer),
    OperatorEntry("ai.onnx.ml.Binarizer", same_as_first, _lower_binarizer),
    OperatorEntry("ai.onnx.ml.Imputer", same_as_first, _lower_imputer),
)
