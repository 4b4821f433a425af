"""Alternatives of a step are taken where the whole model is faster, those alike together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.cpu.context import CpuContext
from aegis_pipe.device.protocols import Fork, KernelCall
from aegis_pipe.errors import PermanentError
from aegis_pipe.events import EventHub, PhaseRecorder
from aegis_pipe.execution import alternatives
from aegis_pipe.execution.alternatives import with_alternatives
from aegis_pipe.execution.compiler import CompiledModel, choose_anew
from aegis_pipe.execution.deployment import compile_graph
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.standalone import StandaloneGraph
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant
from tests.unit.execution.forking_device import ForkingCpu, Graph
from tests.unit.pass_driver import graph_of, model_of

# Two products alike, and a smaller one.
NET = """(float[8, 64] x) => (float[8, 4] y)
    { a = MatMul(x, u) b = Softmax(a) c = MatMul(b, v) d = Softmax(c) y = MatMul(d, w) }"""
CALL_NS = 100_000


def packed(layout: str) -> PackedConstant:
    def pack(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    return PackedConstant(layout, 64 * 64 * 4, pack)


class Offering(ForkingCpu):
    """Has other ways for a MatMul, and pretended times of them; what `gains` says is saved."""

    def __init__(self, context: CpuContext, gains: dict[str, int]) -> None:
        super().__init__(context)
        self.gains = gains
        self.asked: list[str] = []
        self.announced: list[str] = []
        self.bound: dict[int, tuple[KernelCall, int, str]] = {}
        self.layouts: dict[str, str] = {}
        self.workspace_bytes = 0

    def alternatives(self, request: KernelRequest) -> Sequence[KernelChoice]:
        if request.operator != "MatMul":
            return ()
        choice = self.context.select(request)
        return [
            replace(
                choice,
                variant=name,
                workspace_bytes=self.workspace_bytes,
                packed={1: packed(self.layouts[name])} if name in self.layouts else choice.packed,
            )
            for name in self.gains
        ]

    def prepare_to_bind(self, offers: Sequence[tuple[KernelRequest, KernelChoice]]) -> None:
        self.announced += [choice.variant for _, choice in offers]

    def bind(self, request: KernelRequest, choice: KernelChoice, *operands: Any) -> KernelCall:
        call = self.context.bind(request, choice, *operands)
        # Kept, so that no other call gets its number.
        self.bound[id(call)] = call, request.outputs[0].shape[-1], choice.variant
        return call

    def record(
        self, calls: Sequence[KernelCall], stream: Any = None, forks: Sequence[Fork] = ()
    ) -> Any:
        ways = [self.bound[id(call)][1:] for call in calls]
        self.asked.append(" ".join(way for _, way in ways if way))
        # What the large ones save is dear for the small one.
        saved = sum(self.gains.get(way, 0) * (1 if width > 4 else -1) for width, way in ways)
        graph = self.context.record(calls)
        return Graph(graph, CALL_NS * len(calls) - saved, self) if self.trial else graph


@pytest.fixture
def context() -> Iterator[CpuContext]:
    with CpuContext(SystemClock()) as opened:
        yield opened


def phases() -> PhaseRecorder:
    return PhaseRecorder(EventHub(), SystemClock())


def net() -> ExecutionGraph:
    rng = np.random.default_rng(0)
    shapes = {"u": (64, 64), "v": (64, 64), "w": (64, 4)}
    constants = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    return graph_of(model_of(NET, constants))


def compiled(context: CpuContext) -> CompiledModel:
    return compile_graph(net(), context, phases())


def ways(model: CompiledModel) -> list[str]:
    return [step.choice.variant for step in model.steps if step.operator == "MatMul"]


def test_the_fastest_is_taken_where_it_pays_and_nowhere_else(context: CpuContext) -> None:
    device = Offering(context, {"good": 9_000, "small": -5_000, "best": 20_000})
    model = with_alternatives(compiled(context), device, phases())
    assert ways(model) == ["best", "best", "small"]
    assert sorted(device.announced) == sorted([*device.gains, *device.gains])
    # The large ones first, both at once; then the small one, beside what they took.
    tried = device.asked[1:]
    assert tried[:3] == ["good good", "small small", "best best"]
    assert tried[3:] == ["best best good", "best best small", "best best best"]


def test_what_was_chosen_is_measured_once(context: CpuContext) -> None:
    device = Offering(context, {"good": 9_000})
    first = with_alternatives(compiled(context), device, phases())
    count = len(device.asked)
    assert count
    assert ways(with_alternatives(compiled(context), device, phases())) == ways(first)
    assert len(device.asked) == count
    # Other offers are another choice, and what is none of this kind is measured anew.
    device.gains = {"good": 9_000, "more": 1}
    with_alternatives(compiled(context), device, phases())
    assert len(device.asked) > count
    device.choices.kept = {what: {"other": 1} for what in device.choices.kept}
    assert ways(with_alternatives(compiled(context), device, phases())) == ways(first)


def test_small_gains_are_noise(context: CpuContext) -> None:
    # More than is noise for one, less than is for the whole.
    device = Offering(context, {"little": 1_000})
    model = compiled(context)
    assert with_alternatives(model, device, phases()) is model
    (kept,) = device.choices.kept.values()
    assert kept["taken"] == [None, None]


def test_weights_and_memory_follow_what_was_chosen(context: CpuContext) -> None:
    device = Offering(context, {"other": 50_000})
    device.layouts["other"] = "elsewhere"
    device.workspace_bytes = 1 << 20
    before = compiled(context)
    model = with_alternatives(before, device, phases())
    layouts = [key.split("/")[1] for key in model.weights]
    assert layouts.count("elsewhere") == 2
    assert len(layouts) == 3
    assert model.plan.peak_bytes >= before.plan.peak_bytes + (1 << 20) - 4096
    digests = {key.split("/")[0] for key in before.weights}
    assert {key.split("/")[0] for key in model.weights} == digests


def test_without_memory_to_measure_in_nothing_is_taken_or_remembered(
    context: CpuContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Offering(context, {"good": 9_000})
    model = compiled(context)

    def refuse(size_bytes: int) -> None:
        raise PermanentError("full")

    monkeypatch.setattr(context, "allocate", refuse)
    assert with_alternatives(model, device, phases()) is model
    assert not device.choices.kept


def test_without_memory_for_all_that_is_offered_nothing_is_taken_or_remembered(
    context: CpuContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Offering(context, {"good": 9_000})
    device.layouts["good"] = "elsewhere"
    model = compiled(context)
    allocate, left = context.allocate, 2

    def allocate_some(size_bytes: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise PermanentError("full")
        return allocate(size_bytes)

    monkeypatch.setattr(context, "allocate", allocate_some)
    assert with_alternatives(model, device, phases()) is model
    assert not device.choices.kept
    # Where there is room again, they are tried again.
    left = 1_000
    assert ways(with_alternatives(model, device, phases()))[:2] == ["good", "good"]


def test_a_device_without_alternatives_or_choices_is_not_measured(context: CpuContext) -> None:
    model = compiled(context)
    device = Offering(context, {})
    assert with_alternatives(model, device, phases()) is model
    assert with_alternatives(model, context, phases()) is model
    assert not device.asked


def test_only_those_with_most_work_are_tried(
    context: CpuContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alternatives, "_GROUPS_MAX", 1)
    device = Offering(context, {"good": 9_000})
    with_alternatives(compiled(context), device, phases())
    assert device.announced == ["good"]


def test_a_model_with_other_kernels_computes_the_same(context: CpuContext) -> None:
    stream = context.create_stream(0)
    x = {"x": np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)}

    def change(model: CompiledModel) -> CompiledModel:
        chosen = {
            at: replace(step.choice, variant="same")
            for at, step in enumerate(model.steps)
            if step.operator == "MatMul"
        }
        assert chosen
        return choose_anew(model, chosen, context.description.alignment_bytes)

    with (
        closing(stream),
        StandaloneGraph(net(), context, stream, SystemClock()) as one,
        StandaloneGraph(net(), context, stream, SystemClock(), change=change) as other,
    ):
        assert np.array_equal(one.run(x)["y"], other.run(x)["y"])
