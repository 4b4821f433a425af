"""TfIdfVectorizer over integers: counts of n-grams in each row.

Canonical form:

    TfIdfVectorizer(X[words] or [rows, words])  -> float32[outputs] or [rows, outputs]
        `grams`: int64[count, longest + 1], each row an n-gram's length and its words
        `columns`: int64[count], where each n-gram is counted; `weights` float32[outputs]
        `binary` 1: whether it occurs, not how often; `shortest`, `longest`, `skips`
"""

from __future__ import annotations

import itertools

import numpy as np

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.element_types import FLOAT32
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec

_MODES = ("TF", "IDF", "TFIDF")


def _columns(context: OperatorContext) -> tuple[int, ...]:
    columns = reading.integers(context, "ngram_indexes", ())
    reading.require(bool(columns) and min(columns) >= 0, context, "`ngram_indexes` is empty")
    return columns


def _infer(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "X")
    reading.require(
        len(data.shape) in (1, 2), context, f"{data} are neither words nor rows of them"
    )
    return [TensorSpec(FLOAT32, (*data.shape[:-1], max(_columns(context)) + 1))]


def _grams(context: OperatorContext) -> list[tuple[int, ...]]:
    """Return all n-grams of the pool, in the order of `ngram_indexes`."""
    pool = reading.integers(context, "pool_int64s", ())
    starts = (*reading.integers(context, "ngram_counts", ()), len(pool))
    found = []
    for length, (first, end) in enumerate(itertools.pairwise(starts), 1):
        reading.require((end - first) % length == 0, context, f"{length}-grams are cut short")
        found += [pool[at : at + length] for at in range(first, end, length)]
    return found


def _lower(context: OperatorContext) -> Lowered:
    columns, mode = _columns(context), reading.text(context, "mode", "TF")
    reading.require(mode in _MODES, context, f"mode `{mode}` is none of {_MODES}")
    shortest = reading.integer(context, "min_gram_length", 1)
    longest = reading.integer(context, "max_gram_length", 1)
    grams = _grams(context)
    reading.require(len(grams) == len(columns), context, "`ngram_indexes` does not fit the pool")
    wanted = [i for i, gram in enumerate(grams) if shortest <= len(gram) <= longest]
    rows = np.zeros((len(wanted), longest + 1), np.int64)
    for row, index in zip(rows, wanted, strict=True):
        row[: len(grams[index]) + 1] = (len(grams[index]), *grams[index])
    size = max(columns) + 1
    weights = np.ones(size, np.float32)
    given = reading.numbers(context, "weights")
    if given and mode != "TF":
        reading.require(len(given) >= size, context, f"{len(given)} weights, {size} outputs")
        weights = np.array(given[:size], np.float32)
    attributes: dict[str, Attribute] = {
        "grams": rows,
        "columns": np.array([columns[i] for i in wanted], np.int64),
        "weights": weights,
        "binary": int(mode == "IDF"),
        "shortest": shortest,
        "longest": longest,
        "skips": reading.integer(context, "max_skip_count", 0),
    }
    return Lowered("TfIdfVectorizer", attributes, (0,))


ENTRIES: tuple[OperatorEntry, ...] = (OperatorEntry("TfIdfVectorizer", _infer, _lower),)
