"""Forks that are measured to pay are taken; those that do not, or want more memory, are not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.cpu.context import CpuContext
from aegis_pipe.device.protocols import Fork
from aegis_pipe.errors import PermanentError
from aegis_pipe.events import EventHub, PhaseRecorder
from aegis_pipe.execution import forking
from aegis_pipe.execution.capture import forks_within
from aegis_pipe.execution.compiler import CompiledModel, fork_model
from aegis_pipe.execution.deployment import compile_graph
from aegis_pipe.execution.forking import as_chain, branched, within_allowance
from aegis_pipe.execution.standalone import StandaloneGraph
from tests.unit.execution.forking_device import CALL_NS, FORK_NS, NET, ForkingCpu, products
from tests.unit.execution.models import load


@pytest.fixture
def device() -> Iterator[ForkingCpu]:
    with CpuContext(SystemClock()) as context:
        yield ForkingCpu(context)


def compiled(device: ForkingCpu, text: str = NET) -> CompiledModel:
    return compile_graph(load(text), device.context, PhaseRecorder(EventHub(), SystemClock()))


def phases() -> PhaseRecorder:
    return PhaseRecorder(EventHub(), SystemClock())


def sizes(model: CompiledModel) -> list[list[int]]:
    return [[len(branch) for branch in fork] for fork in model.forks]


def test_forks_that_pay_are_taken_and_those_that_do_not_are_not(device: ForkingCpu) -> None:
    model = branched(compiled(device), device, phases())
    # The first saves the time of three calls, the second of one, both at the price of a fork.
    assert sizes(model) == [[2, 2, 1], [2, 1]]
    assert model.branching is not None
    assert model.branching.chain_ns == 10 * CALL_NS
    assert model.branching.forked_ns == 6 * CALL_NS + 2 * FORK_NS
    device = ForkingCpu(device.context, fork_ns=CALL_NS)
    model = branched(compiled(device), device, phases())
    assert sizes(model) == [[2, 2, 1]]
    device = ForkingCpu(device.context, fork_ns=3 * CALL_NS)
    model = branched(compiled(device), device, phases())
    assert sizes(model) == []
    assert model.branching is not None
    assert (model.branching.possible, model.branching.taken) == (2, 0)
    assert model.chain is None


def test_a_fork_is_measured_with_its_neighbours_and_the_whole_model_after(
    device: ForkingCpu,
) -> None:
    branched(compiled(device), device, phases())
    per_graph = forking._CALLS
    lengths = [6, 5, 10]
    times = [-(-per_graph // length) for length in lengths]
    assert device.recorded == [
        *[(6 * times[0], 0), (6 * times[0], times[0])],
        *[(5 * times[1], 0), (5 * times[1], times[1])],
        *[(10 * times[2], 0), (10 * times[2], 2 * times[2])],
    ]


def test_what_was_chosen_is_measured_once(device: ForkingCpu) -> None:
    first = branched(compiled(device), device, phases())
    count = len(device.recorded)
    again = branched(compiled(device), device, phases())
    assert (again.forks, again.branching) == (first.forks, first.branching)
    assert len(device.recorded) == count
    # What is no choice of this kind is measured anew.
    (what,) = device.choices.kept
    device.choices.kept[what] = {"other": 1}
    assert branched(compiled(device), device, phases()).forks == first.forks
    assert len(device.recorded) == 2 * count


def test_a_model_as_a_chain_has_neither_forks_nor_their_memory(device: ForkingCpu) -> None:
    chain = compiled(device)
    model = replace(branched(chain, device, phases()), variant_of="other", rows=3)
    again = as_chain(model, "no room")
    assert (again.forks, again.plan, again.analysis) == ((), chain.plan, chain.analysis)
    assert (again.variant_of, again.rows) == ("other", 3)
    assert again.branching is not None
    assert (again.branching.taken, again.branching.given_up) == (0, "no room")
    assert as_chain(again, "anything") is again


def test_without_memory_to_measure_in_a_model_is_a_chain_and_nothing_is_remembered(
    device: ForkingCpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = compiled(device)

    def refuse(size_bytes: int) -> None:
        assert size_bytes > chain.plan.peak_bytes
        raise PermanentError("full")

    monkeypatch.setattr(device.context, "allocate", refuse)
    model = branched(chain, device, phases())
    assert (model.forks, model.plan) == ((), chain.plan)
    assert model.branching == forking.Branching(2, 0, given_up=forking._NO_MEMORY)
    assert not device.choices.kept


def test_a_device_that_measures_nothing_or_has_no_branches_leaves_models_alone(
    device: ForkingCpu,
) -> None:
    model = compiled(device)
    assert branched(model, device.context, phases()) is model
    chain = compiled(
        device, f"g (float[8, 8] x, float[8, 8] u) => (float[8, 8] y) {{ {products('xua auy')} }}"
    )
    assert branched(chain, device, phases()) is chain


def test_the_arena_grows_no_more_than_it_may(
    device: ForkingCpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = compiled(device)
    forks = branched(chain, device, phases()).forks
    alignment = device.context.description.alignment_bytes
    wide = fork_model(chain, forks, alignment)
    grown = wide.plan.peak_bytes - chain.plan.peak_bytes
    assert grown > 0
    monkeypatch.setattr(forking, "GROWTH_DIVISOR", 1 << 40)
    monkeypatch.setattr(forking, "GROWTH_MIN_BYTES", grown)
    assert within_allowance(chain, forks, alignment).forks == forks
    monkeypatch.setattr(forking, "GROWTH_MIN_BYTES", grown - 1)
    fewer = within_allowance(chain, forks, alignment)
    assert fewer.forks == forks[1:]
    assert fewer.plan.peak_bytes < wide.plan.peak_bytes


def test_branches_in_another_order_give_the_same_bits(device: ForkingCpu) -> None:
    chain = compiled(device)
    model = branched(chain, device, phases())
    assert not model.violations(device.context.description.alignment_bytes)
    device.trial = False
    random = np.random.default_rng(3)
    inputs = {
        name: random.standard_normal((8, 8), np.float32) for name in map(str, chain.graph.inputs)
    }
    found = []
    for context in (device.context, device):
        with (
            closing(device.context.create_stream(0)) as stream,
            StandaloneGraph(load(NET), context, stream, SystemClock()) as graph,
        ):
            found.append(graph.run(inputs)["y"].tobytes())
            assert bool(graph.compiled.forks) == (context is device)
    assert found[0] == found[1]


def test_a_state_is_kept_behind_all_branches(device: ForkingCpu) -> None:
    text = (
        "g (float[8, 8] x, float[8, 8] s) => (float[8, 8] y, float[8, 8] t) { "
        f"{products('xsa sxb xxc')} d = Sum(a, b, c) {products('dxe dsf')} "
        "y = Sum(e, f) t = MatMul(f, x) }"
    )
    chain = compile_graph(load(text), device.context, phases(), states={"s": "t"})
    model = branched(chain, device, phases())
    assert sizes(model) == [[1, 1, 1]]
    kept = [at for at, step in enumerate(model.steps) if step.is_keep]
    assert kept
    assert not {step for fork in model.forks for branch in fork for step in branch} & set(kept)
    assert not model.violations(device.context.description.alignment_bytes)


@pytest.mark.parametrize(
    ("first", "end", "within"),
    [
        (0, 9, [((1, 2), (3, 4)), ((6,), (7,))]),
        (1, 5, [((0, 1), (2, 3))]),
        (2, 4, [((0,), (1,))]),
        # Of one branch alone there is no fork left.
        (1, 3, []),
        (4, 7, []),
        (4, 8, [((2,), (3,))]),
    ],
)
def test_a_fork_that_is_cut_is_what_is_left_of_it(first: int, end: int, within: list[Fork]) -> None:
    forks = (((1, 2), (3, 4)), ((6,), (7,)))
    assert forks_within(forks, first, end) == tuple(within)
