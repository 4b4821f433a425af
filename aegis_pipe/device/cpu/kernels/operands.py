"""Typed reading of a request's canonical attributes; a wrong type is our own bug."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec


def integer(request: KernelRequest, name: str) -> int:
    """Return an int attribute."""
    value = request.attributes[name]
    assert isinstance(value, int), name
    return value


def number(request: KernelRequest, name: str) -> float:
    """Return a float attribute."""
    value = request.attributes[name]
    assert isinstance(value, int | float), name
    return float(value)


def text(request: KernelRequest, name: str) -> str:
    """Return a string attribute."""
    value = request.attributes[name]
    assert isinstance(value, str), name
    return value


def integers(request: KernelRequest, name: str) -> tuple[int, ...]:
    """Return a list-of-int attribute."""
    value = request.attributes[name]
    assert isinstance(value, tuple), name
    return tuple(int(each) for each in value)


def numbers(request: KernelRequest, name: str) -> tuple[float, ...]:
    """Return a list-of-float attribute."""
    value = request.attributes[name]
    assert isinstance(value, tuple), name
    return tuple(float(each) for each in value)


def texts(request: KernelRequest, name: str) -> tuple[str, ...]:
    """Return a list-of-string attribute."""
    value = request.attributes[name]
    assert isinstance(value, tuple), name
    return tuple(str(each) for each in value)


def array(request: KernelRequest, name: str) -> np.ndarray:
    """Return an array attribute."""
    value = request.attributes[name]
    assert isinstance(value, np.ndarray), name
    return value


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
