"""The live view of `aegis-pipe up`: models, streams, queue, memory, and the latest decisions."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aegis_pipe import units
from aegis_pipe.app import Runtime, RuntimeReport
from aegis_pipe.events import CopyFinished, DecisionMade, Event, SegmentFinished

_DECISIONS: Final = 8
_BAR: Final = 24
_COLOURS: Final = {"start": "green", "expire": "red", "reject": "red", "cancel": "yellow"}


class LiveView:
    """Keeps what the view shows; a listener of the run's events."""

    def __init__(self) -> None:
        self._decisions: deque[DecisionMade] = deque(maxlen=_DECISIONS)
        self._busy_ns: Counter[int] = Counter()
        self._shown_busy_ns: dict[int, int] = {}
        self._shown_at_ns = 0
        self._waiting_most = 0

    def __call__(self, event: Event) -> None:
        """Take note of an event; called on the threads that serve requests."""
        if isinstance(event, DecisionMade):
            # What goes on as before is no news.
            if event.kind != "continue":
                self._decisions.append(event)
        elif isinstance(event, SegmentFinished | CopyFinished):
            self._busy_ns[event.stream] += event.end_ns - event.start_ns

    def render(self, runtime: Runtime, models: Table) -> RenderableType:
        """Return the view; `models` is the table of their figures."""
        report = runtime.report()
        now_ns = runtime.clock.now_ns()
        title = Text.assemble(
            (report.name, "bold"),
            f"  {report.elapsed_ns / 1e9:.0f} s on {report.device}, policy {report.policy}",
        )
        bars = Table.grid(padding=(0, 2))
        for name, share, words in (*self._streams(report, now_ns), *self._room(runtime, report)):
            bars.add_row(name, _bar(share), words)
        return Group(title, models, bars, Text(), self._latest())

    def _streams(self, report: RuntimeReport, now_ns: int) -> Iterable[tuple[str, float, str]]:
        """Yield how busy each stream was since the last time."""
        elapsed_ns = max(1, now_ns - (self._shown_at_ns or now_ns - report.elapsed_ns))
        for stream in range(report.streams):
            busy_ns = self._busy_ns[stream]
            share = min(1.0, (busy_ns - self._shown_busy_ns.get(stream, 0)) / elapsed_ns)
            self._shown_busy_ns[stream] = busy_ns
            yield f"stream {stream}", share, f"{share:4.0%} busy"
        self._shown_at_ns = now_ns

    def _room(self, runtime: Runtime, report: RuntimeReport) -> Iterable[tuple[str, float, str]]:
        """Yield the queue and the memory, each against its limit."""
        waiting = report.statistics.queue_depth
        self._waiting_most = max(self._waiting_most, waiting)
        words = f"{waiting} waiting of {runtime.queue_capacity}, {self._waiting_most} seen at most"
        yield "queue", waiting / runtime.queue_capacity, words
        planned, budget = report.plan.total_bytes, report.memory_budget_bytes
        limit = f"a budget of {units.format_size(budget)}" if budget else "no budget"
        share = planned / budget if budget else 0.0
        yield "memory", share, f"{units.format_size(planned)} planned, {limit}"
        for model in report.plan.models:
            own = sum(model.weights.values()) + model.arena_bytes
            words = f"{units.format_size(own)}: weights and one arena"
            yield f"  {model.model}", own / (budget or max(1, planned)), words

    def _latest(self) -> Table:
        """Return the latest decisions with their reasons, the newest last."""
        shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for column in ("decision", "request", "stream", "because", "against", "held up by"):
            shown.add_column(column)
        for decision in tuple(self._decisions):
            others = [other for other, _ in decision.candidates if other != decision.request_id]
            shown.add_row(
                Text(decision.kind, _COLOURS.get(decision.kind, "")),
                f"{decision.model} {decision.request_id}",
                str(decision.stream) if decision.stream >= 0 else "-",
                decision.reason.replace("_", " "),
                _listed(others),
                _listed(decision.blocked_by),
            )
        return shown


def _bar(share: float) -> Text:
    filled = round(min(1.0, max(0.0, share)) * _BAR)
    colour = "red" if share > 0.95 else "yellow" if share > 0.8 else "green"
    return Text.assemble(("\u2588" * filled, colour), ("\u2591" * (_BAR - filled), "dim"))


def _listed(requests: Iterable[int]) -> str:
    first = [str(request) for request in requests]
    return ", ".join(first[:3]) + (" ..." if len(first) > 3 else "") if first else "-"
