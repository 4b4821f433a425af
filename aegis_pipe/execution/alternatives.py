"""Which of a device's alternatives a model takes, on devices that have some: those measured to pay.

How long a kernel takes depends on its neighbours: what begins while it ends, and what lies beside
it. So alternatives are tried within the model, bound to memory of its own for a moment: requests
that are alike, those with most work first, take one offer after the other, and keep it where the
whole model is faster. The device remembers what was chosen, so that it is measured once. Where a
budget has no room for what they take, models are as the device offered them without neighbours
(`without_alternatives`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from aegis_pipe.device.protocols import DeviceContext, KernelCall, Region
from aegis_pipe.errors import PermanentError
from aegis_pipe.events import PhaseRecorder
from aegis_pipe.execution.compiler import CompiledModel, choose_anew
from aegis_pipe.execution.forking import as_chain
from aegis_pipe.execution.memory_planning import CompiledStep
from aegis_pipe.execution.model_trial import ModelTrial, described
from aegis_pipe.kernel import KernelChoice

_METHOD = "each in the model, those alike together"
"""How is measured; part of what choices are kept by."""
_GAIN, _MODEL_GAIN = 0.997, 0.99
"""Of the time before; less is taken for noise."""
_GROUPS_MAX = 8
"""So many kinds of requests are tried, those with most work."""


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Steps whose requests are alike, and what each is offered."""

    steps: tuple[int, ...]
    offers: tuple[Sequence[KernelChoice], ...]
    """By step, in the same order."""
    cost: float

    @property
    def names(self) -> list[tuple[str, str]]:
        return [(each.kernel, each.variant) for each in self.offers[0]]


def with_alternatives(
    compiled: CompiledModel, context: DeviceContext, phases: PhaseRecorder
) -> CompiledModel:
    """Return the model with the alternatives that pay, or as it is where there are none."""
    choices = context.choices
    if choices is None or compiled.guard_bytes:
        return compiled
    groups = _groups(compiled, context)
    if not groups:
        return compiled
    with phases.phase("alternatives", model=compiled.name) as phase:
        names = [(each.steps, each.names) for each in groups]
        what = f"alternatives {names} of {described(compiled)}, {_METHOD}"
        choice = _Choice.read(choices.remembered(what))
        if choice is None:
            choice = _measure(compiled, groups, context)
            if choice is not None:
                choices.remember(what, choice._asdict())
        if choice is None:
            # No memory to measure in: as the device would have it without neighbours.
            return compiled
        phase.attributes.update(
            offered=sum(len(each.names) for each in groups),
            taken=sum(at is not None for at in choice.taken),
            before_ns=choice.before_ns,
            after_ns=choice.after_ns,
        )
        chosen = {
            step: offers[at]
            for group, at in zip(groups, choice.taken, strict=True)
            if at is not None
            for step, offers in zip(group.steps, group.offers, strict=True)
        }
        if not chosen:
            return compiled
        model = choose_anew(compiled, chosen, context.description.alignment_bytes)
        return replace(model, plain=compiled)


def without_alternatives(compiled: CompiledModel, reason: str) -> CompiledModel:
    """Return the model with what `select` offered, if it has taken anything else: a chain then.

    Weights in a layout of an alternative's own are so much more wherever others read them as well.
    """
    chain = as_chain(compiled, reason)
    if chain.plain is None:
        return compiled
    return replace(
        chain.plain,
        branching=chain.branching,
        plain_because=reason,
        variant_of=compiled.variant_of,
        rows=compiled.rows,
    )


class _Choice(NamedTuple):
    """What the device remembers."""

    taken: list[int | None]
    """By group, the position of the offer that pays."""
    before_ns: int
    """How long the model takes without."""
    after_ns: int
    """And with them."""

    @classmethod
    def read(cls, remembered: Mapping[str, Any] | None) -> _Choice | None:
        """Return what was remembered, if it was something of this kind."""
        return cls(**remembered) if remembered and remembered.keys() == set(cls._fields) else None


