"""Linear models and support vector machines of ai.onnx.ml.

Canonical form (X[N, F] of any number type; computed in float32, support vectors in float64):

    ai.onnx.ml.LinearRegressor(X) -> Y[N, targets]
    ai.onnx.ml.LinearClassifier(X) -> labels[N], scores[N, C]
        `coefficients`[targets, F], `intercepts`[targets], `post_transform`; the classifier also
        has the attributes of `learned_scores`
    ai.onnx.ml.SVMRegressor(X) -> Y[N, 1]
    ai.onnx.ml.SVMClassifier(X) -> labels[N], scores[N, C or pairs]
        `kernel` LINEAR, POLY, RBF or SIGMOID with `gamma`, `coef0`, `degree`;
        `support_vectors`[V, F]; `coefficients`[V, pairs]: the decision of each pair of classes is
        K(X, support_vectors) coefficients + `rho`[pairs]; `prob_a`, `prob_b`: Platt's sigmoid of
        each pair, empty where there are no probabilities; regressor: `one_class`

A machine without support vectors is linear: its coefficients are the vectors of one pair each.
"""

from __future__ import annotations

import itertools

import numpy as np

from aegis_pipe.execution.operators import learned_scores, reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec

_KERNELS = ("LINEAR", "POLY", "RBF", "SIGMOID")


def _matrix(
    context: OperatorContext, name: str, rows: int, columns: int, dtype: type = np.float32
) -> np.ndarray:
    values: np.ndarray = np.array(reading.numbers(context, name), dtype)
    fits = values.size == rows * columns
    reading.require(fits, context, f"{values.size} {name} are not {rows} rows of {columns}")
    return values.reshape(rows, columns)


def _infer_linear_regressor(context: OperatorContext) -> list[TensorSpec]:
    rows, _ = learned_scores.rows_and_width(context)
    targets = reading.integer(context, "targets", 1)
    return [TensorSpec(learned_scores.FLOAT32, (rows, targets))]


def _linear(context: OperatorContext, targets: int) -> dict[str, Attribute]:
    _, width = learned_scores.rows_and_width(context)
    intercepts = np.array(reading.numbers(context, "intercepts"), np.float32)
    reading.require(
        intercepts.size in (0, targets), context, f"{intercepts.size} intercepts do not fit"
    )
    return {
        "coefficients": _matrix(context, "coefficients", targets, width),
        "intercepts": intercepts if intercepts.size else np.zeros(targets, np.float32),
    }


def _lower_linear_regressor(context: OperatorContext) -> Lowered:
    attributes = _linear(context, reading.integer(context, "targets", 1))
    attributes["post_transform"] = learned_scores.transform(context)
    return Lowered(context.node.qualified_operator, attributes, (0,))


def _score_count(context: OperatorContext) -> int:
    """Return the rows of a linear classifier's coefficients: one a class, or one for two."""
    _, width = learned_scores.rows_and_width(context)
    count = len(reading.numbers(context, "coefficients"))
    reading.require(width > 0 and count >= width, context, "the coefficients do not fit X")
    return count // width


def _infer_linear_classifier(context: OperatorContext) -> list[TensorSpec]:
    rows, _ = learned_scores.rows_and_width(context)
    count, classes = _score_count(context), learned_scores.class_count(context)
    columns = 2 if count == 1 and classes == 2 else count
    scores = TensorSpec(learned_scores.FLOAT32, (rows, columns))
    return [learned_scores.label_spec(context, rows), scores]


def _lower_linear_classifier(context: OperatorContext) -> Lowered:
    count, classes = _score_count(context), learned_scores.class_count(context)
    reading.require(
        count == classes or (count, classes) == (1, 2),
        context,
        f"{count} rows of coefficients do not fit {classes} classes",
    )
    second_class = "complement" if (count, classes) == (1, 2) else ""
    attributes = {**_linear(context, count), **learned_scores.finishing(context, second_class)}
    return Lowered(context.node.qualified_operator, attributes, (0,))


def _kernel(context: OperatorContext) -> dict[str, Attribute]:
    name = reading.text(context, "kernel_type", "LINEAR")
    reading.require(name in _KERNELS, context, f"kernel_type `{name}` is unknown")
    gamma, coef0, degree = (*reading.numbers(context, "kernel_params"), 0.0, 0.0, 0.0)[:3]
    return {"kernel": name, "gamma": gamma, "coef0": coef0, "degree": degree}


def _infer_svm_regressor(context: OperatorContext) -> list[TensorSpec]:
    rows, _ = learned_scores.rows_and_width(context)
    return [TensorSpec(learned_scores.FLOAT32, (rows, 1))]


