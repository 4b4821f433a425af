"""Check that it all fits; if not, name the smallest cause and the smallest way out."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
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
    """Buffers for its inputs and outputs outside the arena."""
    arena_group: int = 0
    """Models of one group share memory on a stream; those of different groups do not."""
    streams_max: int | None = None
    """Streams it may run on at most, the last ones; None: all."""
    states: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each tensor that stays from request to request."""


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
class DevicePlan:
    """One device's memory: weights once, one arena per stream, staging. Build with `build`.

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
    staging_bytes: int
    alignment_bytes: int = 1
    states_offsets: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Place of each model's states in their pool, by model and tensor."""
    states_bytes: int = 0
    """Size of that pool."""

    @classmethod
    def build(
        cls, models: Sequence[ModelMemory], *, stream_count: int, alignment_bytes: int = 1
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
        return cls(
            states_offsets=MappingProxyType(states_offsets),
            states_bytes=states_end,
            models=tuple(models),
            stream_count=stream_count,
            weights_offsets=MappingProxyType(offsets),
            weights_bytes=weights_end,
            arenas=tuple(
                ArenaPlan.build(
                    [each for each in models if stream in _streams_of(each, stream_count)],
                    alignment_bytes,
                )
                for stream in range(stream_count)
            ),
            staging_bytes=sum(each.staging_bytes for each in models),
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
        return self.weights_bytes + self.arenas_bytes + self.states_bytes + self.staging_bytes

    @property
    def separate_bytes(self) -> int:
        """What it would take if every model had its own weights and arenas on its streams."""
        return sum(
            sum(each.weights.values())
            + len(_streams_of(each, self.stream_count)) * each.arena_bytes
            + each.staging_bytes
            + sum(each.states.values())
            for each in self.models
        )

    @property
    def saved_bytes(self) -> int:
        """What sharing saves against that; alignment gaps alone can make it slightly negative."""
        return self.separate_bytes - self.total_bytes

    @property
    def parts(self) -> tuple[BudgetPart, ...]:
        """The total, part by part: new weights per model, arena per stream, staging, gaps."""
        seen: set[str] = set()
        parts = []
        for each in self.models:
            new = sum(size for key, size in each.weights.items() if key not in seen)
            seen.update(each.weights)
            parts.append(BudgetPart(f"weights of `{each.model}`", new))
        parts.append(BudgetPart("gaps for alignment", self.weights_bytes - _total(parts)))
        for stream, arena in enumerate(self.arenas):
            setters = " + ".join(f"`{model}`" for model in arena.models)
            name = f"arena of stream {stream} (set by {setters})"
            parts.append(BudgetPart(name, arena.size_bytes))
        for each in self.models:
            size = sum(_round_up(size, self.alignment_bytes) for size in each.states.values())
            parts.append(BudgetPart(f"state of `{each.model}`", size))
        parts += [BudgetPart(f"staging of `{x.model}`", x.staging_bytes) for x in self.models]
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


def check_device_budget(plan: DevicePlan, budget_bytes: int, *, device: str = "") -> None:
    """Raise BudgetExceededError if a device's plan does not fit its budget.

    The hint offers a larger budget, and what else would help, with the bytes each saves.
    """
    if plan.total_bytes <= budget_bytes:
        return
    ways = [_raise_hint(plan.total_bytes)]
    for way in savings(plan, budget_bytes):
        enough = "" if plan.total_bytes - way.size_bytes <= budget_bytes else " (not enough alone)"
        ways.append(f"{way.name}, which saves {format_size(way.size_bytes)}{enough}")
    check_budget(
        budget_bytes,
        plan.parts,
        context=f"device `{device}`" if device else "device",
        hint=", or ".join(ways),
    )


_SAVINGS_MAX = 4


def savings(plan: DevicePlan, budget_bytes: int) -> list[BudgetPart]:
    """Return what would make a plan smaller, the largest saving first, by planning again.

    As few streams less as are enough (one, if none are); each of the models that determine an
    arena on one stream only; each of them left out, which is what a smaller batch or another
    place for the model can save at most.
    """

    def again(models: Sequence[ModelMemory], stream_count: int) -> int:
        other = DevicePlan.build(
            models, stream_count=stream_count, alignment_bytes=plan.alignment_bytes
        )
        return plan.total_bytes - other.total_bytes

    ways = []
    if plan.stream_count > 1:
        fewer = range(plan.stream_count - 1, 0, -1)
        excess_bytes = plan.total_bytes - budget_bytes
        enough = [count for count in fewer if again(plan.models, count) >= excess_bytes]
        count = enough[0] if enough else 1
        ways.append(BudgetPart(f"lower `streams.count` to {count}", again(plan.models, count)))
    for name in dict.fromkeys(model for arena in plan.arenas for model in arena.models):
        if len(plan.streams_of(name)) > 1:
            confined = [
                replace(each, streams_max=1) if each.model == name else each for each in plan.models
            ]
            what = f'set `streams.affinity = "memory"` and `concurrency = 1` for model `{name}`'
            ways.append(BudgetPart(what, again(confined, plan.stream_count)))
        if len(plan.models) > 1:
            others = [each for each in plan.models if each.model != name]
            what = f"move model `{name}` elsewhere"
            ways.append(BudgetPart(what, again(others, plan.stream_count)))
    useful = [way for way in ways if way.size_bytes > 0]
    return sorted(useful, key=lambda way: -way.size_bytes)[:_SAVINGS_MAX]


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
