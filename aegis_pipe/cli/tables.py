"""Plain tables and human units for the terminal."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Align columns: the first `left` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if position < left else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), *map(line, rows)])


def milliseconds(duration_ns: int) -> str:
    """Format a duration for a column headed `ms`."""
    value = duration_ns / 1e6
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def counted(count: int, noun: str) -> str:
    """Return "1 model", "2 models"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
