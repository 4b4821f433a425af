"""RNN, GRU and LSTM on the host, alone and shared by the blocks of a cluster, beside the CPU's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.device.registry import open_device
from aegis_pipe.events import EventHub, PhaseRecorder
from aegis_pipe.execution.deployment import compile_graph
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.standalone import StandaloneGraph
from aegis_pipe.kernel import KernelRequest

pytest.importorskip("cuda.bindings.nvrtc", reason="no CUDA bindings")
pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.kernels import recurrent
from aegis_pipe.device.cuda.kernels.registry import Machine
from tests.unit.device.cuda import host_clusters, host_device
from tests.unit.device.cuda.assembler import spilled_bytes
from tests.unit.device.cuda.recurrent_models import CASES, Layer, graph_of

needs_compiler = pytest.mark.skipif(host_device.COMPILER is None, reason="no g++")


@pytest.fixture
def host() -> Iterator[host_device.HostContext]:
    with host_device.HostContext(SystemClock()) as context:
        yield context


def _results(context: DeviceContext, graph: ExecutionGraph) -> dict[str, np.ndarray]:
    (name,) = graph.inputs
    spec = graph.spec(name)
    x = np.random.default_rng(2).standard_normal(spec.shape).astype(spec.dtype)
    stream = context.create_stream(0)
    try:
        with StandaloneGraph(graph, context, stream, SystemClock()) as standalone:
            return standalone.run({name: x})
    finally:
        stream.close()


def _assert_as_the_cpu(context: DeviceContext, layer: Layer) -> None:
    graph = graph_of(layer)
    found = _results(context, graph)
    with open_device("cpu", clock=SystemClock()).context as cpu:
        wanted = _results(cpu, graph)
    near = 2e-6 if layer.dtype == np.float32 else 4e-3
    for name, expected in wanted.items():
        np.testing.assert_allclose(found[name], expected, rtol=near, atol=near)


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_alone(host: host_device.HostContext, name: str) -> None:
    _assert_as_the_cpu(host, CASES[name])


@needs_compiler
@pytest.mark.parametrize(("at", "name"), list(enumerate(CASES)))
def test_shared(
    host: host_device.HostContext, monkeypatch: pytest.MonkeyPatch, at: int, name: str
) -> None:
    """Four blocks, the last with fewer units, their weights in their own memory or not."""
    stays = at % 2 == 0
    seen = []
    of = recurrent._Sharing.of

    def shared(request, machine):
        sharing = of(request, machine)
        units = -(-recurrent._Sizes.of(request).hidden // 4)
        rows_bytes = recurrent._Sizes.of(request).gates * units * recurrent._row_bytes(request)
        seen.append(rows_bytes)
        return replace(
            sharing, blocks=4, units=units, threads=64, weights_bytes=rows_bytes if stays else 0
        )

    monkeypatch.setattr(recurrent._Sharing, "of", shared)
    monkeypatch.setattr(host_device, "HostBinding", host_clusters.ClusterBinding)
    _assert_as_the_cpu(host, CASES[name])
    assert seen


def _machine(capability: int = 90, shared_kib: int = 227) -> Machine:
    return Machine(None, None, "none", capability, 132, shared_kib << 10, tuner=object())


def _request(layer: Layer) -> KernelRequest:
    clock = SystemClock()
    with host_device.HostContext(clock) as context:
        compiled = compile_graph(graph_of(layer), context, PhaseRecorder(EventHub(), clock), "fp32")
    (step,) = [step for step in compiled.steps if step.operator == layer.operator]
    return step.request


LARGE = Layer("GRU", directions=2, time=3, batch=1, inputs=8, hidden=256)


@needs_compiler
def test_how_blocks_share() -> None:
    request = _request(LARGE)
    sharing = recurrent._Sharing.of(request, _machine())
    assert (sharing.blocks, sharing.units, sharing.threads) == (8, 32, 768)
    assert sharing.weights_bytes == 3 * 32 * 256 * 4
    assert recurrent._Sharing.of(request, _machine(80)).blocks == 1
    # 12.0 has less shared memory: weights are read from where they are.
    other = recurrent._Sharing.of(request, _machine(120, 99))
    assert (other.blocks, other.weights_bytes) == (8, 0)
    halves = recurrent._Sharing.of(_request(replace(LARGE, dtype=np.float16)), _machine(120, 99))
    assert 0 < halves.weights_bytes < 99 << 10
    # Many sequences have the multiprocessors to themselves.
    many = _request(replace(LARGE, batch=40))
    assert recurrent._Sharing.of(many, _machine()).blocks == 1
    small = _request(replace(LARGE, hidden=32))
    assert recurrent._Sharing.of(small, _machine()).blocks == 1


@needs_compiler
def test_grids_of_very_many_elements_are_what_a_gpu_can_have() -> None:
    grids = []

    class Binding(host_device.HostBinding):
        def kernel(self, source, arguments, *, grid, **options):
            grids.append(grid)

    request = _request(Layer("RNN", time=70_000, batch=16, inputs=1, hidden=1))
    recurrent._bind(Binding(request, None, _machine(), (256,) * 8, (512,) * 3, 4096, None))
    assert len(grids) == 2
    assert all(max(grid[1:]) <= 65535 for grid in grids)


@needs_compiler
@pytest.mark.parametrize(
    "layer",
    [LARGE, replace(LARGE, linear=False), replace(LARGE, operator="LSTM", hidden=512)],
    ids=["gru", "gru that resets first", "lstm whose weights do not fit"],
)
def test_sources_of_clusters_compile_and_spill_nothing(
    layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, sources = _request(layer), []

    class Binding(host_device.HostBinding):
        def kernel(self, source, arguments, **options):
            sources.append(source)

    binding = Binding(request, None, _machine(), (256,) * 8, (512,) * 3, 4096, None)
    recurrent._bind(binding)
    (source,) = [each for each in sources if "__cluster_dims__(8, 1, 1)" in each]
    for architecture in ("sm_90", "sm_100"):
        assert spilled_bytes(source, architecture) == 0
