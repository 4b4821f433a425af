"""Linear models and support vector machines.

The kernel matrix of a support vector machine is computed in float64: differences of squares, as
the fast form of RBF has them, would lose too much in float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import learned_scores, operands
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)
_INT64 = np.dtype(np.int64)
_COUPLING_STEPS_MAX = 100
_PROBABILITY_MIN = 1e-7


def _is_classifier(request: KernelRequest) -> bool:
    return request.operator.endswith("Classifier")


def _accepts(request: KernelRequest) -> bool:
    if not _is_classifier(request):
        return operands.input_spec(request, 0).dtype.kind in "fiu"
    return (
        operands.input_spec(request, 0).dtype.kind in "fiu"
        and len(operands.array(request, "classes")) > 0
        and learned_scores.accepts_finish(request)
    )


def _result_specs(request: KernelRequest, columns: int) -> list[TensorSpec]:
    """Return stand-ins for labels and scores, of no size where the result is wanted."""
    rows, _ = learned_scores.rows_and_width(request)
    wanted = [operands.has_output(request, position) for position in range(2)]
    return [
        TensorSpec(_INT64, (0 if wanted[0] else rows,)),
        TensorSpec(_FLOAT32, (0 if wanted[1] else rows, columns)),
    ]


def _results(
    outputs: Sequence[np.ndarray | None], stand_ins: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = operands.optional(outputs, 0), operands.optional(outputs, 1)
    return (
        stand_ins[0] if labels is None else labels,
        stand_ins[1] if scores is None else scores,
    )


def _linear_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    data = operands.input_spec(request, 0)
    rows, width = learned_scores.rows_and_width(request)
    targets = len(operands.array(request, "intercepts"))
    columns = max(targets, 2 if request.attributes.get("second_class") else 1)
    return (
        TensorSpec(_FLOAT32, (0 if data.dtype == _FLOAT32 else rows, width)),
        TensorSpec(_FLOAT32, (rows if targets == 1 else 0, 1)),
        *(_result_specs(request, columns) if _is_classifier(request) else ()),
    )


def _product(
    request: KernelRequest, data: np.ndarray, wide: np.ndarray, scores: np.ndarray
) -> Callable[[], None]:
    """Return a call that writes X coefficients^T + intercepts to scores[N, targets]."""
    data = data.reshape(learned_scores.rows_and_width(request))
    converts = data.dtype != _FLOAT32
    factor = wide if converts else data
    coefficients, intercepts = (
        operands.array(request, "coefficients").T,
        operands.array(request, "intercepts"),
    )

    def run() -> None:
        if converts:
            np.copyto(wide, data, casting="unsafe")
        np.matmul(factor, coefficients, out=scores)
        np.add(scores, intercepts, out=scores)

    return run


def _bind_linear_regressor(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    result = operands.required(outputs)
    product = _product(request, operands.required(inputs), scratch[0], result)
    transform = learned_scores.transform_rows(request, result)

    def run() -> None:
        product()
        transform()

    return run


def _bind_linear_classifier(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    labels, scores = _results(outputs, scratch[2:])
    classes = operands.array(request, "classes")
    has_one_score = bool(operands.text(request, "second_class"))
    raw = scratch[1] if has_one_score else scores
    product = _product(request, operands.required(inputs), scratch[0], raw)
    if has_one_score:
        choose = learned_scores.choose_of_two(raw[:, 0], 0.0, classes, labels)
        finish = learned_scores.expand_to_second_class(request, scores)
    else:
        choose = learned_scores.choose_labels(scores, classes, labels)
        finish = learned_scores.transform_rows(request, scores)

    def run() -> None:
        product()
        choose()
        if has_one_score:
            np.copyto(scores[:, 1:], raw)
        finish()

    return run


def _svm_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    rows, width = learned_scores.rows_and_width(request)
    vectors, decisions = operands.array(request, "coefficients").shape
    is_rbf = operands.text(request, "kernel") == "RBF"
    classes = len(operands.array(request, "classes")) if _is_classifier(request) else 0
    columns = operands.output_spec(request, 1).shape[1] if _wants_scores(request) else classes
    return (
        TensorSpec(_FLOAT64, (rows, width)),
        TensorSpec(_FLOAT64, (rows, vectors)),
        TensorSpec(_FLOAT64, (rows, decisions)),
        TensorSpec(_FLOAT64, (rows if is_rbf else 0, 1)),
        TensorSpec(_FLOAT64, (rows, classes)),
        *(_result_specs(request, columns) if classes else ()),
    )


def _wants_scores(request: KernelRequest) -> bool:
    return _is_classifier(request) and operands.has_output(request, 1)


def _decide(
    request: KernelRequest, data: np.ndarray, scratch: Sequence[np.ndarray]
) -> Callable[[], None]:
    """Return a call that writes K(X, vectors) coefficients + rho to the third scratch array."""
    data = data.reshape(learned_scores.rows_and_width(request))
    wide, similarity, decisions, squares = scratch[:4]
    vectors, coefficients = (
        operands.array(request, "support_vectors"),
        operands.array(request, "coefficients"),
    )
    vector_squares = np.add.reduce(vectors * vectors, axis=1)
    kernel, rho = operands.text(request, "kernel"), operands.array(request, "rho")
    gamma, coef0, degree = (operands.number(request, n) for n in ("gamma", "coef0", "degree"))

    def run() -> None:
        np.copyto(wide, data, casting="unsafe")
        np.matmul(wide, vectors.T, out=similarity)
        if kernel == "RBF":
            # |x - v|^2 = |x|^2 - 2 x v + |v|^2, which rounding may push below 0.
            np.multiply(wide, wide, out=wide)
            np.add.reduce(wide, axis=1, keepdims=True, out=squares)
            np.multiply(similarity, -2, out=similarity)
            np.add(similarity, squares, out=similarity)
            np.add(similarity, vector_squares, out=similarity)
            np.maximum(similarity, 0, out=similarity)
            np.multiply(similarity, -gamma, out=similarity)
            np.exp(similarity, out=similarity)
        elif kernel != "LINEAR":
            np.multiply(similarity, gamma, out=similarity)
            np.add(similarity, coef0, out=similarity)
            if kernel == "POLY":
                np.power(similarity, degree, out=similarity)
            else:
                np.tanh(similarity, out=similarity)
        np.matmul(similarity, coefficients, out=decisions)
        np.add(decisions, rho, out=decisions)

    return run


def _bind_svm_regressor(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    result = operands.required(outputs)
    decide = _decide(request, operands.required(inputs), scratch)
    decisions = scratch[2]
    transform = learned_scores.transform_rows(request, result)
    one_class = bool(operands.integer(request, "one_class"))

    def run() -> None:
        decide()
        if one_class:
            # 1 above 0, else -1: 0 counts as outside.
            np.greater(decisions, 0, out=result)
            np.multiply(result, 2, out=result)
            np.subtract(result, 1, out=result)
        else:
            np.copyto(result, decisions, casting="unsafe")
        transform()

    return run


def _vote(decisions: np.ndarray, votes: np.ndarray) -> Callable[[], None]:
    """Return a call that counts for each class the pairs that it wins."""
    pairs = list(enumerate(itertools.combinations(range(votes.shape[1]), 2)))
    blocks = [(decisions[rows], votes[rows]) for rows in learned_scores.row_blocks(*votes.shape)]

    def run() -> None:
        votes.fill(0)
        for decision, vote in blocks:
            for pair, (i, j) in pairs:
                wins = decision[:, pair] > 0
                np.add(vote[:, i], wins, out=vote[:, i])
                np.subtract(vote[:, j], wins, out=vote[:, j])
                np.add(vote[:, j], 1, out=vote[:, j])

    return run


def coupled_probabilities(pairwise: np.ndarray) -> np.ndarray:
    """Return class probabilities [rows, classes] from pairwise ones [rows, classes, classes].

    The second method of Wu, Lin and Weng, "Probability estimates for multi-class classification
    by pairwise coupling" (2004), with the stopping rule of LIBSVM, for all rows at once.
    """
    rows, classes, _ = pairwise.shape
    opposite = pairwise.swapaxes(1, 2)
    quadratic = -opposite * pairwise
    diagonal = range(classes)
    quadratic[:, diagonal, diagonal] = (opposite**2).sum(axis=2) - (
        opposite[:, diagonal, diagonal] ** 2
    )
    p = np.full((rows, classes), 1 / classes)
    for _ in range(_COUPLING_STEPS_MAX):
        gradient = np.einsum("rij,rj->ri", quadratic, p)
        value = (p * gradient).sum(axis=1)
        active = np.abs(gradient - value[:, None]).max(axis=1) >= 0.005 / classes
        if not active.any():
            break
        for t in diagonal:
            step = np.where(active, (value - gradient[:, t]) / quadratic[:, t, t], 0.0)
            grown = 1 + step
            value = (value + step * (step * quadratic[:, t, t] + 2 * gradient[:, t])) / grown**2
            gradient = (gradient + step[:, None] * quadratic[:, t]) / grown[:, None]
            p[:, t] += step
            p /= grown[:, None]
    return p


def _calibrate(
    request: KernelRequest, decisions: np.ndarray, scores: np.ndarray
) -> Callable[[], None]:
    """Return a call that writes the probabilities of all classes, by Platt's sigmoid."""
    prob_a, prob_b = operands.array(request, "prob_a"), operands.array(request, "prob_b")
    classes = scores.shape[1]
    first, second = np.triu_indices(classes, 1)
    width = classes * classes

    def run() -> None:
        for rows in learned_scores.row_blocks(len(scores), width):
            logits = decisions[rows] * prob_a + prob_b
            chance = np.clip((1 - np.tanh(logits / 2)) / 2, _PROBABILITY_MIN, 1 - _PROBABILITY_MIN)
            pairwise = np.zeros((len(chance), classes, classes))
            pairwise[:, first, second] = chance
            pairwise[:, second, first] = 1 - chance
            np.copyto(scores[rows], coupled_probabilities(pairwise), casting="unsafe")

    return run


