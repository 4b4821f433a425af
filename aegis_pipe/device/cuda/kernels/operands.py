"""Typed reading of a request; a wrong type is our own bug."""

from __future__ import annotations

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
