"""Index of the largest element."""

from __future__ import annotations

import numpy as np

from aegis_pipe.pipeline.parts import Values


class ArgMax:
    """`input` (any real dtype) -> `output` (int64, without `axis`); the first of equals."""

    inputs = ("input",)
    outputs = ("output",)

    def __init__(self, *, axis: int = -1) -> None:
        self._axis = axis

    def __call__(self, values: Values) -> Values:
        """Compute."""
        return {"output": np.argmax(values["input"], axis=self._axis)}
