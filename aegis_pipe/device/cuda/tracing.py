"""What CUPTI, the driver's own profiler, says of kernels: what stamps are held against.

Python's `cupti` is a package of its own (`cupti-python`, under NVIDIA's licence), wanted for
nothing else. Its records cost far more than stamps, so that nothing but a comparison ever asks for
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.stamps import STAMP
from aegis_pipe.errors import PermanentError

_BUFFER_BYTES = 8 << 20
_FORCED = 1
"""Records that are incomplete, too: nothing stays behind for the next time."""


class KernelRecord(NamedTuple):
    """A kernel that ran, by CUPTI's clock."""

    start_ns: int
    end_ns: int
    name: str


class KernelTracer:
    """Watches every kernel of this process while it is entered. Made before, so as to refuse."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._records: list[KernelRecord] = []
        try:
            from cupti import cupti
        except (ImportError, RuntimeError) as error:
            raise self._unavailable(error) from error
        self._cupti: Any = cupti
        self._kind = cupti.ActivityKind.CONCURRENT_KERNEL

    def take(self) -> list[list[int]]:
        """Wait for the device; return the durations of the kernels between each two stamps."""
        driver.synchronise_context()
        try:
            self._cupti.activity_flush_all(0)
            self._cupti.activity_flush_all(_FORCED)
        except (RuntimeError, self._cupti.cuptiError) as error:
            raise self._unavailable(error) from error
        records, self._records = self._records, []
        return between_stamps(records)

    def __enter__(self) -> Self:
        driver.give_up_lock()
        try:
            self._cupti.activity_register_callbacks(self._buffer_wanted, self._buffer_full)
            self._cupti.activity_enable(self._kind)
        except (RuntimeError, self._cupti.cuptiError) as error:
            raise self._unavailable(error) from error
        return self

    def __exit__(self, *exc: object) -> None:
        self._cupti.activity_disable(self._kind)

    def _buffer_wanted(self) -> tuple[int, int]:
        """Return a buffer's size, and 0: as many records as it holds."""
        return _BUFFER_BYTES, 0

    def _buffer_full(self, activities: Sequence[Any]) -> None:
        # Read at once: they lie in the buffer.
        self._records += [
            KernelRecord(int(each.start), int(each.end), str(each.name))
            for each in activities
            if each.kind == self._kind
        ]

    def _unavailable(self, error: Exception) -> PermanentError:
        return PermanentError(
            f"CUPTI can not be asked about kernels: {error}",
            context=self._device,
            hint="install it with `pip install 'cupti-python>=13,<14'` (under NVIDIA's licence, "
            "and so no part of the extra `cuda`), and end other profilers of this process",
        )


def between_stamps(records: Sequence[KernelRecord]) -> list[list[int]]:
    """Return the durations of the kernels between each two stamps, in order of their start."""
    gaps: list[list[int]] = []
    for each in sorted(records):
        if not each.start_ns < each.end_ns:
            # CUPTI has no time of it.
            continue
        if each.name == STAMP:
            gaps.append([])
        elif gaps:
            gaps[-1].append(each.end_ns - each.start_ns)
    return gaps[:-1]
