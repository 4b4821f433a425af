"""What sources, transforms and sinks are: three small protocols.

Adding one is one new file in `sources/`, `transforms/` or `sinks/`, one line in that folder's
table, and its keys: a section in `manifest/model.py` and a part of the schema. Factories take the
manifest's options as keyword arguments; they check what they can at once and raise PipelineError
with a hint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

Values = Mapping[str, np.ndarray]
"""Named arrays; texts are arrays of dtype `str`."""


class Source(Protocol):
    """Produces items until it has no more."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the values each item has; the first is the default."""
        ...

    def items(self) -> Iterator[Values]:
        """Yield items; a PipelineError raised by `next` fails that item only."""
        ...


class Transform(Protocol):
    """A pure function of named arrays."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values it takes."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the values it makes; the first is the default."""
        ...

    def __call__(self, values: Values) -> Values:
        """Compute; raises PipelineError for values it can not take."""
        ...


class Sink(Protocol):
    """Takes finished items, in the order of their arrival."""

    def write(self, item: int, values: Values) -> None:
        """Take one item; PipelineError stops the pipeline, because items would be lost."""
        ...

    def close(self) -> str:
        """Finish what was written; return one line that says where it is or what it found."""
        ...
