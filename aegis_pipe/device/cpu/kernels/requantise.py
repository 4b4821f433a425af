"""Integer sums held in floating point, and their way back to integers.

Products of 8-bit integers are summed by floating-point matrix products: exact, as long as no
partial sum leaves the integers that the float dtype holds without gaps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aegis_pipe.device.cpu.kernels.planned import FLOAT32

_FLOAT64 = np.dtype(np.float64)
_LEVELS = 255
"""Largest distance of an 8-bit integer from its zero point."""


def exact_float(depth: int, weights: np.ndarray | None) -> np.dtype:
    """Return the float dtype whose sums over `depth` products are exact.

    `weights`: centred constant weights int32[outputs, depth], if known; they tighten the bound.
    """
    bound = depth * _LEVELS * _LEVELS
    if weights is not None and weights.size:
        bound = _LEVELS * int(np.abs(weights).sum(axis=1, dtype=np.int64).max())
    return FLOAT32 if bound < 1 << 24 else _FLOAT64


def subtract_zero(data: np.ndarray, zero: np.ndarray | None, out: np.ndarray) -> None:
    """Write data minus zero point, computed in the float dtype of `out`."""
    if zero is None:
        np.copyto(out, data)
    else:
        np.subtract(data, zero, out=out, dtype=out.dtype)


class IntegerResult:
    """Writes exact sums as the integers they are."""

    def prepare(self) -> None:
        """Get ready; once a call, before `finish`."""

    def finish(self, sums: np.ndarray, out: np.ndarray) -> None:
        """Write the result of these sums, which may be destroyed."""
        np.copyto(out, sums, casting="unsafe")


@dataclass(frozen=True, slots=True, eq=False)
class Requantised(IntegerResult):
    """Writes exact sums on the scale of a quantised result.

    result = saturate(round_half_even((sum + bias) * multiplier) + zero), where
    multiplier = data scale * weights scale / result scale, in float32.
    """

    multiplier: np.ndarray
    """Scratch for the multiplier; broadcasts to the sums."""
    scales: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Scales of data, weights and result; each broadcasts to the multiplier."""
    zero: np.ndarray
    bias: np.ndarray | None = None
    levels: tuple[int, ...] = ()
    """Lowest and highest level of the result; those of its type if there are none."""

    def prepare(self) -> None:
        """Compute the multiplier."""
        data, weights, result = self.scales
        np.multiply(data, weights, out=self.multiplier)
        np.divide(self.multiplier, result, out=self.multiplier)

    def finish(self, sums: np.ndarray, out: np.ndarray) -> None:
        """Rescale and saturate; `sums` is destroyed."""
        if self.bias is not None:
            np.add(sums, self.bias, out=sums, dtype=sums.dtype, casting="unsafe")
        np.multiply(sums, self.multiplier, out=sums)
        np.rint(sums, out=sums)
        np.add(sums, self.zero, out=sums, dtype=sums.dtype)
        limits = np.iinfo(out.dtype)
        low, high = self.levels or (limits.min, limits.max)
        np.clip(sums, low, high, out=sums)
        np.copyto(out, sums, casting="unsafe")
