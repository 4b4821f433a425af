"""What a device's plan would save if one of its models were lighter, by compiling and planning it.

Only asked once a plan does not fit its budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.errors import AegisError
from aegis_pipe.events import PhaseRecorder
from aegis_pipe.execution.alternatives import without_alternatives
from aegis_pipe.execution.batching import variant_shapes
from aegis_pipe.execution.compiler import CompiledModel
from aegis_pipe.execution.deployment import LoadedModel, ModelOrder, compile_models
from aegis_pipe.execution.forking import as_chain
from aegis_pipe.memory import BudgetPart, DevicePlan, Measure

_MODELS_MAX = 3
"""So many models are tried, those with the largest arenas and weights."""


def lighter_ways(
    orders: Sequence[ModelOrder],
    loaded: Sequence[LoadedModel],
    plan: DevicePlan,
    measure: Measure,
    context: DeviceContext,
    phases: PhaseRecorder,
) -> list[BudgetPart]:
    """Return what lower precision and smaller batches of the heaviest models would save.

    `loaded` are in the order of `orders`, then their variants, which become lighter with them; what
    a model or the device can not do is left out. `measure` says of what it shall save.
    """
    ways = []
    by_weight = sorted(zip(orders, loaded, strict=False), key=lambda pair: -_weight(plan, pair[0]))
    for order, model in by_weight[:_MODELS_MAX]:
        variants = [each.compiled for each in loaded if each.compiled.variant_of == order.name]
        for what, lighter in lighter_orders(order, model, context):
            try:
                compiled = _compile_with(lighter, variants, context, phases)
            except AegisError:
                continue
            other = DevicePlan.build(
                [
                    compiled[each.model].memory(
                        context.description, each.arena_group, each.streams_max
                    )
                    if each.model in compiled
                    else each
                    for each in plan.models
                ],
                stream_count=plan.stream_count,
                alignment_bytes=plan.alignment_bytes,
                requests_per_stream=plan.requests_per_stream,
            )
            ways.append(BudgetPart(what, measure(plan) - measure(other)))
    return [way for way in ways if way.size_bytes > 0]


def _weight(plan: DevicePlan, order: ModelOrder) -> int:
    memories = [each for each in plan.models if each.family == order.name]
    arena_bytes = max(each.arena_bytes for each in memories)
    return arena_bytes + sum({k: n for each in memories for k, n in each.weights.items()}.values())


def _compile_with(
    order: ModelOrder,
    variants: Sequence[CompiledModel],
    context: DeviceContext,
    phases: PhaseRecorder,
) -> dict[str, CompiledModel]:
    """Compile a lighter model, and each of its variants anew from it.

    All as chains without alternatives: over a budget, so are those they are compared with.
    """
    (model,) = compile_models([order], context, phases)
    compiled = {order.name: model.compiled}
    for old in variants:
        shapes = variant_shapes(model.compiled.graph, old.rows)
        options = replace(order.options, shapes=shapes, name=old.name)
        wanted = replace(
            order, name=old.name, options=options, variant_of=old.variant_of, rows=old.rows
        )
        (variant,) = compile_models([wanted], context, phases)
        compiled[old.name] = variant.compiled
    why = "compared with models over a budget"
    return {name: without_alternatives(as_chain(each, why), why) for name, each in compiled.items()}


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
