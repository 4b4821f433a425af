"""How far two computations of the same model may be apart, and how far they are.

An output passes if its largest difference is at most `tolerance` standard deviations of the
expected values. A deviation says what differences mean to whoever reads the output, whatever its
scale. Two kinds of output have a deviation that says less, and are given more:

    few values stand out (a heat map, a softmax): a tenth of the tolerance times the largest
    distance from the mean
    hardly any variation (one number, say): a few roundings of the largest value

Integers and bools of models without quantised arithmetic have to be equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from aegis_pipe.execution.graph import ExecutionGraph

PEAK_SHARE = 0.1
"""Part of the tolerance that is allowed relative to the largest distance from the mean."""
ROUNDINGS = 8
"""Units of rounding, relative to the largest expected value, that are always allowed."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What a model computes with, and so how exact its outputs can be."""

    name: str
    tolerance: float
    """Largest difference in standard deviations of the expected output."""
    rounding: float
    """Distance from 1 to the next number."""
    correlation_min: float | None = None
    """From this correlation on an output passes whatever its largest difference."""

    def with_tolerance(self, tolerance: float) -> Arithmetic:
        """Return the same arithmetic judged by another tolerance, and by that alone."""
        return replace(self, tolerance=tolerance, correlation_min=None)


ARITHMETICS = {
    each.name: each
    for each in (
        Arithmetic("fp32", 1e-3, 2**-23),
        Arithmetic("tf32", 1e-2, 2**-10),
        Arithmetic("fp16", 1e-2, 2**-10),
        Arithmetic("bf16", 1e-1, 2**-7),
        # Roundings to a step of the scale go either way and then travel through the model.
        Arithmetic("int8", 1e-1, 2**-7, correlation_min=0.95),
    )
}

_QUANTISED = ("QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinear")
_ARITHMETIC_OF_DTYPE = {"float16": "fp16", "bfloat16": "bf16"}


def arithmetic_of(graph: ExecutionGraph, precision: str = "fp32") -> Arithmetic:
    """Return the least exact arithmetic among a model's operators and its `precision`."""
    names = {precision}
    for node in graph.operators:
        if node.operator.startswith(_QUANTISED):
            names.add("int8")
    for spec in graph.specs.values():
        names.add(_ARITHMETIC_OF_DTYPE.get(spec.dtype.name, precision))
    return max((ARITHMETICS[name] for name in sorted(names)), key=_inexactness)


def _inexactness(arithmetic: Arithmetic) -> tuple[float, bool]:
    return arithmetic.tolerance, arithmetic.correlation_min is not None


@dataclass(frozen=True, slots=True)
class Difference:
    """How far an output is from what was expected; NaN where that can not be said."""

    max_absolute: float = math.nan
    relative: float = math.nan
    """Norm of the difference by the norm of the expected values."""
    deviations: float = math.nan
    """Largest difference in standard deviations of the expected values."""
    correlation: float = math.nan
    failure: str = ""
    """Why it does not pass; empty if it does."""

    @property
    def passed(self) -> bool:
        """Whether the output is as exact as its arithmetic allows."""
        return not self.failure


def compare(found: np.ndarray, expected: np.ndarray, arithmetic: Arithmetic) -> Difference:
    """Compare one output with what was expected."""
    if found.shape != expected.shape:
        return Difference(failure=f"expected shape {list(expected.shape)}")
    if found.dtype != expected.dtype:
        return Difference(failure=f"expected {expected.dtype.name}")
    if found.size == 0:
        return Difference(0.0, 0.0, 0.0)
    exact = expected.dtype.kind in "iub" and arithmetic.correlation_min is None
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    one, other = found.astype(wide), expected.astype(wide)
    finite = np.isfinite(other)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
        return Difference(failure="other infinities or NaNs than expected")
    if not np.isfinite(one[finite]).all():
        return Difference(failure="infinities or NaNs where numbers were expected")
    measured = _measure(one[finite], other[finite])
    allowed = 0.0 if exact else _allowed(other[finite], arithmetic)
    return replace(measured, failure=_failure(measured, allowed, arithmetic))


def _allowed(expected: np.ndarray, arithmetic: Arithmetic) -> float:
    """Return the largest difference that finite values may have."""
    if expected.size == 0:
        return 0.0
    peak = np.abs(expected - expected.mean()).max()
    return max(
        float(arithmetic.tolerance * expected.std()),
        float(arithmetic.tolerance * PEAK_SHARE * peak),
        float(ROUNDINGS * arithmetic.rounding * np.abs(expected).max()),
    )


def _measure(found: np.ndarray, expected: np.ndarray) -> Difference:
    """Return the figures of two arrays of finite wide values."""
    if found.size == 0:
        return Difference(0.0, 0.0, 0.0)
    error = np.abs(found - expected)
    norm, deviation = float(np.linalg.norm(expected)), float(expected.std())
    max_absolute = float(error.max())
    correlation = math.nan
    if deviation > 0 and found.std() > 0:
        correlation = float(np.corrcoef(found.ravel(), expected.ravel())[0, 1].real)
    return Difference(
        max_absolute,
        _ratio(float(np.linalg.norm(error)), norm),
        _ratio(max_absolute, deviation),
        correlation,
    )


def _ratio(value: float, unit: float) -> float:
    if value == 0:
        return 0.0
    return value / unit if unit > 0 else math.inf


def _failure(difference: Difference, allowed: float, arithmetic: Arithmetic) -> str:
    if difference.max_absolute <= allowed:
        return ""
    enough = arithmetic.correlation_min
    if enough is not None and difference.correlation >= enough:
        return ""
    return f"more than {allowed:.1e}" if allowed else "has to be equal"
