"""Quantities as people write them."""

from __future__ import annotations

_SIZE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def format_size(n: int) -> str:
    """Format bytes with a binary unit and at most 4 significant digits: `71 MiB`, `1.5 GiB`."""
    value, unit = float(n), 0
    # 1023.95 would be printed as "1024": one of the next unit is what is meant.
    while abs(value) >= 1023.95 and unit < len(_SIZE_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    digits = f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{digits} {_SIZE_UNITS[unit]}"
