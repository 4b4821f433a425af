"""Execution times as they were measured, for simulated requests to draw from."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from aegis_pipe.analysis.in_place import IDLE_NS, REST_NS
from aegis_pipe.scheduling.request import ExecutionRequest


@dataclass(frozen=True, slots=True)
class ModelTimes:
    """A model's measured times."""

    segment_medians_ns: tuple[int, ...]
    totals_ns: tuple[int, ...]
    rested_ns: tuple[int, ...] = ()
    """`totals_ns` of requests whose stream has rested for a while, or has run another model."""
    idle_ns: tuple[int, ...] = ()
    """`totals_ns` of requests whose stream has been idle for longer."""
    beside: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """`totals_ns` while other streams run another model."""


RUN_OF_LUCK = 256
"""Requests for which the order of measured ranks is kept; long enough for what slows a machine
down to pass."""


def ranks_in_runs(ranks: Sequence[float], draw: Callable[[], float]) -> Iterator[float]:
    """Yield measured ranks in their order, from another random place on every `RUN_OF_LUCK`.

    The moving block bootstrap (Kuensch, The Annals of Statistics 17, 1989): what follows upon one
    another stays together, so that sums over several requests vary as much as they were seen to.
    """
    while True:
        first = int(draw() * len(ranks))
        for number in range(first, first + RUN_OF_LUCK):
            yield ranks[number % len(ranks)]


class MeasuredTimes:
    """Draws a request's total from what was measured, and shares it out among its segments.

    A request, or batch, keeps its luck: the rank in the distribution is drawn once, and how
    long its stream had rested, and whether it had run another model, decides from which one. With
    `ranks`, as they were measured one after the other, luck lasts as long as it did there. What
    other streams run when a segment starts can make that segment slower: it then comes from the
    distribution beside them.
    """

    def __init__(
        self, models: Mapping[str, ModelTimes], seed: int, ranks: Sequence[float] = ()
    ) -> None:
        draw = random.Random(seed).random
        self._draw = ranks_in_runs(ranks, draw).__next__ if ranks else draw
        self._models = models
        # By stream and model: it has one request or batch of a model at a time, whoever leads it.
        self._luck: dict[tuple[int | None, str], tuple[float, Sequence[int]]] = {}
        # Per stream when it will have done what it was given.
        self._busy_until_ns: dict[int | None, int] = {}
        # And which model it was last given.
        self._last: dict[int | None, str] = {}
        self._shares = {
            name: [each / sum(model.segment_medians_ns) for each in model.segment_medians_ns]
            for name, model in models.items()
        }

    def __call__(self, request: ExecutionRequest, segment: int, beside: Sequence[str]) -> int:
        """Return how long a segment holds its stream."""
        name, stream, start_ns = request.model, request.stream, request.launched_ns
        model, busy_until_ns = self._models[name], self._busy_until_ns.get(stream, 0)
        totals: Sequence[int]
        if segment == 0:
            rank, totals = self._draw(), model.totals_ns
            rest_ns = start_ns - busy_until_ns
            if model.idle_ns and rest_ns >= IDLE_NS:
                totals = model.idle_ns
            elif model.rested_ns and (rest_ns >= REST_NS or self._last.get(stream) != name):
                totals = model.rested_ns
            if request.segment_count > 1:
                self._luck[stream, name] = (rank, totals)
        else:
            rank, totals = self._luck[stream, name]
        self._last[stream] = name
        total_ns = totals[int(rank * len(totals))]
        for other in beside:
            row = model.beside.get(other)
            if row is not None:
                slower_ns = row[int(rank * len(row))]
                if slower_ns > total_ns:
                    total_ns = slower_ns
        # A batch is taken to need what its requests would one after the other: no less.
        share = self._shares[name][segment]
        duration_ns = int(total_ns * request.batch_size * share + 0.5) or 1
        if busy_until_ns > start_ns:
            start_ns = busy_until_ns
        self._busy_until_ns[stream] = start_ns + duration_ns
        return duration_ns
