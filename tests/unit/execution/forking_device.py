"""A CPU that runs branches in another order, and tells pretended times.

A graph with forks runs the last branch of each first; every graph lasts, by its events, as long as
on a device that has a price for a call, saves those beside a fork's longest branch, and has a price
for the fork.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aegis_pipe.device.cpu.context import CpuContext
from aegis_pipe.device.protocols import DeviceCapabilities, Fork, KernelCall

CALL_NS, FORK_NS = 3_000, 1_500


def products(steps: str) -> str:
    """Return nodes of MatMul: `axb` is `b` from `a` and `x`."""
    return " ".join(f"{y} = MatMul({a}, {b})" for a, b, y in steps.split())


# Three branches of one to two products, then two of two and one.
NET = f"""g (float[8, 8] x, float[8, 8] u, float[8, 8] v, float[8, 8] w) => (float[8, 8] y) {{
    {products("xua avb xvc cud xwe")} f = Sum(b, d, e)
    {products("fug gvh fvi")} y = Sum(h, i) }}"""


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

    def create_event(self, **options: Any) -> Any:
        event = self.context.create_event(**options)
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

    def __enter__(self) -> ForkingCpu:
        self.context.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.context.__exit__(*exc)
