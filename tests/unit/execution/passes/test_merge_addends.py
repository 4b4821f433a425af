"""Constants added one after the other become one."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_pipe.execution.passes import fuse_layer_normalisation, fuse_skip, merge_addends
from tests.unit.pass_driver import check, model_of, operators_of

CONSTANTS = {
    "row": np.arange(1, 5, dtype=np.float32),
    "column": np.arange(1, 4, dtype=np.float32).reshape(3, 1),
    "one": np.float32([0.1]),
    "full": np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4),
    "huge": np.full(4, -3e38, np.float32),
    "ids": np.array([1]),
}
X = "(float[2,3,4] x) => (float[2,3,4] y)"


def merged(text: str) -> list[str]:
    return operators_of(check(model_of(text, CONSTANTS), (merge_addends,)))


MERGED = {
    "two": "{ a = Add(x, row) y = Add(a, full) }",
    "on either side": "{ a = Add(row, x) y = Add(full, a) }",
    "three": "{ a = Add(x, row) b = Add(a, one) y = Add(full, b) }",
    "one that is spread": "{ a = Add(x, one) y = Add(a, column) }",
}


@pytest.mark.parametrize("case", MERGED)
def test_merged(case: str) -> None:
    assert merged(f"{X} {MERGED[case]}") == ["Add"]


KEPT = {
    "the sum is read": "{ a = Add(x, row) b = Add(a, full) c = Neg(a) y = Mul(b, c) }",
    "they would take more": "{ a = Add(x, row) y = Add(a, column) }",
    "infinity": "{ a = Add(x, huge) y = Add(a, huge) }",
    "no constant": "{ a = Add(x, row) y = Add(a, x) }",
    "another operator": "{ a = Add(x, row) y = Sub(a, full) }",
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    assert len(merged(f"{X} {KEPT[case]}")) == KEPT[case].count("=")


def test_the_sum_is_an_output() -> None:
    text = (
        "(float[2,3,4] x) => (float[2,3,4] y, float[2,3,4] a) { a = Add(x, row) y = Add(a, full) }"
    )
    assert merged(text) == ["Add", "Add"]


def test_integers_stay() -> None:
    text = "(int64[3] x) => (int64[3] y) { a = Add(x, ids) y = Add(a, ids) }"
    assert merged(text) == ["Add", "Add"]


def test_an_embedding_with_known_positions_and_types() -> None:
    text = (
        f"{X} {{ a = Add(x, full) b = Add(a, full) y = LayerNormalization <axis = -1> (b, row) }}"
    )
    passes = (merge_addends, fuse_layer_normalisation, fuse_skip)
    graph = check(model_of(text, CONSTANTS), passes)
    assert operators_of(graph) == ["com.microsoft.SkipLayerNormalization"]
