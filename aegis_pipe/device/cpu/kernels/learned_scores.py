"""How the classical models of ai.onnx.ml finish their scores, a block of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from aegis_pipe.device.cpu.kernels import activations, operands
from aegis_pipe.kernel import KernelRequest

BLOCK_ELEMENTS = 8 << 10
"""Elements a block: what is computed on the way stays in cache."""

_ERFINV_A = 0.147
"""The constant of Winitzki's approximation, as all implementations of PROBIT have it."""

InPlace = Callable[[np.ndarray], None]


def rows_and_width(request: KernelRequest) -> tuple[int, int]:
    """Return the samples and the features of X; a vector is one sample."""
    shape = operands.input_spec(request, 0).shape
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])


def row_blocks(rows: int, width: int) -> Iterator[slice]:
    """Yield slices of rows, each of about BLOCK_ELEMENTS elements."""
    step = max(1, BLOCK_ELEMENTS // max(width, 1))
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def _softmax(scores: np.ndarray) -> None:
    np.subtract(scores, scores.max(axis=1, keepdims=True), out=scores)
    np.exp(scores, out=scores)
    np.divide(scores, scores.sum(axis=1, keepdims=True), out=scores)


def _softmax_zero(scores: np.ndarray) -> None:
    """Softmax of the scores that are not 0; those stay 0."""
    taking_part = np.abs(scores) > 1e-7
    np.subtract(scores, scores.max(axis=1, keepdims=True), out=scores)
    np.exp(scores, out=scores)
    np.multiply(scores, taking_part, out=scores)
    np.divide(scores, scores.sum(axis=1, keepdims=True), out=scores)


def _probit(scores: np.ndarray) -> None:
    """Quantiles of the normal distribution, by Winitzki's inverse of erf (2008)."""
    x = 2 * scores - 1
    # Scores outside of 0..1 have no quantile: NaN, as specified.
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = np.log((1 - x) * (1 + x))
        half = 2 / (math.pi * _ERFINV_A) + logarithm / 2
        root = np.sqrt(np.sqrt(half * half - logarithm / _ERFINV_A) - half)
        np.multiply(np.copysign(root, x), math.sqrt(2), out=scores)


_TRANSFORMS: dict[str, InPlace] = {
    "NONE": lambda scores: None,
    "LOGISTIC": activations.sigmoid,
    "SOFTMAX": _softmax,
    "SOFTMAX_ZERO": _softmax_zero,
    "PROBIT": _probit,
}


def accepts_finish(request: KernelRequest) -> bool:
    """Accept what is the same everywhere: quantiles of one score for two classes are not."""
    probit = operands.text(request, "post_transform") == "PROBIT"
    return not (probit and request.attributes.get("second_class"))


def transform_rows(request: KernelRequest, scores: np.ndarray) -> Callable[[], None]:
    """Return a call that applies the post-transform to `scores`[N, C], in place."""
    function = _TRANSFORMS[operands.text(request, "post_transform")]
    blocks = [scores[rows] for rows in row_blocks(*scores.shape)]

    def run() -> None:
        for block in blocks:
            function(block)

    return run


def expand_to_second_class(request: KernelRequest, scores: np.ndarray) -> Callable[[], None]:
    """Return a call that fills `scores`[N, 2] from the one score in column 1."""
    logistic = operands.text(request, "post_transform") == "LOGISTIC"
    complement = operands.text(request, "second_class") == "complement" and not logistic
    first, second = scores[:, 0], scores[:, 1]

    def run() -> None:
        if complement:
            np.subtract(1, second, out=first)
        else:
            np.negative(second, out=first)
        if logistic:
            activations.sigmoid(scores)

    return run


def choose_labels(
    scores: np.ndarray, classes: np.ndarray, labels: np.ndarray
) -> Callable[[], None]:
    """Return a call that writes the class of each row's largest score, the first of equals."""
    blocks = [(scores[rows], labels[rows]) for rows in row_blocks(*scores.shape)]

    def run() -> None:
        for block, chosen in blocks:
            np.take(classes, block.argmax(axis=1), out=chosen, mode="clip")

    return run


def choose_of_two(
    score: np.ndarray, threshold: float, classes: np.ndarray, labels: np.ndarray
) -> Callable[[], None]:
    """Return a call that writes the second class where the score is above the threshold."""

    def run() -> None:
        labels.fill(classes[0])
        for rows in row_blocks(len(labels), 1):
            np.copyto(labels[rows], classes[1], where=score[rows] > threshold)

    return run
