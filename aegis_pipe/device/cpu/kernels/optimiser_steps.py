"""Adagrad (Duchi, Hazan, Singer 2011), Adam (Kingma, Ba 2015) and momentum, one step each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelRequest

_Step = Callable[[KernelRequest, float, int, Sequence[np.ndarray]], Sequence[np.ndarray]]
"""(request, learning rate, steps done, tensors of one parameter) -> its new tensors."""


def _regularised(request: KernelRequest, x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    return gradient + operands.number(request, "norm_coefficient") * x


def _adagrad(
    request: KernelRequest, rate: float, done: int, tensors: Sequence[np.ndarray]
) -> Sequence[np.ndarray]:
    x, gradient, squares = tensors
    gradient = _regularised(request, x, gradient)
    rate = rate / (1 + done * operands.number(request, "decay_factor"))
    squares = squares + gradient * gradient
    return x - rate * gradient / (np.sqrt(squares) + operands.number(request, "epsilon")), squares


def _adam(
    request: KernelRequest, rate: float, done: int, tensors: Sequence[np.ndarray]
) -> Sequence[np.ndarray]:
    x, gradient, mean, squares = tensors
    alpha, beta = operands.number(request, "alpha"), operands.number(request, "beta")
    gradient = _regularised(request, x, gradient)
    mean = alpha * mean + (1 - alpha) * gradient
    squares = beta * squares + (1 - beta) * gradient * gradient
    if done > 0:
        rate *= math.sqrt(1 - beta**done) / (1 - alpha**done)
    x = x - rate * mean / (np.sqrt(squares) + operands.number(request, "epsilon"))
    return (1 - operands.number(request, "norm_coefficient_post")) * x, mean, squares


def _momentum(
    request: KernelRequest, rate: float, done: int, tensors: Sequence[np.ndarray]
) -> Sequence[np.ndarray]:
    x, gradient, velocity = tensors
    alpha = operands.number(request, "alpha")
    gradient = _regularised(request, x, gradient)
    velocity = alpha * velocity + (operands.number(request, "beta") if done > 0 else 1) * gradient
    direction = velocity
    if operands.integer(request, "nesterov"):
        direction = gradient + alpha * velocity
    return x - rate * direction, velocity


_STEPS: dict[str, tuple[_Step, int]] = {
    "Adagrad": (_adagrad, 3),
    "Adam": (_adam, 4),
    "Momentum": (_momentum, 3),
}
"""The step, and the tensors of each parameter."""


def _accepts(request: KernelRequest) -> bool:
    specs = (*request.inputs[2:], *request.outputs)
    return all(spec is not None and spec.dtype in (np.float32, np.float64) for spec in specs)


def _bind(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    step, groups = _STEPS[request.operator.rpartition(".")[2]]
    rate, done = operands.required(inputs, 0), operands.required(inputs, 1)
    tensors = [operands.required(inputs, i) for i in range(2, len(inputs))]
    count = len(tensors) // groups
    parameters = [(tensors[i::count], outputs[i::count]) for i in range(count)]

    def run() -> None:
        for given, results in parameters:
            for result, value in zip(
                results, step(request, float(rate.item()), int(done.item()), given), strict=True
            ):
                if result is not None:
                    np.copyto(result, value)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "optimiser_step",
        tuple(f"ai.onnx.preview.training.{name}" for name in _STEPS),
        _bind,
        accepts=_accepts,
    ),
)
