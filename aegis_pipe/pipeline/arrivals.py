"""When a source's items arrive: offsets from the start, in nanoseconds.

Open loop: a consumer that is late does not move later arrivals.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator

import numpy as np


def periodic(rate_hz: float) -> Iterator[int]:
    """Yield 0, 1/rate, 2/rate, ...; computed from the count, so that errors do not add up."""
    return (round(count * 1e9 / rate_hz) for count in itertools.count())


def poisson(rate_hz: float, seed: int) -> Iterator[int]:
    """Yield the arrivals of a Poisson process; the same seed gives the same arrivals."""
    generator = np.random.Generator(np.random.PCG64(seed))
    gaps = (float(generator.exponential(1e9 / rate_hz)) for _ in itertools.count())
    return (round(instant) for instant in itertools.accumulate(gaps))


def as_fast_as_possible() -> Iterator[int]:
    """Yield 0 for ever: the next item arrives when the pipeline takes it."""
    return itertools.repeat(0)


def make_arrivals(kind: str, rate_hz: float | None, seed: int, pipeline: str = "") -> Iterator[int]:
    """Return the arrival process a source declares; without a rate, as fast as possible.

    Pipelines of different names have arrivals that are independent, though their seeds be equal.
    """
    if rate_hz is None:
        return as_fast_as_possible()
    if kind == "poisson":
        return poisson(rate_hz, seed + (zlib.crc32(pipeline.encode()) << 32))
    assert kind == "periodic", kind
    return periodic(rate_hz)
