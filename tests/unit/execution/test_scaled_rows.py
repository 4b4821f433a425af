"""The compiled part of folding has the bits of NumPy's."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_pipe.execution import native


def expected(rows: np.ndarray, factors: np.ndarray) -> np.ndarray:
    by_row = factors.reshape(-1, *(1,) * (rows.ndim - 1))
    return (rows.astype(np.float64) * by_row).astype(rows.dtype)


@pytest.mark.parametrize("shape", [(3, 1), (5, 7), (4, 2, 3, 3), (1, 4096), (0, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scaled_rows_are_products_rounded_once(
    shape: tuple[int, ...], dtype: type[np.floating]
) -> None:
    generator = np.random.default_rng(7)
    rows = generator.standard_normal(shape).astype(dtype)
    factors = generator.standard_normal(shape[0])
    scaled = native.scaled_rows(rows, factors)
    assert scaled is not None
    assert scaled.dtype == dtype
    np.testing.assert_array_equal(scaled, expected(rows, factors), strict=True)


@pytest.mark.parametrize("position", [0, 8, 19], ids=["in a vector", "in the next", "in the rest"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
@pytest.mark.parametrize("compiled", [True, False])
def test_what_is_not_finite_is_refused(
    monkeypatch: pytest.MonkeyPatch, position: int, value: float, compiled: bool
) -> None:
    if not compiled:
        monkeypatch.setattr(native, "LIBRARY", None)
    rows = np.ones((2, 20), np.float32)
    factors = np.array([1.0, 2.0])
    assert native.scaled_rows(rows, factors) is not None
    rows[1, position] = value
    with np.errstate(over="ignore"):
        assert native.scaled_rows(rows, factors) is None


def test_rows_that_are_not_contiguous_are_scaled_too() -> None:
    rows = np.arange(40, dtype=np.float32).reshape(2, 20)[:, ::2]
    factors = np.array([1.5, 2.0])
    scaled = native.scaled_rows(rows, factors)
    assert scaled is not None
    np.testing.assert_array_equal(scaled, expected(rows, factors))
