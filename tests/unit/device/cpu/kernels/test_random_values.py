"""Drawn numbers: the same on every call, others in every node, and of the right distribution."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from tests.unit.kernel_driver import drive, operator_node

SHAPE = (200, 50)


def drawn(
    operator: str, *values: np.ndarray, name: str = "one", **attributes: object
) -> np.ndarray:
    inputs = [f"x{i}" for i in range(len(values))]
    proto = helper.make_node(operator, inputs, ["y"], name=name, **attributes)
    driven = drive(operator_node(proto, 22), values)
    assert driven is not None
    (result,) = driven.outputs
    assert result is not None
    return result


def test_normal_numbers_have_their_mean_and_scale() -> None:
    numbers = drawn("RandomNormal", shape=SHAPE, mean=3.0, scale=0.5)
    assert numbers.dtype == np.float32
    assert abs(numbers.mean() - 3) < 0.02
    assert abs(numbers.std() - 0.5) < 0.02


def test_uniform_numbers_stay_between_their_bounds() -> None:
    numbers = drawn("RandomUniformLike", np.zeros(SHAPE, np.float64), low=-1.0, high=4.0)
    assert numbers.dtype == np.float64
    assert -1 <= numbers.min() < -0.9
    assert 3.9 < numbers.max() < 4


def test_bernoulli_follows_its_probabilities() -> None:
    probabilities = np.linspace(0, 1, 5, dtype=np.float32)
    ones = drawn("Bernoulli", np.broadcast_to(probabilities, (4000, 5)).copy())
    np.testing.assert_allclose(ones.mean(axis=0), probabilities, atol=0.03)


def test_multinomial_draws_classes_by_log_probability() -> None:
    logits = np.log(np.array([[0.1, 0.6, 0.3], [0.8, 0.2, 1e-30]], np.float32))
    classes = drawn("Multinomial", logits, sample_size=4000)
    shares = [[(row == index).mean() for index in range(3)] for row in classes]
    np.testing.assert_allclose(shares, [[0.1, 0.6, 0.3], [0.8, 0.2, 0]], atol=0.03)


@pytest.mark.parametrize("attributes", [{}, {"seed": 5.0}])
def test_seeds_decide(attributes: dict[str, float]) -> None:
    once = drawn("RandomNormal", shape=SHAPE, **attributes)
    other = drawn("RandomNormal", shape=SHAPE, name="other", **attributes)
    np.testing.assert_array_equal(once, drawn("RandomNormal", shape=SHAPE, **attributes))
    # Without a seed, the node's name stands in for it.
    assert (once == other).all() == bool(attributes)
