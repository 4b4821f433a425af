"""The k largest elements along the last axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aegis_pipe.errors import PipelineError
from aegis_pipe.pipeline.parts import Values


class TopK:
    """`input[..., n]` -> `values[..., k]` descending, `indices[..., k]` (int64), `labels[..., k]`.

    Of equals the lower index comes first. `labels` are made only if `labels` (n texts) is given.
    """

    inputs = ("input",)

    def __init__(self, *, k: int = 5, labels: Sequence[str] = ()) -> None:
        self._k = k
        self._labels = np.array(labels) if labels else None

    @property
    def outputs(self) -> tuple[str, ...]:
        """`values`, `indices` and, if there are labels, `labels`."""
        return (
            ("values", "indices", "labels") if self._labels is not None else ("values", "indices")
        )

    def __call__(self, values: Values) -> Values:
        """Compute."""
        scores = values["input"]
        if scores.ndim == 0 or scores.shape[-1] < self._k:
            raise PipelineError(
                f"`k` is {self._k}, but the input has shape {list(scores.shape)}",
                context="transform `top_k`",
                hint="lower `k`",
            )
        indices = np.argsort(-scores, axis=-1, kind="stable")[..., : self._k]
        result = {"values": np.take_along_axis(scores, indices, axis=-1), "indices": indices}
        if self._labels is not None:
            result["labels"] = self._name(indices, scores.shape[-1])
        return result

    def _name(self, indices: np.ndarray, classes: int) -> np.ndarray:
        assert self._labels is not None
        if len(self._labels) != classes:
            raise PipelineError(
                f"there are {len(self._labels)} labels for {classes} classes",
                context="transform `top_k`",
                hint="give one label per class",
            )
        named: np.ndarray = self._labels[indices]
        return named
