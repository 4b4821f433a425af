"""Values that a manifest binds to inputs: numbers or bools, alone or in regular nested lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aegis_pipe.manifest.problems import found

_MAX_CONSTANT_DEPTH = 8


def constant_problem(value: object) -> str:
    """Return what is wrong with a bound value: numbers or bools in regular nested lists."""
    try:
        constant_shape(value)
    except ValueError as error:
        return str(error)
    return ""


def constant_shape(value: object, depth: int = 0) -> tuple[int, ...]:
    """Return the shape of a bound value; ValueError says why it has none."""
    if not isinstance(value, list):
        if isinstance(value, bool | int) or (
            isinstance(value, float) and abs(value) < float("inf")
        ):
            return ()
        raise ValueError(f"expected numbers or bools, found {found(value)}")
    if depth == _MAX_CONSTANT_DEPTH:
        raise ValueError(f"lists are nested deeper than {_MAX_CONSTANT_DEPTH} levels")
    shapes = [constant_shape(item, depth + 1) for item in value]
    if len(set(shapes)) > 1:
        raise ValueError("the nested lists have different lengths")
    return (len(value), *(shapes[0] if shapes else ()))


def bound_kinds(value: object) -> Mapping[type, bool]:
    """Return which of bool, int and float a bound value holds."""
    flat = list(leaves(value))
    return {kind: any(type(item) is kind for item in flat) for kind in (bool, int, float)}


def leaves(value: object) -> Iterable[object]:
    """Yield a bound value's numbers and bools in order."""
    if isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield value
