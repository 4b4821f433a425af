"""Plain tables and human units for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aegis_pipe.scheduling.statistics import ModelStatistics

# Latencies in ms: arrival to result; `wait` is arrival to start, `run` start to result.
SUMMARY_HEADER: Final = (
    "model", "sent", "done", "late", "dropped", "failed", "p50", "p99", "wait p99", "run p50",
)  # fmt: skip


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


def summary_row(m: ModelStatistics) -> tuple[str, ...]:
    """Return a model's figures in the order of `SUMMARY_HEADER`; `-` where no time is known."""
    times_ns = (m.latency_p50_ns, m.latency_p99_ns, m.queue_p99_ns, m.service_p50_ns)
    return (
        m.model,
        str(m.submitted),
        str(m.completed),
        str(m.deadline_misses),
        str(m.expired + m.rejected + m.cancelled),
        str(m.failed),
        *(milliseconds(time_ns) if time_ns else "-" for time_ns in times_ns),
    )
