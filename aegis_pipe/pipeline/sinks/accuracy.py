"""Counts how often a prediction is right."""

from __future__ import annotations

import numpy as np

from aegis_pipe.errors import PipelineError
from aegis_pipe.pipeline.parts import Values


class AccuracySink:
    """Compares the first input (predicted classes) with the second (expected ones).

    Both are integers of one shape, axes of length 1 aside.
    """

    def __init__(self, *, inputs: tuple[str, ...]) -> None:
        if len(inputs) != 2:
            raise PipelineError(
                f"it needs two inputs, found {len(inputs)}",
                context="sink `accuracy`",
                hint='write `input = ["<predicted>", "<expected>"]`',
            )
        self._predicted, self._expected = inputs
        self._right = 0
        self._total = 0

    def write(self, item: int, values: Values) -> None:
        """Count one item."""
        predicted = np.squeeze(values[self._predicted])
        expected = np.squeeze(values[self._expected])
        if predicted.shape != expected.shape:
            raise PipelineError(
                f"`{self._predicted}` has shape {list(predicted.shape)}, "
                f"`{self._expected}` {list(expected.shape)}",
                context=f"sink `accuracy`, item {item}",
                hint="reduce the prediction to one class per item, with `argmax` for instance",
            )
        self._right += int(np.count_nonzero(predicted == expected))
        self._total += predicted.size

    def close(self) -> str:
        """Return the share that was right."""
        if not self._total:
            return "accuracy: no item was seen"
        return f"accuracy: {self._right / self._total:.2%} of {self._total} right"
