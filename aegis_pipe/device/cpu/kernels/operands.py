"""Typed reading of a request and its arrays; a wrong type is our own bug."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aegis_pipe.device.requests import (
    array as array,
    integer as integer,
    integers as integers,
    number as number,
    numbers as numbers,
    text as text,
    texts as texts,
)
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec


def input_spec(request: KernelRequest, position: int) -> TensorSpec:
    """Return the spec of a required operand."""
    spec = request.inputs[position]
    assert spec is not None, position
    return spec


def output_spec(request: KernelRequest, position: int = 0) -> TensorSpec:
    """Return the spec of a result that is wanted."""
    spec = request.outputs[position]
    assert spec is not None, position
    return spec


def has_input(request: KernelRequest, position: int) -> bool:
    """Return whether an optional operand is there."""
    return position < len(request.inputs) and request.inputs[position] is not None


def has_output(request: KernelRequest, position: int) -> bool:
    """Return whether an optional result is wanted."""
    return position < len(request.outputs) and request.outputs[position] is not None


def required(arrays: Sequence[np.ndarray | None], position: int = 0) -> np.ndarray:
    """Return an operand that has to be there."""
    array = arrays[position]
    assert array is not None, position
    return array


def optional(arrays: Sequence[np.ndarray | None], position: int) -> np.ndarray | None:
    """Return an operand, or None if it is left out."""
    return arrays[position] if position < len(arrays) else None