def _bind_svm_classifier(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    labels, scores = _results(outputs, scratch[5:])
    decisions, votes = scratch[2], scratch[4]
    decide = _decide(request, operands.required(inputs), scratch)
    by_pairs = bool(operands.integer(request, "by_pairs"))
    vote = _vote(decisions, votes)
    ranking = votes if by_pairs else decisions
    choose = learned_scores.choose_labels(ranking, operands.array(request, "classes"), labels)
    is_calibrated = len(operands.array(request, "prob_a")) > 0
    calibrate = _calibrate(request, decisions, scores)
    second_class = bool(operands.text(request, "second_class"))
    target = scores[:, 1:] if second_class else scores
    finish = (
        learned_scores.expand_to_second_class if second_class else learned_scores.transform_rows
    )(request, scores)

    def run() -> None:
        decide()
        if by_pairs:
            vote()
        choose()
        if is_calibrated:
            calibrate()
        else:
            np.copyto(target, decisions, casting="unsafe")
        finish()

    return run


def _accepts_svm_classifier(request: KernelRequest) -> bool:
    """Accept all but a linear machine of two classes, whose labels runtimes disagree about."""
    pairs = bool(operands.integer(request, "by_pairs"))
    return _accepts(request) and (pairs or len(operands.array(request, "classes")) > 2)


def _cost(request: KernelRequest) -> float:
    rows, width = learned_scores.rows_and_width(request)
    return float(rows * width * operands.array(request, "coefficients").shape[0])


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "linear_regressor",
        ("ai.onnx.ml.LinearRegressor",),
        _bind_linear_regressor,
        accepts=_accepts,
        scratch=_linear_scratch,
        cost=_cost,
    ),
    planned_kernel(
        "linear_classifier",
        ("ai.onnx.ml.LinearClassifier",),
        _bind_linear_classifier,
        accepts=_accepts,
        scratch=_linear_scratch,
        cost=_cost,
    ),
    planned_kernel(
        "svm_regressor",
        ("ai.onnx.ml.SVMRegressor",),
        _bind_svm_regressor,
        accepts=_accepts,
        scratch=_svm_scratch,
        cost=_cost,
    ),
    planned_kernel(
        "svm_classifier",
        ("ai.onnx.ml.SVMClassifier",),
        _bind_svm_classifier,
        accepts=_accepts_svm_classifier,
        scratch=_svm_scratch,
        cost=_cost,
    ),
)
