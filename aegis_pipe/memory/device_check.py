"""An independent check of a device's plan: everything lies inside its pool and beside the others.

Shares no code with `budgets.py`, which makes such plans.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from aegis_pipe.memory.budgets import DevicePlan, ModelMemory


def check_device_plan(
    plan: DevicePlan,
    models: Mapping[str, ModelMemory],
    budget_bytes: int | None,
    staging_budget_bytes: int | None = None,
) -> list[str]:
    """Return what is wrong with a plan for these models, in words; nothing if it is sound.

    Proves that each stored constant has a place of its own in the pool of weights, that on each of
    a model's streams the arena has room for it, that models which may be there at the same time lie
    apart, that each stream stages all that a request may copy, and that the totals are what their
    parts add up to, and within their budgets.
    """
    return [
        *_weights(plan, models),
        *_arenas(plan, models),
        *_states(plan, models),
        *_total(plan, models, budget_bytes),
        *_staging(plan, models, staging_budget_bytes),
    ]


def _weights(plan: DevicePlan, models: Mapping[str, ModelMemory]) -> Iterator[str]:
    sizes: dict[str, int] = {}
    for name, model in models.items():
        for key, size in model.weights.items():
            if sizes.setdefault(key, size) != size:
                yield f"weight `{key}` of `{name}` has {size} bytes, and {sizes[key]} elsewhere"
    end, last = 0, ""
    for key in sorted(sizes, key=lambda key: (plan.weights_offsets.get(key, -1), sizes[key])):
        start = plan.weights_offsets.get(key)
        if start is None:
            yield f"weight `{key}` has no place"
            continue
        if start < end:
            yield f"weight `{key}` at {start} overlaps `{last}`, which ends at {end}"
        if start % plan.alignment_bytes:
            yield f"weight `{key}` at {start} is not aligned to {plan.alignment_bytes}"
        end, last = max(end, start + sizes[key]), key
    if end > plan.weights_bytes:
        yield f"the weights end at {end}, their pool at {plan.weights_bytes}"


def _arenas(plan: DevicePlan, models: Mapping[str, ModelMemory]) -> Iterator[str]:
    for name, model in models.items():
        wanted = min(model.streams_max or plan.stream_count, plan.stream_count)
        if len(plan.streams_of(name)) < wanted:
            yield f"`{name}` may run on {wanted} streams, but has room on fewer"
    for stream, arena in enumerate(plan.arenas):
        here = {name: each for name, each in models.items() if stream in plan.streams_of(name)}
        spans: dict[int, tuple[int, int]] = {}
        for name, model in here.items():
            start = plan.arena_base(name, stream)
            end = start + model.arena_bytes
            if end > arena.size_bytes:
                yield f"`{name}` ends at {end} of arena {stream}, which ends at {arena.size_bytes}"
            if start % plan.alignment_bytes:
                yield f"`{name}` at {start} of arena {stream} is not aligned"
            low, high = spans.get(model.arena_group, (start, end))
            spans[model.arena_group] = min(low, start), max(high, end)
        parts = sorted((start, end, group) for group, (start, end) in spans.items())
        for (_, end, group), (start, _, other) in itertools.pairwise(parts):
            if start < end:
                yield f"groups {group} and {other} of arena {stream} overlap"


def _states(plan: DevicePlan, models: Mapping[str, ModelMemory]) -> Iterator[str]:
    end = 0
    sizes = {(name, x): size for name, each in models.items() for x, size in each.states.items()}
    for key in sorted(sizes, key=lambda key: plan.states_offsets.get(key, -1)):
        start = plan.states_offsets.get(key)
        what = f"state `{key[1]}` of `{key[0]}`"
        if start is None:
            yield f"{what} has no place"
            continue
        if start < end:
            yield f"{what} at {start} overlaps another, which ends at {end}"
        if start % plan.alignment_bytes:
            yield f"{what} at {start} is not aligned to {plan.alignment_bytes}"
        end = max(end, start + sizes[key])
    if end > plan.states_bytes:
        yield f"the states end at {end}, their pool at {plan.states_bytes}"


def _total(
    plan: DevicePlan, models: Mapping[str, ModelMemory], budget_bytes: int | None
) -> Iterator[str]:
    arenas_bytes = sum(arena.size_bytes for arena in plan.arenas)
    total_bytes = plan.weights_bytes + arenas_bytes + plan.states_bytes
    if plan.total_bytes != total_bytes:
        yield f"the total is said to be {plan.total_bytes}, but is {total_bytes}"
    if sum(part.size_bytes for part in plan.parts) != total_bytes:
        yield "the parts do not add up to the total"
    if budget_bytes is not None and total_bytes > budget_bytes:
        yield f"the total of {total_bytes} exceeds the budget of {budget_bytes}"


def _staging(
    plan: DevicePlan, models: Mapping[str, ModelMemory], budget_bytes: int | None
) -> Iterator[str]:
    if len(plan.staging) != plan.stream_count:
        yield f"{len(plan.staging)} streams stage copies, of {plan.stream_count}"
    for stream, piece in enumerate(plan.staging):
        if piece.parts != plan.requests_per_stream:
            yield (
                f"{plan.requests_per_stream} requests can be on stream {stream}, whose staging has "
                f"{piece.parts} parts"
            )
        for name, model in models.items():
            needed_bytes = piece.parts * model.staging_bytes
            if stream in plan.streams_of(name) and needed_bytes > piece.size_bytes:
                yield (
                    f"`{name}` stages {needed_bytes} bytes on stream {stream}, "
                    f"which has {piece.size_bytes}"
                )
    ahead, wanted = plan.staging_ahead, plan.requests_per_stream * plan.stream_count + 1
    if ahead.parts != wanted:
        yield f"{ahead.parts} requests are staged ahead, and streams can have {wanted - 1}"
    for name, model in models.items():
        if ahead.parts * model.staging_ahead_bytes > ahead.size_bytes:
            yield (
                f"`{name}` stages {ahead.parts * model.staging_ahead_bytes} bytes ahead, and there "
                f"are {ahead.size_bytes}"
            )
    total_bytes = ahead.size_bytes + sum(piece.size_bytes for piece in plan.staging)
    if sum(part.size_bytes for part in plan.staging_parts) != total_bytes:
        yield "the parts of staging do not add up to its total"
    if budget_bytes is not None and total_bytes > budget_bytes:
        yield f"staging of {total_bytes} exceeds its budget of {budget_bytes}"
