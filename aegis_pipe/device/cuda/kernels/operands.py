"""Typed reading of a request; a wrong type is our own bug."""

from __future__ import annotations

from aegis_pipe.device.requests import (
    integer as integer,
    integers as integers,
    number as number,
    numbers as numbers,
    text as text,
)
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec


def operand(request: KernelRequest, position: int) -> TensorSpec | None:
    """Return an operand's spec, None where it is left out."""
    return request.inputs[position] if position < len(request.inputs) else None


def required(request: KernelRequest, position: int = 0) -> TensorSpec:
    """Return the spec of an operand that has to be there."""
    spec = request.inputs[position]
    assert spec is not None, f"{request.operator} without operand {position}"
    return spec


def result(request: KernelRequest, position: int = 0) -> TensorSpec:
    """Return the spec of a result that is wanted."""
    spec = request.outputs[position]
    assert spec is not None, f"{request.operator} without result {position}"
    return spec


def wanted(request: KernelRequest) -> list[int]:
    """Return the positions of the results that somebody wants."""
    return [position for position, spec in enumerate(request.outputs) if spec is not None]
