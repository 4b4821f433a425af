"""What a device's plan would save if one of its models were lighter, by compiling and planning it.

Only asked once a plan does not fit its budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.errors import AegisError
from aegis_pipe.events import PhaseRecorder
from aegis_pipe.execution.deployment import LoadedModel, ModelOrder, compile_models
from aegis_pipe.memory import BudgetPart, DevicePlan, ModelMemory

_MODELS_MAX = 3
"""So many models are tried, those with the largest arenas and weights."""


def lighter_ways(
    orders: Sequence[ModelOrder],
    loaded: Sequence[LoadedModel],
    plan: DevicePlan,
    context: DeviceContext,
    phases: PhaseRecorder,
) -> list[BudgetPart]:
    """Return what lower precision and smaller batches of the heaviest models would save.

    `loaded` are in the order of `orders`; what a model or the device can not do is left out.
    """
    memories = {each.model: each for each in plan.models}
    pairs = sorted(zip(orders, loaded, strict=True), key=lambda pair: -_weight(memories, pair[0]))
    ways = []
    for order, model in pairs[:_MODELS_MAX]:
        for what, lighter in lighter_orders(order, model, context):
            try:
                (compiled,) = compile_models([lighter], context, phases)
            except AegisError:
                continue
            old = memories[order.name]
            new = compiled.compiled.memory(old.arena_group, old.streams_max)
            other = DevicePlan.build(
                [new if each.model == order.name else each for each in plan.models],
                stream_count=plan.stream_count,
                alignment_bytes=plan.alignment_bytes,
            )
            ways.append(BudgetPart(what, plan.total_bytes - other.total_bytes))
    return [way for way in ways if way.size_bytes > 0]


def _weight(memories: Mapping[str, ModelMemory], order: ModelOrder) -> int:
    memory = memories[order.name]
    return memory.arena_bytes + sum(memory.weights.values())


def lighter_orders(
    order: ModelOrder, model: LoadedModel, context: DeviceContext
) -> Iterator[tuple[str, ModelOrder]]:
    """Yield what may make a model lighter on this device, in words and as an order."""
    if order.precision in ("fp32", "tf32") and context.capabilities.half_precision:
        what = f'set `precision = "fp16"` for model `{order.name}`'
        yield what, replace(order, precision="fp16")
    graph = model.compiled.graph
    rows = {graph.spec(name).shape[:1] for name in model.compiled.inputs}
    if len(rows) != 1 or min(rows) <= (1,):
        return
    (count,) = rows.pop()
    half: dict[str, tuple[int, ...]] = {
        name: (count // 2, *graph.spec(name).shape[1:]) for name in model.compiled.inputs
    }
    options = replace(order.options, shapes={**order.options.shapes, **half})
    what = f"set the batch of model `{order.name}` to {count // 2} by `shapes`"
    yield what, replace(order, options=options)
