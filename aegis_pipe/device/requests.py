"""Typed reading of a request's canonical attributes, for the kernels of every device.

A wrong type is our own bug.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aegis_pipe.kernel import KernelRequest


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
    return tuple(map(int, value))


def numbers(request: KernelRequest, name: str) -> tuple[float, ...]:
    """Return a list-of-float attribute."""
    value = request.attributes[name]
    assert isinstance(value, tuple), name
    return tuple(map(float, value))


def texts(request: KernelRequest, name: str) -> tuple[str, ...]:
    """Return a list-of-string attribute."""
    value = request.attributes[name]
    assert isinstance(value, tuple), name
    return tuple([str(each) for each in value])


def array(request: KernelRequest, name: str) -> np.ndarray:
    """Return an array attribute."""
    value = request.attributes[name]
    assert isinstance(value, np.ndarray), name
    return value


def in_place(
    request: KernelRequest, pairs: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """Return those of (input, output) `pairs` that are both there, and of the same spec."""
    return tuple(
        [
            (i, o)
            for i, o in pairs
            if i < len(request.inputs)
            and o < len(request.outputs)
            and request.inputs[i] is not None
            and request.inputs[i] == request.outputs[o]
        ]
    )