def _groups(compiled: CompiledModel, context: DeviceContext) -> list[_Group]:
    """Return the steps that are offered something, alike ones together, most work first."""
    alike: dict[object, list[tuple[int, Sequence[KernelChoice]]]] = {}
    for at, step in enumerate(compiled.steps):
        offers = context.alternatives(step.request) if step.is_launched else ()
        if offers:
            alike.setdefault(_kind(step), []).append((at, offers))
    groups = [
        _Group(
            tuple([at for at, _ in members]),
            tuple([offers for _, offers in members]),
            sum(compiled.steps[at].choice.cost for at, _ in members),
        )
        for members in alike.values()
    ]
    return sorted(groups, key=lambda group: -group.cost)[:_GROUPS_MAX]


def _kind(step: CompiledStep) -> tuple[object, ...]:
    request, choice = step.request, step.choice
    specs = tuple([str(spec) for spec in (*request.inputs, *request.outputs)])
    attributes = repr(sorted(request.attributes.items()))
    return request.operator, attributes, specs, tuple(request.constants), choice.kernel


def _measure(
    model: CompiledModel, groups: Sequence[_Group], context: DeviceContext
) -> _Choice | None:
    """Return which offers pay; None if the device has no memory left for it."""
    steps = model.steps
    context.prepare_to_bind(
        [(steps[group.steps[0]].request, each) for group in groups for each in group.offers[0]]
    )
    with ExitStack() as stack:
        try:
            trial = ModelTrial(model, context, stack)
        except PermanentError:
            return None
        launched = [at for at, step in enumerate(steps) if step.is_launched]
        position = {at: call for call, at in enumerate(launched)}
        first = _Way(list(trial.calls), trial, stack)
        best = first
        taken: list[int | None] = []
        for group in groups:
            taken.append(None)
            memory = _Scratch(context, stack)
            for number in range(len(group.names)):
                try:
                    bound = _bound(model, group, number, trial, memory)
                except PermanentError:
                    # What was not tried must not be remembered as what does not pay.
                    return None
                calls = list(best.calls)
                for at, call in bound.items():
                    calls[position[at]] = call
                tried = _Way(calls, trial, stack)
                before_ns, after_ns = trial.durations_ns(best.graph, tried.graph)
                loser = tried
                if after_ns < _GAIN * before_ns:
                    loser, best, taken[-1] = best, tried, number
                if loser is not first:
                    loser.graph.close()
        before_ns, after_ns = trial.durations_ns(first.graph, best.graph)
        if after_ns >= _MODEL_GAIN * before_ns:
            taken = [None] * len(groups)
        return _Choice(taken, before_ns, after_ns)


class _Way:
    """The model's calls, recorded."""

    def __init__(self, calls: list[KernelCall], trial: ModelTrial, stack: ExitStack) -> None:
        self.calls = calls
        self.graph = trial.record(calls)
        stack.callback(self.graph.close)


class _Scratch:
    """Memory for operands that the model has no other place for, once a use."""

    def __init__(self, context: DeviceContext, stack: ExitStack) -> None:
        self._context = context
        self._stack = stack
        self._regions: dict[object, Region] = {}

    def get(self, use: object, size_bytes: int) -> Region:
        """Return zeroed memory; PermanentError if there is none left."""
        if use not in self._regions:
            region = self._context.allocate(size_bytes)
            self._stack.callback(region.close)
            self._regions[use] = region
        return self._regions[use]


def _bound(
    model: CompiledModel, group: _Group, number: int, trial: ModelTrial, memory: _Scratch
) -> dict[int, KernelCall]:
    """Bind an offer to all steps of a group: weights in its layout, and a workspace they share."""
    calls = {}
    for at, offers in zip(group.steps, group.offers, strict=True):
        step, offer = model.steps[at], offers[number]
        weights = {}
        for place, array in step.request.constants.items():
            packed, held = (each.packed.get(place) for each in (offer, step.choice))
            layout, size_bytes = (
                (packed.layout, packed.size_bytes) if packed else ("", array.nbytes)
            )
            if layout != (held.layout if held else ""):
                weights[place] = memory.get((at, place, layout, size_bytes), size_bytes)
        workspace = None
        if offer.workspace_bytes:
            workspace = memory.get(offer.workspace_bytes, offer.workspace_bytes)
        calls[at] = trial.binder.bind_as(at, offer, weights, workspace)
    return calls
