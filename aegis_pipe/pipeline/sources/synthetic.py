"""Made-up arrays: load for models without data at hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from aegis_pipe.errors import PipelineError
from aegis_pipe.pipeline.parts import Values
from aegis_pipe.tensor import TensorSpec


@dataclass(frozen=True, slots=True)
class SyntheticTensor:
    """A value to make up: uniform between `low` and `high`."""

    spec: TensorSpec
    low: float = 0.0
    high: float = 1.0


class SyntheticSource:
    """Yields the same seeded random arrays `count` times (0: for ever).

    One set of arrays is drawn at the start: drawing anew per item would load the host more than
    many a model does.
    """

    def __init__(
        self, *, tensors: Mapping[str, SyntheticTensor], seed: int = 0, count: int = 0
    ) -> None:
        if not tensors:
            raise PipelineError(
                "it makes no values",
                context="source `synthetic`",
                hint="name a model in `like`, or give `outputs`",
            )
        generator = np.random.Generator(np.random.PCG64(seed))
        self._values = {name: _draw(generator, tensor) for name, tensor in tensors.items()}
        self._count = count

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the values."""
        return tuple(self._values)

    def items(self) -> Iterator[Values]:
        """Yield the arrays again and again."""
        made = 0
        while self._count == 0 or made < self._count:
            yield self._values
            made += 1


def _draw(generator: np.random.Generator, tensor: SyntheticTensor) -> np.ndarray:
    uniform = generator.random(tensor.spec.shape) * (tensor.high - tensor.low) + tensor.low
    return np.asarray(uniform).astype(tensor.spec.dtype)
