"""Chains of elementwise operators: every kind of operand and of step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from aegis_pipe.device.elementwise_chains import Chain, Step
from tests.unit.device.cpu.kernels.case import Case, random
from tests.unit.kernel_driver import make_node


def step(operator: str, *operands: int, to: str = "float32", **attributes: object) -> Step:
    return Step(operator, operands, np.dtype(to), attributes)


def chain(
    values: Sequence[np.ndarray], steps: Sequence[Step], constants: Sequence[float] = ()
) -> Case:
    """Return the case; values of steps are numbered from inputs and constants on."""
    made = Chain(len(values), tuple(constants), tuple(steps))
    attributes: Mapping[str, object] = {
        name: value for name, value in made.attributes().items() if value != ()
    }
    node = make_node("ElementwiseChain", len(values), domain="aegis", **attributes)
    return Case("native.chain", node, [*values], opset=1, like_onnxruntime=False)


def _hard_swish(*shape: int) -> Case:
    steps = [
        step("Add", 0, 1),
        step("Clip", 3, min=0.0, max=6.0),
        step("Mul", 0, 4),
        step("Div", 5, 2),
    ]
    return chain([random(*shape) * 4], steps, (3.0, 6.0))


def _preprocessing(image: tuple[int, ...], channels: tuple[int, ...]) -> Case:
    values = np.random.default_rng(1).integers(0, 256, image).astype(np.uint8)
    mean, deviation = random(*channels), np.abs(random(*channels)) + np.float32(0.5)
    steps = [
        step("Cast", 0, saturate=1, round_mode="up"),
        step("Div", 4, 3),
        step("Sub", 5, 1),
        step("Div", 6, 2),
        step("Clip", 7, min=-2.0, max=2.0),
    ]
    return chain([values, mean, deviation], steps, (255.0,))


def _functions(*shape: int) -> Case:
    """Functions of one operand, each of the one before it."""
    functions = [
        *(step(name, 0) for name in ("Relu", "Sigmoid", "Tanh", "Erf", "Neg", "Abs", "HardSwish")),
        step("LeakyRelu", 0, alpha=0.125),
        step("Swish", 0, alpha=1.5),
        step("HardSigmoid", 0, alpha=0.25, beta=0.5),
        step("com.microsoft.BiasGelu", 0, approximate="none"),
        step("com.microsoft.BiasGelu", 0, approximate="tanh"),
    ]
    steps = [replace(function, operands=(i,)) for i, function in enumerate(functions)]
    return chain([random(*shape)], [*steps, step("Mul", 0, len(steps))])


def _masked(*shape: int) -> Case:
    lengths = np.arange(shape[0], dtype=np.int64).reshape(-1, *(1,) * (len(shape) - 1))
    places = np.arange(shape[-1], dtype=np.int64)
    steps = [
        step("Less", 2, 1, to="bool"),
        step("Greater", 0, 3, to="bool"),
        step("And", 4, 5, to="bool"),
        step("Exp", 0),
        step("Where", 6, 7, 3),
    ]
    return chain([random(*shape), lengths, places], steps, (0.25,))


def _gates(rows: int, size: int) -> Case:
    """A GRU's new state: (1 - z) * h' + z * h."""
    steps = [
        step("Sigmoid", 0),
        step("Tanh", 1),
        step("Sub", 3, 4),
        step("Mul", 6, 5),
        step("Mul", 4, 2),
        step("Add", 7, 8),
    ]
    return chain([random(rows, size), random(rows, size), random(rows, size)], steps, (1.0,))


def _wide_types() -> Case:
    numbers = np.random.default_rng(2).integers(-9, 9, (3, 700)).astype(np.int64)
    others = np.random.default_rng(3).integers(-9, 9, (700,)).astype(np.int64)
    steps = [
        step("GreaterOrEqual", 0, 1, to="bool"),
        step("Where", 2, 0, 1, to="int64"),
        step("Cast", 3, saturate=1, round_mode="up"),
        step("Sqrt", 4),
        step("Cast", 5, to="float16", saturate=1, round_mode="up"),
    ]
    return chain([np.abs(numbers), np.abs(others)], steps)


CHAINS: dict[str, Case] = {
    "chain hard swish": _hard_swish(2, 3, 1030),
    "chain short": _hard_swish(5),
    "chain one element": _hard_swish(1, 1),
    "chain image": _preprocessing((2, 3, 33, 47), (3, 1, 1)),
    "chain image channels last": _preprocessing((2, 33, 47, 3), (3,)),
    "chain small image": _preprocessing((3, 5, 7, 7), (5, 1, 1)),
    "chain functions": _functions(3, 501),
    "chain masked": _masked(9, 40),
    "chain masked long": _masked(3, 2100),
    "chain masked rows": _masked(5, 7, 11),
    "chain gates": _gates(4, 515),
    "chain wide types": _wide_types(),
    "chain six dimensions": chain(
        [random(2, 1, 3, 1, 2, 5), random(1, 3, 1, 4, 1, 5), random(2, 3, 3, 4, 2, 1)],
        [step("Sub", 0, 1), step("Max", 3, 2), step("Reciprocal", 4), step("Min", 5, 3)],
    ),
    "chain rows and columns": chain(
        [random(40, 1), random(30), random(40, 30)],
        [step("Mul", 0, 1), step("Sub", 3, 2), step("Neg", 4)],
    ),
}
