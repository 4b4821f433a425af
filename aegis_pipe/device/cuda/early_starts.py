"""Which kernels of a recorded chain may begin while the one before them still runs.

Programmatic dependent launch: a kernel says when the next may be started, and the next waits by
itself until all it needs is there, so that launching and fetching constants cost no time. Our own
kernels wait for the kernel before them to have ended before they read anything but constants, and
only then let the next one begin. Of libraries' kernels this much is known: they wait before they
read the operand that is multiplied, and before they write; but not always before they read what is
added, and it is not known when they let the next one begin.

So a library's kernel that reads something computed beside that operand may begin early if that was
complete when the kernel before it let anybody begin: the kernel before did not write it, and either
is one of our own or did not itself begin early.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Span = tuple[int, int]
"""Addresses, from the first to behind the last."""


@dataclass(frozen=True, slots=True)
class RecordedKernel:
    """A node of a recorded chain."""

    starts_early: bool
    """It was recorded so that it begins before the one ahead has ended."""
    waits: bool = False
    """It is one of our own that waits, and lets the next begin after that."""
    unwaited: tuple[Span, ...] = ()
    """What it may read without waiting, and that is not constant."""
    written: tuple[Span, ...] = ()
    """What the call it belongs to writes."""


def to_be_ordered(kernels: Sequence[RecordedKernel]) -> list[int]:
    """Return the positions of those that have to begin after the one before has ended.

    Also of those that gain nothing by beginning early: our own behind a kernel that does not say
    when the next may begin.
    """
    ordered: list[int] = []
    for at, kernel in enumerate(kernels):
        if not kernel.starts_early or at == 0:
            continue
        before = kernels[at - 1]
        if kernel.waits:
            keeps = before.waits or before.starts_early
        elif kernel.unwaited:
            is_fully_ordered = not before.starts_early or (ordered[-1:] == [at - 1])
            keeps = (before.waits or is_fully_ordered) and not _meet(
                kernel.unwaited, before.written
            )
        else:
            keeps = True
        if not keeps:
            ordered.append(at)
    return ordered


def _meet(some: Sequence[Span], others: Sequence[Span]) -> bool:
    return any(a < d and c < b for a, b in some for c, d in others)
