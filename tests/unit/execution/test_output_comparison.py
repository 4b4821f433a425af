"""Verdicts on differences, and the arithmetic they are judged by."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from aegis_pipe.execution.graph import ExecutionGraph, OperatorNode
from aegis_pipe.execution.output_comparison import ARITHMETICS, arithmetic_of, compare
from aegis_pipe.tensor import TensorId, TensorSpec

FP32, INT8 = ARITHMETICS["fp32"], ARITHMETICS["int8"]


def wave(size: int = 1000) -> np.ndarray:
    return np.sin(np.arange(size)).astype(np.float32)


def with_error(expected: np.ndarray, deviations: float) -> np.ndarray:
    found = expected.copy()
    found[3] += np.float32(deviations * expected.std())
    return found


def test_the_limit_is_the_tolerance_in_deviations() -> None:
    assert compare(with_error(wave(), 0.9e-3), wave(), FP32).passed
    beyond = compare(with_error(wave(), 1.1e-3), wave(), FP32)
    assert not beyond.passed
    assert beyond.deviations == pytest.approx(1.1e-3, rel=1e-2)
    assert beyond.max_absolute == pytest.approx(1.1e-3 * wave().std(), rel=1e-2)


def test_scale_does_not_matter() -> None:
    tiny = wave() * np.float32(1e-20)
    assert compare(with_error(tiny, 0.9e-3), tiny, FP32).passed
    assert not compare(with_error(tiny, 1.1e-3), tiny, FP32).passed


def test_an_offset_buys_no_tolerance() -> None:
    expected = wave() + 100
    assert not compare(with_error(expected, 5e-3), expected, FP32).passed


def test_a_peak_is_judged_by_its_height() -> None:
    expected = np.zeros(100_000, np.float32)
    expected[7] = 1
    found = expected.copy()
    found[7] += np.float32(9e-5)
    assert compare(found, expected, FP32).passed
    found[7] += np.float32(3e-5)
    assert not compare(found, expected, FP32).passed


def test_a_single_value_may_differ_by_roundings() -> None:
    one = np.array([0.3], np.float32)
    assert compare(one + np.spacing(one), one, FP32).passed
    assert not compare(one * np.float32(1.0001), one, FP32).passed


def test_integers_have_to_be_equal_unless_quantised() -> None:
    expected = np.arange(1000)
    found = expected.copy()
    found[1] += 1
    assert compare(found, expected, FP32).failure == "has to be equal"
    assert compare(found, expected, INT8).passed


def test_quantised_outputs_may_also_correlate() -> None:
    expected = wave()
    found = expected + np.float32(0.2) * np.cos(np.arange(1000) * 3).astype(np.float32)
    difference = compare(found, expected, INT8)
    assert difference.deviations > INT8.tolerance
    assert difference.correlation >= 0.95
    assert difference.passed
    assert not compare(found, expected, INT8.with_tolerance(0.1)).passed


@pytest.mark.parametrize(
    "found",
    [
        np.zeros((2, 3), np.float32),
        np.zeros(3, np.float64),
        np.array([0, np.nan, 0], np.float32),
        np.array([0, 0, np.inf], np.float32),
    ],
    ids=["shape", "dtype", "nan", "infinity"],
)
def test_what_can_not_be_compared_fails(found: np.ndarray) -> None:
    difference = compare(found, np.zeros(3, np.float32), FP32)
    assert not difference.passed
    assert math.isnan(difference.max_absolute)


def test_expected_infinities_and_nans_are_met_in_place() -> None:
    expected = np.array([np.inf, np.nan, 1, -np.inf], np.float32)
    assert compare(expected.copy(), expected, FP32).passed
    assert not compare(-expected, expected, FP32).passed


def test_types_of_ml_dtypes_and_empty_arrays() -> None:
    half = wave().astype(ml_dtypes.bfloat16)
    assert compare(half, half.copy(), FP32).passed
    assert not compare(half, -half, FP32).passed
    assert compare(np.zeros((0, 3)), np.zeros((0, 3)), FP32).passed


def graph_of(operator: str, dtype: type = np.float32) -> ExecutionGraph:
    x, y = TensorId("x"), TensorId("y")
    return ExecutionGraph.build(
        name="g",
        operators=[OperatorNode("n", operator, "", 17, {}, (x,), (y,))],
        specs={tensor: TensorSpec(np.dtype(dtype), (3,)) for tensor in (x, y)},
        constants={},
        inputs=[x],
        outputs=[y],
    )


@pytest.mark.parametrize(
    ("graph", "precision", "expected"),
    [
        (graph_of("Relu"), "fp32", "fp32"),
        (graph_of("Relu"), "fp16", "fp16"),
        (graph_of("Relu", np.float16), "fp32", "fp16"),
        (graph_of("DynamicQuantizeLinear"), "fp32", "int8"),
        (graph_of("QLinearMatMul"), "fp32", "int8"),
        (graph_of("MatMulInteger"), "bf16", "int8"),
    ],
)
def test_the_least_exact_arithmetic_counts(
    graph: ExecutionGraph, precision: str, expected: str
) -> None:
    assert arithmetic_of(graph, precision).name == expected
