"""What a scheduler is told of each model, in one place per model: one look-up for each request."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Literal

from aegis_pipe.scheduling.batching import Batching, BatchLine
from aegis_pipe.scheduling.stream_pool import StreamPool

Late = Literal["drop", "run", "degrade"]
"""What becomes of a request that is late: it expires, runs all the same, or another model stands
in for its own."""


@dataclass(frozen=True, slots=True)
class StandIn:
    """The model that takes over a model's late requests."""

    model: str
    segment_count: int = 1


@dataclass(slots=True, eq=False)
class ModelRules:
    """One model's; all but `started` is settled from the start."""

    streams: int
    """Those it may use, as a bit mask."""
    never_preempts: frozenset[str]
    """Models that use its memory on a stream, itself among them."""
    late: Late = "drop"
    stand_in: StandIn | None = None
    needed_ns: int | None = None
    """The shortest time from its start to its result, where it is known."""
    line: BatchLine | None = None
    """Its waiting requests, if it batches."""
    limit: int | None = None
    """Most requests (or batches) that have started and are not over."""
    started: int = 0
    """Those, where there is a limit."""


class RuleBook(dict[str, ModelRules]):
    """The rules by model; those of a model that nobody named are made when it is first seen."""

    def __init__(
        self,
        streams: StreamPool,
        *,
        late: Mapping[str, Late],
        stand_ins: Mapping[str, StandIn],
        needed_ns: Mapping[str, int],
        concurrency: Mapping[str, int],
        batching: Mapping[str, Batching],
        memory_of: Mapping[str, Hashable],
    ) -> None:
        super().__init__()
        self._streams = streams
        for model in sorted({*late, *stand_ins, *needed_ns, *concurrency, *batching, *memory_of}):
            self[model] = ModelRules(
                streams.streams_of(model),
                _sharing(model, memory_of),
                late.get(model, "drop"),
                stand_ins.get(model),
                needed_ns.get(model),
                BatchLine(model, batching[model], needed_ns) if model in batching else None,
                concurrency.get(model),
            )
        self.batching = tuple(
            (model, rules.line) for model, rules in self.items() if rules.line is not None
        )
        """The lines of those that batch."""
        self.limited = tuple(
            (model, rules) for model, rules in self.items() if rules.limit is not None
        )

    def __missing__(self, model: str) -> ModelRules:
        rules = ModelRules(self._streams.streams_of(model), frozenset((model,)))
        return self.setdefault(model, rules)

    def at_limit(self) -> frozenset[str]:
        """Return the models of which no further request may start now."""
        return frozenset(
            model for model, rules in self.limited if rules.started >= (rules.limit or 0)
        )


def _sharing(model: str, memory_of: Mapping[str, Hashable]) -> frozenset[str]:
    if model not in memory_of:
        return frozenset((model,))
    place = memory_of[model]
    return frozenset(other for other, others in memory_of.items() if others == place)
