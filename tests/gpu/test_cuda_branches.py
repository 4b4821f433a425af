"""Branches side by side on a GPU: the same bits as a chain, in memory that they do not share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.cuda import driver, graph as recorded_graph
from aegis_pipe.device.cuda.graph import CudaKernelCall
from aegis_pipe.device.cuda.recording import Edge, Recorded, Strand, wanted_edges
from aegis_pipe.device.cuda.region import address_of
from aegis_pipe.device.protocols import DeviceContext, DeviceStream
from aegis_pipe.events import EventHub, PhaseRecorder
from aegis_pipe.execution.compiler import CompiledModel, ModelBinder, fork_model
from aegis_pipe.execution.deployment import compile_graph
from aegis_pipe.execution.forking import as_chain, branched, possible_forks
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.input_generation import generate_inputs
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.segments import cost_model
from aegis_pipe.execution.standalone import StandaloneGraph
from aegis_pipe.testing.device_checks.bench import bind, filled, like, read_floats
from tests.drawn_models import drawn_model

CLOCK = SystemClock()


def load(name: str) -> ExecutionGraph:
    return ModelLoader().load_proto(drawn_model(name), LoadOptions(name=name))


def forked(compiled: CompiledModel, context: DeviceContext) -> CompiledModel:
    """Return the model with all forks that may pay, measured or not."""
    chain = as_chain(compiled)
    forks = possible_forks(chain, cost_model(context.description))
    assert forks
    return fork_model(chain, forks, context.description.alignment_bytes)


@contextmanager
def running(
    graph: ExecutionGraph, context: DeviceContext, stream: DeviceStream, precision: str
) -> Iterator[tuple[StandaloneGraph, StandaloneGraph]]:
    """Yield the graph as a chain and with every fork that may pay."""
    with (
        StandaloneGraph(graph, context, stream, CLOCK, precision, change=as_chain) as chain,
        StandaloneGraph(
            graph, context, stream, CLOCK, precision, change=lambda model: forked(model, context)
        ) as wide,
    ):
        assert wide.compiled.forks
        assert not chain.compiled.forks
        yield chain, wide


@pytest.mark.parametrize(("name", "precision"), [("inception_v1", "fp16"), ("squeezenet", "fp32")])
def test_the_same_bits_as_a_chain_alone_and_beside_others(
    context: DeviceContext, name: str, precision: str
) -> None:
    streams = [context.create_stream(number) for number in range(2)]
    graph = load(name)
    with (
        running(graph, context, streams[0], precision) as (chain, wide),
        running(load("shufflenet"), context, streams[1], precision) as (_, other),
    ):
        assert not wide.compiled.violations(context.description.alignment_bytes)
        seen = set()
        for seed in range(3):
            inputs = generate_inputs(graph, seed)
            wanted = {key: each.tobytes() for key, each in chain.run(inputs).items()}
            seen.add(tuple(wanted.values()))
            for run in range(60):
                if run % 2:
                    for _ in range(3):
                        other.launch()
                found = {key: each.tobytes() for key, each in wide.run(inputs).items()}
                assert found == wanted, f"run {run} of request {seed}"
            other.synchronise()
    assert len(seen) == 3, "nothing is seen where all inputs give the same"
    for stream in streams:
        stream.close()


def test_stamps_of_branches_lie_between_what_is_before_and_behind(context: DeviceContext) -> None:
    stream = context.create_stream(0)
    with running(load("inception_v1"), context, stream, "fp16") as (chain, wide):
        for _ in range(5):
            times = wide.kernel_times_ns()
            alone = chain.kernel_times_ns()
    stream.close()
    assert (times[:, 0] <= times[:, 1]).all()
    steps = [at for at, step in enumerate(wide.compiled.steps) if step.is_launched]
    position = {step: call for call, step in enumerate(steps)}
    for fork in wide.compiled.forks:
        calls = [[position[step] for step in branch] for branch in fork]
        first, last = min(map(min, calls)), max(map(max, calls))
        for branch in calls:
            stamps = times[branch].reshape(-1).tolist()
            assert stamps == sorted(stamps)
            assert times[first - 1, 1] <= stamps[0]
            assert stamps[-1] <= times[last + 1, 0]
    # Side by side: branches take less than one behind the other, in every run so far.
    assert np.ptp(times) < np.ptp(alone)


def test_no_branch_writes_where_another_does(context: DeviceContext) -> None:
    compiled = compile_graph(
        load("inception_v2"), context, PhaseRecorder(EventHub(), CLOCK), "fp16"
    )
    wide = forked(compiled, context)
    arena = context.allocate(wide.plan.peak_bytes)
    weights = {key: context.allocate(each.size_bytes) for key, each in wide.weights.items()}
    storages = {
        each.tensor_id: arena.view(wide.plan.offsets[each.tensor_id], each.size_bytes)
        for each in wide.analysis.lifetimes
    }
    binder = ModelBinder(wide, context, weights, storages)
    calls = binder.calls()
    for fork in binder.forks():
        spans = []
        for number, branch in enumerate(fork):
            for call in branch:
                bound = calls[call]
                assert isinstance(bound, CudaKernelCall)
                spans += [(first, end, number) for first, end in bound.written]
        for (first, end, number), (begin, until, other) in itertools.combinations(spans, 2):
            assert number == other or end <= begin or until <= first
    for region in (arena, *weights.values()):
        region.close()


def test_what_pays_is_measured_once_and_remembered(
    context: DeviceContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = PhaseRecorder(EventHub(), CLOCK)
    compiled = as_chain(compile_graph(load("inception_v1"), context, phases, "fp16"))
    chain = replace(compiled, branching=None)
    known: dict[str, object] = {}

    class Choices:
        def remembered(self, what: str) -> object:
            return known.get(what)

        def remember(self, what: str, choice: object) -> None:
            known[what] = choice

    monkeypatch.setattr(type(context), "choices", property(lambda self: Choices()))
    recordings = []
    record = type(context).record

    def counted(self, calls, *rest, **options):
        recordings.append(len(calls))
        return record(self, calls, *rest, **options)

    monkeypatch.setattr(type(context), "record", counted)
    first = branched(chain, context, phases)
    print(first.branching)
    assert recordings
    assert first.branching is not None
    assert first.branching.taken == len(first.forks) > 0
    assert first.branching.forked_ns < first.branching.chain_ns
    recordings.clear()
    again = branched(chain, context, phases)
    assert (again.forks, again.branching, recordings) == (first.forks, first.branching, [])


def test_edges_of_a_recorded_fork(context: DeviceContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within branches kernels begin early; none do where branches part and meet."""
    seen: list[tuple[list[Edge], list[Recorded], tuple[Strand, ...]]] = []

    def spying(nodes, edges, launches, strands):
        found = wanted_edges(nodes, edges, launches, strands)
        seen.append((found, list(launches), tuple(strands)))
        return found

    monkeypatch.setattr(recorded_graph, "wanted_edges", spying)
    stream = context.create_stream(0)
    with running(load("inception_v1"), context, stream, "fp16"):
        pass
    stream.close()
    forks = [each for each in seen if len(each[2]) > 1]
    assert forks
    for edges, launches, _ in forks:
        waiting: dict[int, list[Edge]] = {}
        leaving: dict[int, list[Edge]] = {}
        for edge in edges:
            waiting.setdefault(edge.target, []).append(edge)
            leaving.setdefault(edge.source, []).append(edge)
        assert sum(len(each) > 1 for each in waiting.values()) >= 1
        assert all(edge.kind is None for each in waiting.values() if len(each) > 1 for edge in each)
        assert all(edge.kind is None for each in leaving.values() if len(each) > 1 for edge in each)
        assert len({edge.key for edge in edges}) == len(edges)
        assert sum(each.node_count for each in launches) == len({*waiting, *leaving})
    assert any(edge.kind is not None for edges, _, _ in forks for edge in edges)


def test_a_fill_between_kernels_that_begin_early(context: DeviceContext) -> None:
    """What is recorded of it need not be a chain; it is made one, and the result is right."""
    ones = filled(context, np.ones(4096, np.float32))
    x, t = like(context, np.zeros(4096, np.float32)), like(context, np.zeros(4096, np.float32))
    there, back = bind(context, "Add", [x, ones], t), bind(context, "Add", [t, ones], x)
    address, size_bytes = address_of(x), x.size_bytes
    fill = CudaKernelCall(
        "fill", "fill", (lambda stream: driver.enqueue_fill(address, 0, size_bytes, stream),)
    )
    stream = context.create_stream(0)
    graph = context.record([there, back, fill, there, back, there, back], stream)
    for _ in range(100):
        graph.launch(stream)
    stream.synchronise()
    assert set(read_floats(context, x).tolist()) == {4.0}
    graph.close()
    stream.close()
    for region in (ones, x, t):
        region.close()
