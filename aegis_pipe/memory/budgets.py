"""Check that it all fits; if not, name the smallest cause and the smallest way out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Self

from aegis_pipe.errors import BudgetExceededError
from aegis_pipe.memory.lifetimes import TensorLifetime
from aegis_pipe.memory.plan import AllocationPlan
from aegis_pipe.units import format_size


@dataclass(frozen=True, slots=True)
class BudgetPart:
    """Something that takes up a budget."""

    name: str
    """As it stands in a message: "`conv3.out`", "weights of `detector`"."""
    size_bytes: int

    def __str__(self) -> str:
        """Format as "`conv3.out` 40 MiB"."""
        return f"{self.name} {format_size(self.size_bytes)}"


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """What one model needs on the device."""

    model: str
    weights: Mapping[str, int]
    """Bytes of each stored constant, by a key of its contents: equal keys are stored once."""
    arena_bytes: int
    """Peak of its plan: activations and workspaces of one request."""
    staging_bytes: int = 0
    """Host memory that one request's inputs and outputs pass through."""
    staging_ahead_bytes: int = 0
    """Host memory that one request's inputs take while it waits; 0 if they are not staged then."""
    arena_group: int = 0
    """Models of one group share memory on a stream; those of different groups do not."""
    streams_max: int | None = None
    """Streams it may run on at most, the last ones; None: all."""
    states: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each tensor that stays from request to request."""
    fullest: str = ""
    """When its arena is fullest, and with what, for messages."""
    variant_of: str = ""
    """The model that it runs several requests of; empty for a model itself."""
    rows: int = 1
    """How many requests."""

    @property
    def family(self) -> str:
        """The manifest's model that it is, or is a variant of."""
        return self.variant_of or self.model


def nested_streams(streams_max: int | None, stream_count: int) -> range:
    """Return the streams that a model confined to so many has its memory on: the last ones."""
    return range(stream_count - min(streams_max or stream_count, stream_count), stream_count)


def _streams_of(model: ModelMemory, stream_count: int) -> range:
    return nested_streams(model.streams_max, stream_count)


@dataclass(frozen=True, slots=True)
class ArenaPlan:
    """One stream's arena: the groups' parts side by side."""

    size_bytes: int
    offsets: Mapping[int, int]
    """Where each group's part begins."""
    models: tuple[str, ...]
    """The models that determine the size, one per group (the first, if several do)."""

    @classmethod
    def build(cls, models: Sequence[ModelMemory], alignment_bytes: int) -> Self:
        """Make each group's part as large as its largest model needs."""
        offsets: dict[int, int] = {}
        setters = []
        end = 0
        for group in sorted({each.arena_group for each in models}):
            members = [each for each in models if each.arena_group == group]
            largest = max(members, key=lambda each: each.arena_bytes)
            offsets[group] = end
            setters.append(largest.model)
            end += _round_up(largest.arena_bytes, alignment_bytes)
        return cls(end, MappingProxyType(offsets), tuple(setters))


