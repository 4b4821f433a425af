"""Forks that are measured to pay are taken; those that do not, or want more memory, are not.

The device is the CPU with two things more: a graph with forks runs the last branch of each first,
and every graph lasts, by its events, as long as a device would take that has a price for a call,
for the calls that run beside the longest branch, and for a fork.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.cpu.context import CpuContext
from aegis_pipe.device.protocols import DeviceCapabilities, Fork, KernelCall
from aegis_pipe.events import EventHub, PhaseRecorder
from aegis_pipe.execution import forking
from aegis_pipe.execution.compiler import CompiledModel, fork_model
from aegis_pipe.execution.deployment import compile_graph
from aegis_pipe.execution.forking import branched, within_allowance
from aegis_pipe.execution.standalone import StandaloneGraph
from tests.unit.execution.models import load

CALL_NS, FORK_NS = 3_000, 1_500


class Choices:
    """Remembers in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}

    def remembered(self, what: str) -> dict[str, Any] | None:
        return self.kept.get(what)

    def remember(self, what: str, choice: dict[str, Any]) -> None:
        self.kept[what] = choice


class Event:
    def __init__(self, event: Any, device: ForkingCpu) -> None:
        self.event, self.device, self.at_ns = event, device, 0

    def completed_ns(self) -> int:
        return self.at_ns

    def close(self) -> None:
        self.event.close()


class Stream:
    def __init__(self, stream: Any, device: ForkingCpu) -> None:
        self.stream, self.device = stream, device

    def record(self, event: Event) -> None:
        event.at_ns = self.device.now_ns

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class Graph:
    def __init__(self, graph: Any, lasts_ns: int, device: ForkingCpu) -> None:
        self.graph, self.lasts_ns, self.device = graph, lasts_ns, device

    def launch(self, stream: Any, *, stamped: bool = False) -> None:
        self.device.now_ns += self.lasts_ns
        self.graph.launch(getattr(stream, "stream", stream), stamped=stamped)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.graph, name)


class ForkingCpu:
    """Delegates to a CPU, but for what is said above."""

    def __init__(self, context: CpuContext, fork_ns: int = FORK_NS) -> None:
        self.context = context
        self.fork_ns = fork_ns
        self.now_ns = 0
        self.choices = Choices()
        self.recorded: list[tuple[int, int]] = []
        self.trial = True

    @property
    def capabilities(self) -> DeviceCapabilities:
        return replace(self.context.capabilities, parallel_branches=True)

    def create_stream(self, index: int, **options: Any) -> Any:
        stream = self.context.create_stream(index, **options)
        return Stream(stream, self) if self.trial else stream

    def create_event(self) -> Any:
        event = self.context.create_event()
        return Event(event, self) if self.trial else event

    def record(
        self, calls: Sequence[KernelCall], stream: Any = None, forks: Sequence[Fork] = ()
    ) -> Any:
        order: list[int] = []
        lasts_ns = CALL_NS * len(calls)
        for fork in forks:
            order += range(len(order), min(map(min, fork)))
            order += [call for branch in reversed(fork) for call in branch]
            beside = sum(map(len, fork)) - max(map(len, fork))
            lasts_ns += self.fork_ns - CALL_NS * beside
        order += range(len(order), len(calls))
        self.recorded.append((len(calls), len(forks)))
        graph = self.context.record([calls[at] for at in order])
        return Graph(graph, lasts_ns, self) if self.trial else graph

    def __getattr__(self, name: str) -> Any:
        return getattr(self.context, name)


@pytest.fixture
def device() -> Iterator[ForkingCpu]:
    with CpuContext(SystemClock()) as context:
        yield ForkingCpu(context)


def products(steps: str) -> str:
    """Return nodes of MatMul: `axb` is `b` from `a` and `x`."""
    return " ".join(f"{y} = MatMul({a}, {b})" for a, b, y in steps.split())


# Three branches of one to two products, then two of two and one.
NET = f"""g (float[8, 8] x, float[8, 8] u, float[8, 8] v, float[8, 8] w) => (float[8, 8] y) {{
    {products("xua avb xvc cud xwe")} f = Sum(b, d, e)
    {products("fug gvh fvi")} y = Sum(h, i) }}"""


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
