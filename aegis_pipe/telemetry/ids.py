"""Trace and span ids that follow from what they name, so that links can be made in advance."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np

_SPAN_ID_MASK = 2**64 - 1
_ODD_STEP = 0x9E3779B97F4A7C15
"""2^64 / golden ratio, odd: multiples of it visit every 64-bit number (Knuth, TAOCP 3, 6.4)."""

_TRACEPARENT = re.compile("([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


class SpanReference(NamedTuple):
    """What it takes to name a span from elsewhere."""

    trace_id: int
    """128 bits, not 0."""
    span_id: int
    """64 bits, not 0."""


class Caller(NamedTuple):
    """What a caller told about its own trace."""

    span: SpanReference
    is_sampled: bool


class Identifiers:
    """Derives the ids of one run's traces; the same run id gives the same ids."""

    def __init__(self, run_id: bytes) -> None:
        self.run_id = run_id

    def root(self, kind: str, key: object) -> SpanReference:
        """Return the ids of the first span of what `kind` and `key` name."""
        name = f"{kind}\0{key}".encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(name, key=self.run_id, digest_size=24).digest()
        return SpanReference(
            int.from_bytes(digest[:16], "big") or 1, int.from_bytes(digest[16:], "big") or 1
        )


def span_id_at(root_span_id: int, position: int) -> int:
    """Return the id of the span at a position below a root (which is position 0)."""
    return (root_span_id + position * _ODD_STEP) & _SPAN_ID_MASK or 1


def span_ids_from(first_id: int, count: int) -> np.ndarray:
    """Return the ids of as many positions in a row, the first of which is given, as uint64."""
    ids: np.ndarray = _steps(count) + np.uint64(first_id)
    if not ids.all():
        ids[ids == 0] = 1
    return ids


@lru_cache(maxsize=1_024)
def _steps(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint64) * np.uint64(_ODD_STEP)


def is_within_ratio(trace_id: int, ratio: float) -> bool:
    """Return whether a trace belongs to the kept share, by its id's lower 64 bits."""
    return (trace_id & _SPAN_ID_MASK) < round(ratio * 2**64)


def parse_traceparent(text: str) -> Caller | None:
    """Read a W3C `traceparent`; None if there is none or it is not valid."""
    match = _TRACEPARENT.fullmatch(text)
    if match is None:
        return None
    version, trace_id, span_id, flags = (int(part, 16) for part in match.groups())
    if version == 0xFF or not trace_id or not span_id:
        return None
    return Caller(SpanReference(trace_id, span_id), bool(flags & 1))


def format_traceparent(caller: Caller) -> str:
    """Write a W3C `traceparent` (w3.org/TR/trace-context, version 00)."""
    return f"00-{caller.span.trace_id:032x}-{caller.span.span_id:016x}-{int(caller.is_sampled):02x}"