@dataclass(frozen=True, slots=True)
class StagingPlan:
    """Host memory that one stream's copies pass through.

    A request's copies wait until all of those of the request that had its part before have been
    fetched: so a part is as large as the model with the largest inputs and outputs needs. There are
    as many parts as requests can be on a stream at once.
    """

    size_bytes: int
    """Of all parts."""
    model: str
    """The model that determines the size (the first, if several do); empty if nothing does."""
    parts: int = 1

    @classmethod
    def build(cls, models: Sequence[ModelMemory], parts: int) -> Self:
        """Make room for the largest of the models that may run on the stream."""
        largest = max(models, key=lambda each: each.staging_bytes, default=None)
        if largest is None or not largest.staging_bytes:
            return cls(0, "", parts)
        return cls(parts * largest.staging_bytes, largest.model, parts)

    @classmethod
    def build_ahead(cls, models: Sequence[ModelMemory], parts: int) -> Self:
        """Make room for the inputs of so many requests, whatever their stream."""
        largest = max(models, key=lambda each: each.staging_ahead_bytes, default=None)
        if largest is None or not largest.staging_ahead_bytes:
            return cls(0, "", parts)
        return cls(parts * largest.staging_ahead_bytes, largest.model, parts)

    @property
    def part_bytes(self) -> int:
        """Of each part."""
        return self.size_bytes // self.parts


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """One device's memory: weights once, one arena per stream. Build with `build`.

    What its streams stage on the host is planned beside it (`staging`), and no part of the total.

    Models of one group share their part of an arena, which is as large as the largest of them
    needs: a stream runs one request of a group at a time, and the scheduler's exclusivity is what
    makes that sound. Groups stand side by side, so that a request of one can be paused while a
    request of another runs.
    """

    models: tuple[ModelMemory, ...]
    stream_count: int
    weights_offsets: Mapping[str, int]
    """Place of each constant in the pool of weights, by content key."""
    weights_bytes: int
    """Size of that pool, with the gaps that alignment leaves."""
    arenas: tuple[ArenaPlan, ...]
    """One per stream: only as large as the models that may run there need."""
    staging: tuple[StagingPlan, ...] = ()
    """Host memory, one piece per stream."""
    staging_ahead: StagingPlan = StagingPlan(0, "")
    """Host memory for inputs of requests that wait: of one more than streams can have at once."""
    requests_per_stream: int = 1
    """Requests that can be on a stream at once."""
    alignment_bytes: int = 1
    states_offsets: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Place of each model's states in their pool, by model and tensor."""
    states_bytes: int = 0
    """Size of that pool."""

    @classmethod
    def build(
        cls,
        models: Sequence[ModelMemory],
        *,
        stream_count: int,
        alignment_bytes: int = 1,
        requests_per_stream: int = 1,
    ) -> Self:
        """Lay the weights out in the order of their first use and size the arenas."""
        offsets: dict[str, int] = {}
        weights_end = 0
        for key, size_bytes in itertools.chain(*(each.weights.items() for each in models)):
            if key not in offsets:
                offsets[key] = _round_up(weights_end, alignment_bytes)
                weights_end = offsets[key] + size_bytes
        states_offsets: dict[tuple[str, str], int] = {}
        states_end = 0
        for model in models:
            for tensor, size_bytes in model.states.items():
                states_offsets[model.model, tensor] = states_end
                states_end += _round_up(size_bytes, alignment_bytes)
        by_stream = [
            [each for each in models if stream in _streams_of(each, stream_count)]
            for stream in range(stream_count)
        ]
        return cls(
            states_offsets=MappingProxyType(states_offsets),
            states_bytes=states_end,
            models=tuple(models),
            stream_count=stream_count,
            weights_offsets=MappingProxyType(offsets),
            weights_bytes=weights_end,
            arenas=tuple(ArenaPlan.build(here, alignment_bytes) for here in by_stream),
            staging=tuple(StagingPlan.build(here, requests_per_stream) for here in by_stream),
            staging_ahead=StagingPlan.build_ahead(models, requests_per_stream * stream_count + 1),
            requests_per_stream=requests_per_stream,
            alignment_bytes=alignment_bytes,
        )

    def arena_base(self, model: str, stream: int) -> int:
        """Return where a model's part of a stream's arena begins, in bytes."""
        return self.arenas[stream].offsets[self._memory_of(model).arena_group]

    def streams_of(self, model: str) -> range:
        """Return the streams that have room for a model.

        Sets of streams are nested, which makes the total as small as it can be: the k-th largest
        arena has to hold every model that needs k streams. They end at the last stream, because a
        model that may run anywhere takes the first one that is free.
        """
        return _streams_of(self._memory_of(model), self.stream_count)

    def _memory_of(self, model: str) -> ModelMemory:
        return next(each for each in self.models if each.model == model)

    @property
    def arena_bytes(self) -> int:
        """Size of the largest arena."""
        return max((each.size_bytes for each in self.arenas), default=0)

    @property
    def arenas_bytes(self) -> int:
        """All arenas together."""
        return sum(each.size_bytes for each in self.arenas)

    @property
    def total_bytes(self) -> int:
        """Everything on the device."""
        return self.weights_bytes + self.arenas_bytes + self.states_bytes

    @property
    def staging_bytes(self) -> int:
        """Host memory of all streams and the next requests; 0 where copies go straight."""
        return sum(each.size_bytes for each in (*self.staging, self.staging_ahead))

    @property
    def separate_bytes(self) -> int:
        """What it would take if every model had its own weights and arenas on its streams."""
        return sum(
            sum(each.weights.values())
            + len(_streams_of(each, self.stream_count)) * each.arena_bytes
            + sum(each.states.values())
            for each in self.models
        )

    @property
    def saved_bytes(self) -> int:
        """What sharing saves against that; alignment gaps alone can make it slightly negative."""
        return self.separate_bytes - self.total_bytes

    @property
    def parts(self) -> tuple[BudgetPart, ...]:
        """The total, part by part: new weights per model, arena per stream, states, gaps."""
        return self._parts({})

    @property
    def staging_parts(self) -> tuple[BudgetPart, ...]:
        """What is staged on the host, stream by stream, and for the requests that are next."""
        ahead = self.staging_ahead
        pieces = [(f"of stream {stream}", each) for stream, each in enumerate(self.staging)]
        return tuple(
            BudgetPart(f"staging {what} (set by `{each.model}`)", each.size_bytes)
            for what, each in (*pieces, (f"of the next {ahead.parts} requests", ahead))
            if each.size_bytes
        )

    @property
    def explained_parts(self) -> tuple[BudgetPart, ...]:
        """The same, with the step and the tensors that make each arena as large as it is."""
        fullest = {each.model: each.fullest for each in self.models if each.fullest}
        return self._parts(
            {model: f", fullest at {explanation}" for model, explanation in fullest.items()}
        )

    def _parts(self, explanations: Mapping[str, str]) -> tuple[BudgetPart, ...]:
        seen: set[str] = set()
        parts = []
        for each in self.models:
            new = sum(size for key, size in each.weights.items() if key not in seen)
            seen.update(each.weights)
            parts.append(BudgetPart(f"weights of `{each.model}`", new))
        parts.append(BudgetPart("gaps for alignment", self.weights_bytes - _total(parts)))
        for stream, arena in enumerate(self.arenas):
            setters = " + ".join(f"`{x}`{explanations.get(x, '')}" for x in arena.models)
            name = f"arena of stream {stream} (set by {setters})"
            parts.append(BudgetPart(name, arena.size_bytes))
        for each in self.models:
            size = sum(_round_up(size, self.alignment_bytes) for size in each.states.values())
            parts.append(BudgetPart(f"state of `{each.model}`", size))
        return tuple(part for part in parts if part.size_bytes)


