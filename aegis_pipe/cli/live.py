"""The live view of `aegis-pipe up`: models, streams, queue, memory, and the latest decisions.

It fits the terminal: what has no room is summed up in a line, and what is in trouble comes first.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from rich import box
from rich.console import ConsoleDimensions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from aegis_pipe import units
from aegis_pipe.app import Runtime
from aegis_pipe.cli.tables import SUMMARY_HEADER, counted, summary_row
from aegis_pipe.events import CopyFinished, DecisionMade, Event, SegmentFinished
from aegis_pipe.runtime_report import RuntimeReport
from aegis_pipe.scheduling.statistics import ModelStatistics

_DECISIONS: Final = 8
_DECISIONS_LEAST: Final = 3
_BAR: Final = 24
_WIDE: Final = 100
"""Columns of a terminal from which on models tell their memory and `run p50`, and decisions their
rivals: where there are fewer, models' names need the room."""
_COLOURS: Final = {"start": "green", "expire": "red", "reject": "red", "cancel": "yellow"}
_TROUBLE: Final = {"late": "red", "dropped": "yellow", "failed": "red"}


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

    def render(self, runtime: Runtime, size: ConsoleDimensions) -> RenderableType:
        """Return the view for a terminal of that size."""
        report = runtime.report()
        is_wide = size.width >= _WIDE
        title = _line(
            (report.name, "bold"),
            f"  {report.elapsed_ns / 1e9:.0f} s on {report.device}, policy {report.policy}; "
            "times in ms",
        )
        bars = Table.grid(padding=(0, 2))
        rows = [*self._streams(report, runtime.clock.now_ns(), size.height)]
        rows += self._room(runtime, report)
        for name, share, words in rows:
            bars.add_row(name, _bar(share), _line(words))
        # The title, two heads of two lines each, and three empty lines.
        spare = size.height - 8 - len(rows)
        models = report.statistics.models
        room = max(1, spare - _DECISIONS_LEAST)
        shown = _choose(models, room)
        spare -= len(shown) + (len(shown) < len(models))
        sizes = {
            model.model: units.format_size(sum(model.weights.values()) + model.arena_bytes)
            for model in report.plan.models
        }
        parts: list[RenderableType] = [Text(), title, _models(shown, sizes if is_wide else {})]
        if len(shown) < len(models):
            parts.append(_others([model for model in models if model not in shown]))
        latest = list(self._decisions)[-max(_DECISIONS_LEAST, min(_DECISIONS, spare)) :]
        return Group(*parts, Text(), bars, Text(), _latest(latest, is_wide))

    def _streams(
        self, report: RuntimeReport, now_ns: int, height: int
    ) -> Iterator[tuple[str, float, str]]:
        """Yield how busy each stream was since the last time; all in one where they are many."""
        elapsed_ns = max(1, now_ns - (self._shown_at_ns or now_ns - report.elapsed_ns))
        shares = []
        for stream in range(report.streams):
            busy_ns = self._busy_ns[stream]
            shares.append(min(1.0, (busy_ns - self._shown_busy_ns.get(stream, 0)) / elapsed_ns))
            self._shown_busy_ns[stream] = busy_ns
        self._shown_at_ns = now_ns
        if len(shares) <= max(2, height // 6):
            for stream, share in enumerate(shares):
                yield f"stream {stream}", share, f"{share:4.0%} busy"
            return
        mean = sum(shares) / len(shares)
        yield (
            f"{len(shares)} streams",
            mean,
            f"{mean:4.0%} busy, from {min(shares):.0%} to {max(shares):.0%}",
        )

    def _room(self, runtime: Runtime, report: RuntimeReport) -> Iterator[tuple[str, float, str]]:
        """Yield the queue and the memory, each against its limit."""
        waiting = report.statistics.queue_depth
        self._waiting_most = max(self._waiting_most, waiting)
        words = f"{waiting} waiting of {runtime.queue_capacity}, {self._waiting_most} seen at most"
        yield "queue", waiting / runtime.queue_capacity, words
        planned, budget = report.plan.total_bytes, report.memory_budget_bytes
        limit = f"a budget of {units.format_size(budget)}" if budget else "no budget"
        share = planned / budget if budget else 0.0
        yield "memory", share, f"{units.format_size(planned)} planned, {limit}"


def _choose(models: Sequence[ModelStatistics], room: int) -> list[ModelStatistics]:
    """Return those that are shown, in the manifest's order; those in trouble go before others."""
    if len(models) <= room:
        return list(models)
    order = sorted(range(len(models)), key=lambda place: -_trouble(models[place]))
    return [models[place] for place in sorted(order[: max(1, room - 1)])]


def _trouble(model: ModelStatistics) -> int:
    return model.deadline_misses + model.failed + _dropped(model)


def _dropped(model: ModelStatistics) -> int:
    return model.expired + model.rejected + model.cancelled


def _models(models: Iterable[ModelStatistics], sizes: dict[str, str]) -> Table:
    """Return the models' figures, with their memory (weights and one arena) if told."""
    header = (*SUMMARY_HEADER, "memory") if sizes else SUMMARY_HEADER[:-1]
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in header:
        is_name = column == "model"
        shown.add_column(column, justify="left" if is_name else "right", no_wrap=not is_name)
    for model in models:
        name, *figures = summary_row(model)
        cells = [
            Text(figure, _TROUBLE.get(column, "") if figure != "0" else "")
            for column, figure in zip(SUMMARY_HEADER[1:], figures, strict=True)
            if column in header
        ]
        memory = [sizes.get(model.model, "-")] if sizes else []
        shown.add_row(_line(name), *cells, *memory)
    return shown


def _others(models: Sequence[ModelStatistics]) -> Text:
    """Sum up the models that have no room."""
    figures = {
        "done": sum(model.completed for model in models),
        "late": sum(model.deadline_misses for model in models),
        "dropped": sum(map(_dropped, models)),
        "failed": sum(model.failed for model in models),
    }
    told = ", ".join(f"{count} {word}" for word, count in figures.items())
    return _line((f"and {counted(len(models), 'model')} more: {told}", "dim"))


def _latest(decisions: Iterable[DecisionMade], is_wide: bool) -> Table:
    """Return the latest decisions with their reasons, the newest last."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    columns = ["decision", "request", "stream", "because", "against", "held up by"]
    if not is_wide:
        columns.remove("against")
    for column in columns:
        shown.add_column(column, no_wrap=column in ("decision", "stream"))
    for decision in decisions:
        others = [other for other, _ in decision.candidates if other != decision.request_id]
        cells = {
            "decision": Text(decision.kind, _COLOURS.get(decision.kind, "")),
            "request": _line(f"{decision.model} {decision.request_id}"),
            "stream": Text(str(decision.stream) if decision.stream >= 0 else "-"),
            "because": _line(decision.reason.replace("_", " ")),
            "against": _line(_listed(others)),
            "held up by": _line(_listed(decision.blocked_by)),
        }
        shown.add_row(*(cells[column] for column in columns))
    return shown


def _line(*parts: str | tuple[str, str]) -> Text:
    """Return text that is cut where its room ends, never wrapped."""
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _bar(share: float) -> Text:
    filled = round(min(1.0, max(0.0, share)) * _BAR)
    colour = "red" if share > 0.95 else "yellow" if share > 0.8 else "green"
    return Text.assemble(("\u2588" * filled, colour), ("\u2591" * (_BAR - filled), "dim"))


def _listed(requests: Iterable[int]) -> str:
    first = [str(request) for request in requests]
    return ", ".join(first[:3]) + (" ..." if len(first) > 3 else "") if first else "-"
