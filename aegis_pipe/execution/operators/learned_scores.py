"""What the classical models of ai.onnx.ml share: class labels, and how scores are finished.

Canonical attributes of every classifier: `classes`, int64 array of the labels; `post_transform`,
applied to each row of scores; `second_class`, how one score s becomes those of two classes:

    ""            not at all
    "complement"  1 - s, s
    "negation"    -s, s

With "LOGISTIC" both are sigmoid(-s), sigmoid(s). The specification leaves this open; the rule is
that of the runtimes that converters are tested with.
"""

from __future__ import annotations

import numpy as np

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import OperatorContext
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec

FLOAT32 = np.dtype(np.float32)
INT64 = np.dtype(np.int64)
STRING = np.dtype(object)

TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


def rows_and_width(context: OperatorContext) -> tuple[int, int]:
    """Return the samples and the features of X[N, F]; a vector is one sample."""
    data = reading.operand(context, 0, "X")
    reading.require(len(data.shape) in (1, 2), context, f"{data} is not [samples, features]")
    return (1, data.shape[0]) if len(data.shape) == 1 else (data.shape[0], data.shape[1])


def class_count(context: OperatorContext) -> int:
    """Return how many labels a classifier lists."""
    attributes = context.node.attributes
    labels = attributes.get("classlabels_strings") or class_labels(context).tolist()
    reading.require(isinstance(labels, tuple | list), context, "class labels have to be a list")
    assert isinstance(labels, tuple | list)
    return len(labels)


def has_text_labels(context: OperatorContext) -> bool:
    """Return whether the labels are strings, which no kernel handles."""
    return bool(context.node.attributes.get("classlabels_strings"))


def class_labels(context: OperatorContext) -> np.ndarray:
    """Return the integer labels; empty if the labels are strings."""
    name = "classlabels_int64s" if "Tree" in context.node.operator else "classlabels_ints"
    return np.array(reading.integers(context, name, ()), np.int64)


def label_spec(context: OperatorContext, rows: int) -> TensorSpec:
    """Return the spec of the labels that a classifier writes."""
    return TensorSpec(STRING if has_text_labels(context) else INT64, (rows,))


def transform(context: OperatorContext) -> str:
    """Return the post-transform."""
    name = reading.text(context, "post_transform", "NONE")
    reading.require(name in TRANSFORMS, context, f"post_transform `{name}` is unknown")
    return name


def finishing(context: OperatorContext, second_class: str) -> dict[str, Attribute]:
    """Return the canonical attributes; transforms of rows do not apply to one score."""
    name = transform(context)
    if second_class and name in ("SOFTMAX", "SOFTMAX_ZERO"):
        name = "NONE"
    return {
        "classes": class_labels(context),
        "post_transform": name,
        "second_class": second_class,
    }


def float_array(context: OperatorContext, name: str) -> np.ndarray:
    """Return a list of floats: float32, or what the attribute `<name>_as_tensor` holds."""
    tensor = context.node.attributes.get(f"{name}_as_tensor")
    if isinstance(tensor, np.ndarray):
        return tensor.reshape(-1)
    return np.array(reading.numbers(context, name), np.float32)
