"""Numbers that JSON has no word for."""

from __future__ import annotations


def json_number(value: float) -> float | str:
    """Return a float, or the name protobuf's JSON gives it where JSON has no number for it."""
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def from_json_number(value: float | str) -> float:
    """Return what `json_number` was given."""
    return float(value)
