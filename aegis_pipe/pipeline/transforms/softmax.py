"""Scores into shares that sum to one."""

from __future__ import annotations

import numpy as np

from aegis_pipe.pipeline.parts import Values


class Softmax:
    """`input` (floating) -> `output` (same shape and dtype), along `axis`."""

    inputs = ("input",)
    outputs = ("output",)

    def __init__(self, *, axis: int = -1) -> None:
        self._axis = axis

    def __call__(self, values: Values) -> Values:
        """Compute with the largest subtracted first, so that nothing overflows."""
        scores = values["input"]
        shifted = np.exp(scores - scores.max(axis=self._axis, keepdims=True))
        return {"output": shifted / shifted.sum(axis=self._axis, keepdims=True)}
