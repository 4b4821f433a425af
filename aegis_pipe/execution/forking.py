"""Which branches of a model run side by side: on devices that can, where it was measured to pay.

What may pay follows from what the steps have to do (`branches.py`). Branches that run side by side
share no memory, so that the arena may grow; forks are taken as long as it grows by no more than a
small part of what the model takes. The model is then bound to memory of its own for a moment, and
each fork, then all that pay, are measured beside the same calls as a chain. The device remembers
what was chosen, so that it is measured once. The same kernels run either way, and so results are
the same bits. Where a budget has no room for it, models run as chains (`as_chain`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any, NamedTuple

from aegis_pipe.device.protocols import DeviceContext, Fork
from aegis_pipe.errors import PermanentError
from aegis_pipe.events import PhaseRecorder
from aegis_pipe.execution.branches import Work, find_forks
from aegis_pipe.execution.compiler import Branching, CompiledModel, fork_model
from aegis_pipe.execution.model_trial import ModelTrial, described
from aegis_pipe.execution.segments import CostModel, cost_model

_FORK_NS = 1_000
"""What a fork costs: kernels begin early neither where branches part nor where they meet."""
GROWTH_MIN_BYTES, GROWTH_DIVISOR = 1 << 20, 8
"""The arena may grow by a MiB, or by this part of weights and arena together."""
_METHOD = "each with a neighbour on either side, then the whole"
"""How is measured; part of what choices are kept by."""
_CALLS = 32
"""A graph that is measured has at least so many calls: fewer are recorded several times over."""
_FORK_GAIN, _MODEL_GAIN = 0.98, 0.99
"""Of the chain's time; less is taken for noise."""


_NO_MEMORY = "the device has no memory left to measure them in"


def branched(
    compiled: CompiledModel, context: DeviceContext, phases: PhaseRecorder
) -> CompiledModel:
    """Return the model with the forks that pay, or as it is where there are none."""
    choices = context.choices
    if choices is None or not context.capabilities.parallel_branches or compiled.guard_bytes:
        return compiled
    possible = possible_forks(compiled, cost_model(context.description))
    if not possible:
        return compiled
    with phases.phase("branches", model=compiled.name) as phase:
        alignment_bytes = context.description.alignment_bytes
        model = within_allowance(compiled, possible, alignment_bytes)
        report = Branching(len(possible), len(model.forks))
        if model.forks:
            what = f"forks {model.forks} of {described(model)}, {_METHOD}"
            choice = _Choice.read(choices.remembered(what))
            if choice is None:
                choice = _measure(model, context)
                if choice is not None:
                    choices.remember(what, choice._asdict())
            if choice is None:
                model, report = compiled, Branching(len(possible), 0, given_up=_NO_MEMORY)
            else:
                pay = [model.forks[at] for at in choice.taken]
                model = within_allowance(compiled, pay, alignment_bytes)
                report = Branching(len(possible), len(model.forks), *choice[1:])
        report = replace(report, grown_bytes=model.plan.peak_bytes - compiled.plan.peak_bytes)
        phase.attributes.update(
            possible=report.possible,
            taken=report.taken,
            chain_ns=report.chain_ns,
            forked_ns=report.forked_ns,
        )
    return replace(model, branching=report, chain=compiled if model.forks else None)


def as_chain(compiled: CompiledModel, reason: str = "a chain was asked for") -> CompiledModel:
    """Return the model without its forks and the memory that they take, if it has any."""
    if compiled.chain is None:
        return compiled
    assert compiled.branching is not None
    branching = replace(compiled.branching, taken=0, grown_bytes=0, given_up=reason)
    return replace(
        compiled.chain,
        branching=branching,
        variant_of=compiled.variant_of,
        rows=compiled.rows,
    )


def possible_forks(compiled: CompiledModel, costs: CostModel) -> tuple[Fork, ...]:
    """Return the forks that may pay, by what the steps have to do."""
    return find_forks(
        [
            Work(
                tuple(filter(None, step.operands)),
                tuple(filter(None, step.results)),
                costs.launch_ns if step.is_launched else 0,
                costs.busy_ns(step) if step.is_launched else 0,
                apart=step.is_keep or step.choice.is_reference,
            )
            for step in compiled.steps
        ],
        _FORK_NS,
    )


def within_allowance(
    compiled: CompiledModel, forks: Sequence[Fork], alignment_bytes: int
) -> CompiledModel:
    """Return the model with as many forks as its arena may grow for.

    All of them, or else one after the other, in order.
    """
    if not forks:
        return compiled
    peak_bytes = compiled.plan.peak_bytes
    share_bytes = (compiled.weight_bytes + peak_bytes) // GROWTH_DIVISOR
    limit_bytes = peak_bytes + max(GROWTH_MIN_BYTES, share_bytes)
    forked = fork_model(compiled, forks, alignment_bytes)
    if forked.plan.peak_bytes <= limit_bytes:
        return forked
    best = compiled
    for fork in forks:
        forked = fork_model(compiled, [*best.forks, fork], alignment_bytes)
        if forked.plan.peak_bytes <= limit_bytes:
            best = forked
    return best


class _Choice(NamedTuple):
    """What the device remembers."""

    taken: list[int]
    """Positions of the forks that pay."""
    chain_ns: int
    """How long the model takes as a chain."""
    forked_ns: int
    """And with those of its forks that pay by themselves, taken or not; 0 if none does."""

    @classmethod
    def read(cls, remembered: Mapping[str, Any] | None) -> _Choice | None:
        """Return what was remembered, if it was something of this kind."""
        return cls(**remembered) if remembered and remembered.keys() == set(cls._fields) else None


def _measure(model: CompiledModel, context: DeviceContext) -> _Choice | None:
    """Return which forks pay: each by itself, and all of those together.

    None if the device has no memory left for it: a reload measures beside what runs.
    """
    with ExitStack() as stack:
        try:
            trial = ModelTrial(model, context, stack)
        except PermanentError:
            return None
        forks = trial.binder.forks()
        count = len(trial.calls)
        taken = []
        for number, fork in enumerate(forks):
            first = max(0, min(map(min, fork)) - 1)
            end = min(count, max(map(max, fork)) + 2)
            chain_ns, forked_ns = _durations_ns(trial, first, end, [fork])
            if forked_ns < _FORK_GAIN * chain_ns:
                taken.append(number)
        chain_ns, forked_ns = _durations_ns(trial, 0, count, [forks[at] for at in taken])
        if not taken:
            return _Choice([], chain_ns, 0)
        return _Choice(taken if forked_ns < _MODEL_GAIN * chain_ns else [], chain_ns, forked_ns)


def _durations_ns(
    trial: ModelTrial, first: int, end: int, forks: Sequence[Fork]
) -> tuple[int, int]:
    """Return how long these calls take as a chain and with forks."""
    calls = trial.calls[first:end]
    times = -(-_CALLS // len(calls))
    shifted = [
        tuple([tuple([at - first + n * len(calls) for at in part]) for part in fork])
        for n in range(times)
        for fork in forks
    ]
    with (
        closing(trial.record(calls * times)) as chain,
        closing(trial.record(calls * times, shifted)) as forked,
    ):
        chain_ns, forked_ns = trial.durations_ns(chain, forked)
    return chain_ns // times, forked_ns // times
