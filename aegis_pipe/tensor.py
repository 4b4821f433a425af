"""What a tensor is, apart from its bytes: dtype and shape.

Dtypes are `numpy.dtype`s; those NumPy lacks (bfloat16, float8, int4) come from `ml_dtypes`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, NewType

import ml_dtypes
import numpy as np

TensorId = NewType("TensorId", str)
"""A tensor's name, unique within its graph; any text at all, so escape it for display."""


class TensorSpec(NamedTuple):
    """Dtype and shape of a tensor; the layout is dense and row-major."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def element_count(self) -> int:
        """Number of elements; 1 for a scalar, 0 if any dimension is 0."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the dense tensor."""
        return self.element_count * self.dtype.itemsize

    def __str__(self) -> str:
        """Format as `float32[1, 3, 224, 224]`."""
        return f"{_name(self.dtype)}[{', '.join(map(str, self.shape))}]"


@cache
def _name(dtype: np.dtype) -> str:
    """Return a dtype's name, which NumPy builds each time it is asked."""
    return dtype.name


def kind_of(dtype: str) -> str:
    """Return what a dtype of this name holds: `bool`, `integer` or `float`."""
    if dtype == "bool":
        return "bool"
    return "integer" if dtype.startswith(("int", "uint")) else "float"


def written_value(dtype: str, shape: Sequence[int | str | None]) -> str:
    """Return how a manifest writes a value of this dtype and shape: `[[0.0, 0.0, ...]]`.

    Of dimensions that are not known, one row is shown.
    """
    text = {"bool": "false", "integer": "0", "float": "0.0"}[kind_of(dtype)]
    for size in reversed(shape):
        count = size if isinstance(size, int) else 1
        text = f"[{', '.join([text] * min(count, 2) + ['...'] * (count > 2))}]"
    return text


def dtype_named(name: str) -> np.dtype:
    """Return the dtype of a name such as `float32` or `bfloat16`; TypeError if there is none."""
    extension = getattr(ml_dtypes, name, None)
    return np.dtype(extension if extension is not None else name)