def check_budget(
    budget_bytes: int,
    parts: Sequence[BudgetPart],
    *,
    context: str = "",
    at: str = "",
    hint: str = "",
) -> None:
    """Raise BudgetExceededError if the parts add up to more than the budget.

    The message names the fewest parts that exceed it by themselves; `at` says when
    ("at step 12 (`conv3`)"). Without a hint, it says what to raise `memory_budget` to.
    """
    needed_bytes = _total(parts)
    if needed_bytes <= budget_bytes:
        return
    budget, needed = _distinct(budget_bytes, needed_bytes)
    where = f" {at}" if at else ""
    cause = " + ".join(map(str, smallest_cause(budget_bytes, parts)))
    raise BudgetExceededError(
        f"budget {budget}, needs {needed}{where}: {cause}",
        context=context,
        hint=hint or _raise_hint(needed_bytes),
    )


def smallest_cause(budget_bytes: int, parts: Sequence[BudgetPart]) -> list[BudgetPart]:
    """Return the fewest parts that together exceed the budget: the largest ones."""
    cause: list[BudgetPart] = []
    for part in sorted(parts, key=lambda part: -part.size_bytes):
        if _total(cause) > budget_bytes:
            break
        cause.append(part)
    return cause


def check_model_budget(
    model: str,
    budget_bytes: int,
    *,
    lifetimes: Sequence[TensorLifetime],
    plan: AllocationPlan,
    step_names: Sequence[str],
    weights_bytes: int = 0,
    display_names: Mapping[Hashable, str] | None = None,
) -> None:
    """Raise BudgetExceededError if a model's weights and arena do not fit its budget.

    Names the tensors that are alive at the fullest step; `display_names` replaces ids that mean
    little to a reader.
    """
    step, alive = live_at_peak(lifetimes)
    names = display_names or {}
    parts = [
        BudgetPart(f"`{names.get(each.tensor_id, each.tensor_id)}`", each.size_bytes)
        for each in alive
    ]
    parts.append(BudgetPart("gaps of the plan", plan.peak_bytes - _total(parts)))
    parts.append(BudgetPart("weights", weights_bytes))
    name = f" (`{step_names[step]}`)" if step < len(step_names) else ""
    check_budget(
        budget_bytes,
        [part for part in parts if part.size_bytes],
        context=f"model `{model}`",
        at=f"at step {step}{name}",
        hint=f"{_raise_hint(plan.peak_bytes + weights_bytes)} for model `{model}`",
    )


