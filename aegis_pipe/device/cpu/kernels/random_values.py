"""Kernels that draw numbers: every call starts its generator anew, so that it keeps no state.

The generator is NumPy's legacy Mersenne twister, whose streams are frozen across versions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.pointwise import FLOATS, NUMBERS
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelRequest

_Draw = Callable[[KernelRequest, np.random.RandomState, Sequence[np.ndarray | None]], np.ndarray]


def _normal(
    request: KernelRequest, state: np.random.RandomState, inputs: Sequence[np.ndarray | None]
) -> np.ndarray:
    mean, scale = operands.number(request, "mean"), operands.number(request, "scale")
    return state.standard_normal(operands.output_spec(request).shape) * scale + mean


def _uniform(
    request: KernelRequest, state: np.random.RandomState, inputs: Sequence[np.ndarray | None]
) -> np.ndarray:
    low, high = operands.number(request, "low"), operands.number(request, "high")
    return state.uniform(low, high, operands.output_spec(request).shape)


def _bernoulli(
    request: KernelRequest, state: np.random.RandomState, inputs: Sequence[np.ndarray | None]
) -> np.ndarray:
    probabilities = operands.required(inputs)
    return state.uniform(size=probabilities.shape) < probabilities


def _multinomial(
    request: KernelRequest, state: np.random.RandomState, inputs: Sequence[np.ndarray | None]
) -> np.ndarray:
    logits = operands.required(inputs).astype(np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    steps = np.cumsum(weights, axis=1)
    drawn = state.uniform(size=operands.output_spec(request).shape) * steps[:, -1:]
    # How many steps lie at or below the number is the class it falls into.
    below = steps[:, None, :] <= drawn[:, :, None]
    return np.asarray(below.sum(axis=2))


def _accepts(request: KernelRequest) -> bool:
    given = [spec.dtype in FLOATS for spec in request.inputs if spec is not None]
    kinds = NUMBERS | {np.dtype(np.bool_)}
    return all(given) and operands.output_spec(request).dtype in kinds


def _kernel(operator: str, draw: _Draw) -> CpuKernel:
    def bind(
        request: KernelRequest,
        inputs: Sequence[np.ndarray | None],
        outputs: Sequence[np.ndarray | None],
        scratch: Sequence[np.ndarray],
    ) -> Callable[[], None]:
        result, seed = operands.required(outputs), operands.integer(request, "seed")

        def run() -> None:
            drawn = draw(request, np.random.RandomState(seed), inputs)
            np.copyto(result, drawn, casting="unsafe")

        return run

    return planned_kernel(f"random.{operator.lower()}", (operator,), bind, accepts=_accepts)


def _accepts_dropout(request: KernelRequest) -> bool:
    return bool(operands.integer(request, "training")) and (
        operands.input_spec(request, 0).dtype in FLOATS
    )


def _bind_dropout(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, seed = operands.required(inputs), operands.integer(request, "seed")
    ratio, training = operands.optional(inputs, 1), operands.optional(inputs, 2)
    result, mask = operands.optional(outputs, 0), operands.optional(outputs, 1)

    def run() -> None:
        share = 0.5 if ratio is None else float(ratio.item())
        if share == 0 or training is None or not training.item():
            kept, factor = np.ones(data.shape, np.bool_), 1.0
        else:
            kept = np.random.RandomState(seed).uniform(size=data.shape) >= share
            factor = 1 / (1 - share) if share < 1 else 0.0
        if result is not None:
            np.multiply(data, factor, out=result)
            np.multiply(result, kept, out=result)
        if mask is not None:
            np.copyto(mask, kept, casting="unsafe")

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    _kernel("RandomNormal", _normal),
    _kernel("RandomUniform", _uniform),
    _kernel("Bernoulli", _bernoulli),
    _kernel("Multinomial", _multinomial),
    planned_kernel("dropout.training", ("Dropout",), _bind_dropout, accepts=_accepts_dropout),
)