def _lower_svm_regressor(context: OperatorContext) -> Lowered:
    _, width = learned_scores.rows_and_width(context)
    vectors = reading.integer(context, "n_supports", 0)
    attributes = {**_kernel(context), "one_class": reading.integer(context, "one_class", 0)}
    if vectors:
        attributes["support_vectors"] = _matrix(
            context, "support_vectors", vectors, width, np.float64
        )
        attributes["coefficients"] = _matrix(context, "coefficients", vectors, 1, np.float64)
    else:
        attributes["kernel"] = "LINEAR"
        attributes["support_vectors"] = _matrix(context, "coefficients", 1, width, np.float64)
        attributes["coefficients"] = np.ones((1, 1))
    rho = np.array(reading.numbers(context, "rho")[:1], np.float64)
    reading.require(rho.size == 1, context, "rho is missing")
    attributes["rho"] = rho
    attributes["post_transform"] = learned_scores.transform(context)
    return Lowered(context.node.qualified_operator, attributes, (0,))


def _pair_count(classes: int) -> int:
    return classes * (classes - 1) // 2


def _infer_svm_classifier(context: OperatorContext) -> list[TensorSpec]:
    rows, _ = learned_scores.rows_and_width(context)
    columns = classes = learned_scores.class_count(context)
    votes = reading.integers(context, "vectors_per_class", ())
    if any(votes) and not reading.numbers(context, "prob_a") and classes > 2:
        columns = _pair_count(classes)
    scores = TensorSpec(learned_scores.FLOAT32, (rows, columns))
    return [learned_scores.label_spec(context, rows), scores]


def _pair_coefficients(context: OperatorContext, per_class: tuple[int, ...]) -> np.ndarray:
    """Return what each vector adds to the decision of each pair: [vectors, pairs].

    The model holds, for a vector of class i, one row a rival class, i itself left out.
    """
    classes, vectors = len(per_class), sum(per_class)
    rows = _matrix(context, "coefficients", classes - 1, vectors, np.float64)
    ends = list(itertools.accumulate(per_class))
    of_class = [slice(end - size, end) for end, size in zip(ends, per_class, strict=True)]
    result = np.zeros((vectors, _pair_count(classes)))
    for pair, (i, j) in enumerate(itertools.combinations(range(classes), 2)):
        result[of_class[i], pair] = rows[j - 1, of_class[i]]
        result[of_class[j], pair] = rows[i, of_class[j]]
    return result


def _numbers(context: OperatorContext, name: str, count: int) -> np.ndarray:
    values = np.array(reading.numbers(context, name), np.float64)
    reading.require(values.size >= count, context, f"{values.size} values of {name} do not do")
    return values[:count]


def _lower_svm_classifier(context: OperatorContext) -> Lowered:
    _, width = learned_scores.rows_and_width(context)
    classes = learned_scores.class_count(context)
    per_class = reading.integers(context, "vectors_per_class", ())
    probabilities = bool(reading.numbers(context, "prob_a"))
    attributes = _kernel(context)
    if any(per_class):
        fits = len(per_class) == classes > 1
        reading.require(fits, context, "vectors_per_class and the labels differ in length")
        pairs = _pair_count(classes)
        calibrated = pairs if probabilities else 0
        attributes |= {
            "support_vectors": _matrix(
                context, "support_vectors", sum(per_class), width, np.float64
            ),
            "coefficients": _pair_coefficients(context, per_class),
            "rho": _numbers(context, "rho", pairs),
            "prob_a": _numbers(context, "prob_a", calibrated),
            "prob_b": _numbers(context, "prob_b", calibrated),
            "by_pairs": 1,
        }
    else:
        probabilities = False
        attributes |= {
            "kernel": "LINEAR",
            "support_vectors": _matrix(context, "coefficients", classes, width, np.float64),
            "coefficients": np.eye(classes),
            "rho": np.full(classes, _numbers(context, "rho", 1)[0]),
            "prob_a": np.zeros(0),
            "prob_b": np.zeros(0),
            "by_pairs": 0,
        }
    second_class = ""
    if any(per_class) and classes == 2 and not probabilities:
        second_class = "negation" if learned_scores.transform(context) == "NONE" else "complement"
    attributes |= learned_scores.finishing(context, second_class)
    return Lowered(context.node.qualified_operator, attributes, (0,))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("ai.onnx.ml.LinearRegressor", _infer_linear_regressor, _lower_linear_regressor),
    OperatorEntry(
        "ai.onnx.ml.LinearClassifier", _infer_linear_classifier, _lower_linear_classifier
    ),
    OperatorEntry("ai.onnx.ml.SVMRegressor", _infer_svm_regressor, _lower_svm_regressor),
    OperatorEntry("ai.onnx.ml.SVMClassifier", _infer_svm_classifier, _lower_svm_classifier),
)