def live_at_peak(lifetimes: Sequence[TensorLifetime]) -> tuple[int, list[TensorLifetime]]:
    """Return the first step with the largest sum of live sizes, and who is alive there."""
    changes = sorted(
        [(each.first, each.size_bytes) for each in lifetimes]
        + [(each.end, -each.size_bytes) for each in lifetimes]
    )
    live_bytes = peak_bytes = peak_step = 0
    for step, group in itertools.groupby(changes, key=lambda change: change[0]):
        live_bytes += sum(size for _, size in group)
        if live_bytes > peak_bytes:
            peak_bytes, peak_step = live_bytes, step
    return peak_step, [each for each in lifetimes if each.first <= peak_step < each.end]


Measure = Callable[[DevicePlan], int]
"""What of a plan shall become smaller, in bytes."""

MoreSavings = Callable[[DevicePlan, Measure], Sequence[BudgetPart]]
"""Further ways to a smaller plan, which only who made the models can plan."""


def _device_bytes(plan: DevicePlan) -> int:
    return plan.total_bytes


def _staging_bytes(plan: DevicePlan) -> int:
    return plan.staging_bytes


def check_device_budget(
    plan: DevicePlan,
    budget_bytes: int,
    *,
    device: str = "",
    more_savings: MoreSavings | None = None,
) -> None:
    """Raise BudgetExceededError if a device's plan does not fit its budget.

    The hint offers a larger budget, and what else would help, with the bytes each saves.
    """
    if plan.total_bytes <= budget_bytes:
        return
    ways = [_raise_hint(plan.total_bytes), *_ways(plan, budget_bytes, _device_bytes, more_savings)]
    check_budget(
        budget_bytes,
        plan.explained_parts,
        context=f"device `{device}`" if device else "device",
        hint=", or ".join(ways),
    )


def check_staging_budget(
    plan: DevicePlan,
    budget_bytes: int,
    *,
    device: str = "",
    more_savings: MoreSavings | None = None,
) -> None:
    """Raise BudgetExceededError if what is staged on the host does not fit its own budget."""
    if plan.staging_bytes <= budget_bytes:
        return
    raising = f"raise `staging_budget` to {format_size_at_least(plan.staging_bytes)}"
    ways = [raising, *_ways(plan, budget_bytes, _staging_bytes, more_savings)]
    check_budget(
        budget_bytes,
        plan.staging_parts,
        context=f"host staging of device `{device}`" if device else "host staging",
        hint=", or ".join(ways),
    )


def _ways(
    plan: DevicePlan, budget_bytes: int, measure: Measure, more_savings: MoreSavings | None
) -> list[str]:
    more = more_savings(plan, measure) if more_savings else ()
    found = [*savings(plan, budget_bytes, measure), *more]
    excess_bytes = measure(plan) - budget_bytes
    return [
        f"{way.name}, which saves {format_size(way.size_bytes)}"
        + ("" if way.size_bytes >= excess_bytes else " (not enough alone)")
        for way in sorted(found, key=lambda way: -way.size_bytes)[:_SAVINGS_MAX]
    ]


