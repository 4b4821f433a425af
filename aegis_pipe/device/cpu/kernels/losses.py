"""Losses of classifiers: one look-up of each label in the logarithms of probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.errors import KernelError
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_INDEX = np.dtype(np.intp)
_BOOL = np.dtype(np.bool_)


def _accepts(request: KernelRequest) -> bool:
    floats = {spec.dtype for i, spec in enumerate(request.inputs) if spec and i != 1}
    return len(floats) == 1 and floats <= {np.dtype(np.float32), np.dtype(np.float64)}


def _sizes(request: KernelRequest) -> tuple[int, int, int]:
    """Return (N, C, positions)."""
    shape = operands.input_spec(request, 0).shape
    return shape[0], shape[1], math.prod(shape[2:])


def _is_softmax(request: KernelRequest) -> bool:
    return request.operator.startswith("Softmax")


def _scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    dtype = operands.input_spec(request, 0).dtype
    batch, classes, positions = _sizes(request)
    softmax = _is_softmax(request)
    log_prob = (batch if softmax else 0, classes, positions)
    return (
        TensorSpec(dtype, log_prob),
        TensorSpec(dtype, (0 if operands.has_output(request, 1) else log_prob[0], *log_prob[1:])),
        TensorSpec(dtype, (log_prob[0], 1, positions)),
        TensorSpec(_INDEX, (batch, positions)),
        TensorSpec(_INDEX, (batch, positions)),
        TensorSpec(dtype, (batch, positions)),
        TensorSpec(dtype, (batch, positions)),
        TensorSpec(_BOOL, (batch, positions)),
    )


def _log_softmax(
    scores: np.ndarray, powers: np.ndarray, statistic: np.ndarray, out: np.ndarray
) -> None:
    np.maximum.reduce(scores, axis=1, keepdims=True, out=statistic)
    np.subtract(scores, statistic, out=out)
    np.exp(out, out=powers)
    np.add.reduce(powers, axis=1, keepdims=True, out=statistic)
    np.log(statistic, out=statistic)
    np.subtract(out, statistic, out=out)


def _bind(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    batch, classes, positions = _sizes(request)
    scores = operands.required(inputs, 0).reshape(batch, classes, positions)
    labels = operands.required(inputs, 1).reshape(batch, positions)
    class_weights = operands.optional(inputs, 2)
    powers, spare, statistic, index, chosen, loss, weight, is_ignored = scratch
    softmax = _is_softmax(request)
    wanted = operands.optional(outputs, 1)
    log_prob = spare if wanted is None else wanted.reshape(scores.shape)
    source = (log_prob if softmax else scores).reshape(-1)
    offsets = np.arange(batch)[:, None] * (classes * positions) + np.arange(positions)
    result = operands.optional(outputs, 0)
    reduction = operands.text(request, "reduction")
    ignored = operands.integer(request, "ignore_index")
    ignores = bool(operands.integer(request, "ignores"))

    def weigh() -> None:
        if class_weights is None:
            weight.fill(1)
        else:
            np.take(class_weights, chosen, out=weight, mode="clip")
        if ignores:
            np.equal(labels, ignored, out=is_ignored)
            np.copyto(weight, 0, where=is_ignored)

    def run() -> None:
        if softmax:
            _log_softmax(scores, powers, statistic, log_prob)
        if result is None:
            return
        np.copyto(chosen, labels)
        if ignores:
            np.equal(labels, ignored, out=is_ignored)
            np.copyto(chosen, 0, where=is_ignored)
        _check_labels(request, chosen, classes)
        np.multiply(chosen, positions, out=index)
        np.add(index, offsets, out=index)
        np.take(source, index, out=loss, mode="clip")
        weigh()
        np.negative(loss, out=loss)
        np.multiply(loss, weight, out=loss)
        if reduction == "none":
            np.copyto(result.reshape(loss.shape), loss)
            return
        np.add.reduce(loss, axis=None, out=result)
        if reduction == "mean":
            np.divide(result, weight.sum(), out=result)

    return run


def _check_labels(request: KernelRequest, labels: np.ndarray, classes: int) -> None:
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise KernelError(
            f"labels reach from {labels.min()} to {labels.max()}, but there are {classes} classes",
            context=f"node `{request.node}` ({request.operator})",
            hint="give labels of the classes that the model knows",
        )


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "classification_loss",
        ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"),
        _bind,
        accepts=_accepts,
        scratch=_scratch,
    ),
)
