"""Of several ways to compute the same thing, the fastest by measurement, remembered on disk.

Only ways that give the same bits every time are offered; which one is taken can still differ
between two machines, so the choice is kept by GPU model and library version, and is part of what a
cache folder says about a deployment.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.captured import captured, run
from aegis_pipe.device.cuda.compiler import DiskCache

_RUNS_MIN, _RUNS_MAX = 10, 40
_REPEATS = 5
_METHOD = "weights from memory, repeated, filled by kernels"
"""How is measured; part of what choices are kept by."""
_PATTERN = (np.random.default_rng(0).integers(0, 1 << 16, 1 << 20, np.uint16) & 0xBBFF).view(
    np.uint8
)
"""Of these bits every float type makes numbers from -1 to 1; sums in another order differ."""
_TRIALS = 8
_COMPARED_BYTES_MAX = 8 << 20


class RememberedChoices:
    """Choices by what they are for, the model of GPU and the version of the library that has them.

    What was once found or kept stays as it is as long as the device is open: a process that opens
    beside this one measures, too, and may keep another choice in the same place.
    """

    def __init__(self, cache: DiskCache, model: str) -> None:
        self._cache = cache
        self._model = model
        self._known: dict[str, dict[str, object]] = {}

    def find(self, what: object, library: str) -> dict[str, object] | None:
        """Return what was chosen, by this process or before; None if nothing was."""
        key = self._key(what, library)
        if key not in self._known:
            found = _choice(self._cache.read(key))
            if found is None:
                return None
            self._known[key] = found
        return self._known[key]

    def keep(self, what: object, library: str, choice: dict[str, object]) -> None:
        """Keep a choice, of values that JSON knows."""
        key = self._key(what, library)
        self._known[key] = choice
        self._cache.write(key, json.dumps(choice).encode())

    def _key(self, what: object, library: str) -> str:
        text = f"{what!r} on {self._model} by {library}, {_METHOD}"
        return f"{hashlib.sha256(text.encode()).hexdigest()}.choice.json"


def _choice(content: bytes | None) -> dict[str, object] | None:
    try:
        found = None if content is None else json.loads(content)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class Tuner:
    """Measures on a stream of its own; scratch memory is given back after each measurement."""

    def __init__(
        self,
        cache: DiskCache,
        model: str,
        cache_bytes: int,
        replace_fills: Callable[[int], None],
    ) -> None:
        """`cache_bytes` is the size of the GPU's own cache; fills are replaced as in requests."""
        self._cache_bytes = cache_bytes
        self._choices = RememberedChoices(cache, model)
        self._replace_fills = replace_fills
        self._stream = driver.create_stream(0)
        self._events = (driver.create_event(), driver.create_event())

    def remembered(self, what: object, library: str) -> dict[str, object] | None:
        """Return what was chosen before for this GPU and library version."""
        return self._choices.find(what, library)

    def remember(self, what: object, library: str, choice: dict[str, object]) -> None:
        """Keep a choice."""
        self._choices.keep(what, library, choice)

    def fastest(
        self,
        ways: Iterable[Callable[[int, Sequence[int]], None]],
        sizes_bytes: Sequence[int],
        *,
        result: int,
        weights: int | None = None,
        patience: int | None = None,
    ) -> tuple[int, float] | None:
        """Return the position of the fastest way and its microseconds.

        Only a way counts whose `result`, one of the operands, is the same bits in every trial: not
        all that libraries call deterministic is. None if there is none.

        Each way enqueues itself on a stream, given addresses of scratch memory of these sizes. The
        operand at `weights` is another one at every run, so that it comes from memory and not from
        the GPU's cache, as it does between the other weights of a model.

        Ways are taken one at a time, which is when they may be built; after `patience` that were
        not faster than the best so far, no more are.
        """
        copies = 1
        if weights is not None and sizes_bytes[weights]:
            copies = min(_RUNS_MAX, -(-2 * self._cache_bytes // sizes_bytes[weights]))
        steps = [-(-max(256, size) // 256) * 256 for size in sizes_bytes]
        totals = [
            step * (copies if position == weights else 1) for position, step in enumerate(steps)
        ]
        addresses: list[int] = []
        try:
            for total in totals:
                addresses.append(driver.allocate(total))
                self._fill(addresses[-1], total)
            runs = [
                [
                    address + (run % copies * steps[position] if position == weights else 0)
                    for position, address in enumerate(addresses)
                ]
                for run in range(max(_RUNS_MIN, copies))
            ]
            tried, times = [], []
            for way in ways:
                tried.append(way)
                times.append(self._measure(way, runs))
                if patience is not None and len(times) - times.index(min(times)) > patience:
                    break
            for best in sorted(range(len(tried)), key=lambda position: (times[position], position)):
                if self._repeats(tried[best], runs[0], result, sizes_bytes[result]):
                    return best, times[best]
        finally:
            driver.synchronise_stream(self._stream)
            for address in addresses:
                driver.free(address)
        return None

    def close(self) -> None:
        """Release stream and events."""
        for event in self._events:
            driver.destroy_event(event)
        driver.destroy_stream(self._stream)

    def _fill(self, address: int, size_bytes: int) -> None:
        """Fill memory with the pattern, over and over."""
        filled = min(size_bytes, _PATTERN.size)
        driver.copy_to_device(address, _PATTERN.ctypes.data, filled)
        if filled == size_bytes:
            return

        def copy() -> None:
            done = filled
            while done < size_bytes:
                more = min(done, size_bytes - done)
                driver.enqueue_copy(address + done, address, more, self._stream)
                done += more

        run(self._stream, copy)

    def _repeats(
        self,
        way: Callable[[int, Sequence[int]], None],
        addresses: Sequence[int],
        result: int,
        size_bytes: int,
    ) -> bool:
        """Return whether a way gives the same bits every time."""
        first, found = (np.empty(min(size_bytes, _COMPARED_BYTES_MAX), np.uint8) for _ in range(2))
        launchable = captured(
            self._stream, lambda: way(self._stream, addresses), self._replace_fills
        )
        try:
            for trial in range(_TRIALS):
                driver.launch_graph(launchable, self._stream)
                driver.synchronise_stream(self._stream)
                target = found if trial else first
                driver.copy_to_host(target.ctypes.data, addresses[result], target.size)
                if trial and not np.array_equal(first, found):
                    return False
        finally:
            driver.destroy_graph(launchable)
        return True

    def _measure(
        self, way: Callable[[int, Sequence[int]], None], runs: Sequence[Sequence[int]]
    ) -> float:
        def enqueue() -> None:
            for addresses in runs:
                way(self._stream, addresses)

        launchable = captured(self._stream, enqueue, self._replace_fills)
        first, last = self._events
        best = float("inf")
        try:
            for _ in range(_REPEATS):
                driver.record_event(first, self._stream)
                driver.launch_graph(launchable, self._stream)
                driver.record_event(last, self._stream)
                driver.synchronise_event(last)
                best = min(best, driver.elapsed_ns(first, last) / 1e3 / len(runs))
        finally:
            driver.destroy_graph(launchable)
        return best


class Choices:
    """Choices that others measured, kept beside the tuner's own."""

    def __init__(self, tuner: Tuner, libraries: str) -> None:
        """`libraries` names all whose versions matter."""
        self._tuner = tuner
        self._libraries = libraries

    def remembered(self, what: str) -> dict[str, object] | None:
        """Return what was chosen before for the same `what`, if anything."""
        return self._tuner.remembered(what, self._libraries)

    def remember(self, what: str, choice: Mapping[str, object]) -> None:
        """Keep a choice, of values that JSON knows."""
        self._tuner.remember(what, self._libraries, dict(choice))