_SAVINGS_MAX = 5


def savings(
    plan: DevicePlan, budget_bytes: int, measure: Measure = _device_bytes
) -> list[BudgetPart]:
    """Return what would make a plan smaller, the largest saving first, by planning again.

    As few streams less as are enough (one, if none are); batches only as much smaller as is enough
    (none, if that is not); each of the models that determine an arena or a stream's staging on one
    stream only; each of them left out, which is what a smaller batch or another place for the model
    can save at most.
    """
    excess_bytes = measure(plan) - budget_bytes

    def again(models: Sequence[ModelMemory], stream_count: int) -> int:
        other = DevicePlan.build(
            models,
            stream_count=stream_count,
            alignment_bytes=plan.alignment_bytes,
            requests_per_stream=plan.requests_per_stream,
        )
        return measure(plan) - measure(other)

    ways = []
    if plan.stream_count > 1:
        saved = {count: again(plan.models, count) for count in range(plan.stream_count - 1, 0, -1)}
        count = _mildest(saved, excess_bytes)
        ways.append(BudgetPart(f"lower `streams.count` to {count}", saved[count]))
    families = {each.model: each.family for each in plan.models}
    setters = [model for arena in plan.arenas for model in arena.models]
    setters += [each.model for each in plan.staging if each.model]
    for name in dict.fromkeys(families[each] for each in setters):
        sizes = sorted({each.rows for each in plan.models if each.family == name}, reverse=True)
        if len(sizes) > 1:
            saved = {
                rows: again(_with_rows(plan.models, name, rows), plan.stream_count)
                for rows in sizes[1:]
            }
            rows = _mildest(saved, excess_bytes)
            what = f"lower `batching.max_batch` to {rows}" if rows > 1 else "leave `batching` out"
            ways.append(BudgetPart(f"{what} for model `{name}`", saved[rows]))
        if len(plan.streams_of(name)) > 1:
            confined = [
                replace(each, streams_max=1) if each.family == name else each
                for each in plan.models
            ]
            what = f'set `streams.affinity = "memory"` and `concurrency = 1` for model `{name}`'
            ways.append(BudgetPart(what, again(confined, plan.stream_count)))
        others = [each for each in plan.models if each.family != name]
        if others:
            what = f"move model `{name}` elsewhere"
            ways.append(BudgetPart(what, again(others, plan.stream_count)))
    useful = [way for way in ways if way.size_bytes > 0]
    return sorted(useful, key=lambda way: -way.size_bytes)[:_SAVINGS_MAX]


def _mildest(saved: Mapping[int, int], excess_bytes: int) -> int:
    """Return the first key, in descending order, that saves enough; the last if none does."""
    return next((key for key, size in saved.items() if size >= excess_bytes), min(saved))


def _with_rows(models: Sequence[ModelMemory], name: str, rows_max: int) -> list[ModelMemory]:
    return [each for each in models if each.family != name or each.rows <= rows_max]


def _raise_hint(needed_bytes: int) -> str:
    return f"raise `memory_budget` to {format_size_at_least(needed_bytes)}"


def format_size_at_least(n: int) -> str:
    """Format a size rounded up to what `format_size` can say exactly: it is always enough."""
    unit = 1
    while n >= 1000 * unit:
        unit *= 1024
    return format_size(_round_up(n, unit))


def _distinct(budget_bytes: int, needed_bytes: int) -> tuple[str, str]:
    """Format both so that the difference shows, in plain bytes if need be."""
    budget, needed = format_size(budget_bytes), format_size(needed_bytes)
    return (budget, needed) if budget != needed else (f"{budget_bytes} B", f"{needed_bytes} B")


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _total(parts: Sequence[BudgetPart]) -> int:
    return sum(part.size_bytes for part in parts)
