"""Run a manifest: load its models, feed its pipelines, report at the end.

Ends when every source has ended, after `--for`, or at ctrl-C; what is under way is finished first.
SIGHUP reads the manifest again and, if it is sound, goes on with it.
On a terminal it shows how it goes; elsewhere it prints a line now and then.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.live import Live

from aegis_pipe import units
from aegis_pipe.app import Runtime, open_pipeline
from aegis_pipe.cli import standard_streams
from aegis_pipe.cli.admission import outcome_lines
from aegis_pipe.cli.arguments import duration
from aegis_pipe.cli.live import LiveView
from aegis_pipe.cli.tables import SUMMARY_HEADER, counted, summary_row, table
from aegis_pipe.device.registry import AUTO
from aegis_pipe.errors import AegisError, FatalError
from aegis_pipe.events import Listener
from aegis_pipe.runtime_report import RuntimeReport
from aegis_pipe.telemetry import TelemetryReport

REFRESH_S = 0.5
PROGRESS_S = 5.0
ERRORS_SHOWN = 10
"""Different errors of one pipeline that are printed."""
LIVE_SHARE = 0.01
"""Most of a core that the live view may take: it is shown less often if it takes long."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the manifest, `--for`, `--json`, `--quiet`."""
    parser.add_argument("manifest", help="path of the TOML file")
    parser.add_argument(
        "--for",
        dest="duration_ns",
        type=duration,
        metavar="TIME",
        help='end after this time, such as "10s" or "2 min"',
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--quiet", action="store_true", help="print nothing but the summary")


def run(options: argparse.Namespace) -> int:
    """Run to the end; 1 if a pipeline, an item or an enforced admission's promise failed."""
    signals = _Signals()
    screen = _Screen(quiet=options.quiet or options.json)
    with ExitStack() as stack:
        stack.enter_context(signals.heeded())
        runtime = stack.enter_context(
            open_pipeline(options.manifest, listeners=screen.listeners, write_line=screen.line)
        )
        signals.loaded()
        screen.line(_headline(runtime))
        if runtime.manifest.device.kind == AUTO:
            screen.line(f"device: {runtime.device_reason}")
        for wish in runtime.unmet_wishes:
            screen.line(f"note: {wish}")
        runtime.start_pipelines(on_error=screen.failure)
        _wait(runtime, signals, options.duration_ns, screen, options.manifest)
        if signals.stops:
            screen.line("stopping: what is under way is finished; ctrl-C again gives it up")
        runtime.close(give_up=signals.gives_up)
    report = runtime.report()
    if options.json:
        print(json.dumps(_as_json(report), indent=2, default=str))
    else:
        print(summary(report))
    if signals.gives_up.is_set():
        return 130
    return 1 if report.failed else 0


class _Signals:
    """What ctrl-C, SIGTERM and SIGHUP ask for; `news` is set by each of them.

    The first ctrl-C or SIGTERM ends the loading at once, or a run in good order; the second sets
    `gives_up`, the third ends the process. A SIGHUP that comes during the loading is heeded after.
    """

    def __init__(self) -> None:
        self.news = threading.Event()
        self.gives_up = threading.Event()
        self.stops = False
        self._is_loaded = False
        self._reloads = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Take notice of signals."""
        handlers = {signal.SIGINT: self._stop, signal.SIGTERM: self._stop}
        if hasattr(signal, "SIGHUP"):
            handlers[signal.SIGHUP] = self._reload
        previous = {number: signal.signal(number, handlers[number]) for number in handlers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def loaded(self) -> None:
        """Have the next signal end a run; one that got lost during the loading ends it now.

        Python drops what is raised in callbacks and finalisers, KeyboardInterrupt among them.
        """
        self._is_loaded = True
        if self.stops:
            raise KeyboardInterrupt

    def take_reload(self) -> bool:
        """Return whether a reload was asked for since the last time."""
        asked, self._reloads = self._reloads, False
        if asked and not self.stops:
            self.news.clear()
        return asked

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if not self._is_loaded:
            self.stops = True
            raise KeyboardInterrupt
        if self.stops:
            self.gives_up.set()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.stops = True
        self.news.set()

    def _reload(self, number: int, frame: FrameType | None) -> None:
        self._reloads = True
        self.news.set()


def _wait(
    runtime: Runtime,
    signals: _Signals,
    duration_ns: int | None,
    screen: _Screen,
    path: str,
) -> None:
    """Show how it goes until the run is over, and reload the manifest when asked to."""
    start_ns = runtime.clock.now_ns()
    with screen.live(runtime):
        while not signals.stops:
            if signals.take_reload():
                _reload(runtime, path, screen)
                continue
            elapsed_ns = runtime.clock.now_ns() - start_ns
            if duration_ns is not None and elapsed_ns >= duration_ns:
                break
            rest_s = REFRESH_S if duration_ns is None else (duration_ns - elapsed_ns) / 1e9
            if runtime.join(min(REFRESH_S, rest_s), signals.news):
                break
            screen.refresh(runtime, elapsed_ns)


def _reload(runtime: Runtime, path: str, screen: _Screen) -> None:
    """Reload, and say how it went; a FatalError ends the run."""
    try:
        report = runtime.reload(path)
    except FatalError:
        raise
    except AegisError as error:
        screen.error(f"reload: {error}")
        return
    if report.outcome == "unchanged":
        screen.line("reload: nothing has changed")
        return
    parts = [
        f"{words} {', '.join(models)}"
        for words, models in (
            ("added", report.models_added),
            ("removed", report.models_removed),
            ("loaded anew", report.models_reloaded),
            ("kept", report.models_kept),
        )
        if models
    ]
    screen.line(f"reload: applied; {'; '.join(parts)}\n{_headline(runtime)}")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise what was raised, which would end the process otherwise."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class _Screen:
    """A live table on a terminal, plain lines otherwise, nothing when quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._console = _Console(stderr=True)
        self._live: Live | None = None
        is_live = self._console.is_terminal and not quiet
        self._view = LiveView() if is_live else None
        self._told: dict[str, set[str]] = {}
        """Errors that were printed, by pipeline."""
        self._telling = threading.Lock()
        self._next_live_s = 0.0
        self._next_line_s = PROGRESS_S

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Return what has to hear of the run's events."""
        return () if self._view is None else (self._view,)

    def line(self, text: str) -> None:
        """Print one line (above the live table)."""
        if not self._quiet:
            self._print(text)

    def failure(self, pipeline: str, error: AegisError) -> None:
        """Print an item's or a pipeline's error at once; quiet runs print these too.

        The same words once, and no more than `ERRORS_SHOWN` of a pipeline: a source that goes round
        over a broken file would bury all else. The summary counts them.
        """
        text = f"pipeline `{pipeline}`: {error}"
        with self._telling:
            told = self._told.setdefault(pipeline, set())
            if text in told or len(told) > ERRORS_SHOWN:
                return
            told.add(text)
            is_too_many = len(told) > ERRORS_SHOWN
        self.error(
            f"pipeline `{pipeline}`: and others, which are only counted" if is_too_many else text
        )

    def error(self, text: str) -> None:
        """Print an error at once, quiet or not."""
        self._print(f"error: {text}")

    def _print(self, text: str) -> None:
        try:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        except OSError:
            # Who read it has gone, or its disk is full: the run goes on without.
            self._console.quiet = True
            standard_streams.drop(2)

    @contextmanager
    def live(self, runtime: Runtime) -> Iterator[None]:
        """Keep a table on the terminal for the length of the block."""
        if self._view is None:
            yield
            return
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            self._live = live
            self.refresh(runtime, 0)
            yield
        self._live = None

    def refresh(self, runtime: Runtime, elapsed_ns: int) -> None:
        """Show the present state."""
        if self._live is not None and self._view is not None:
            if elapsed_ns / 1e9 >= self._next_live_s:
                start_ns = time.thread_time_ns()
                self._live.update(self._view.render(runtime, self._console.size), refresh=True)
                cost_s = (time.thread_time_ns() - start_ns) / 1e9
                pause_s = max(0.9 * REFRESH_S, cost_s / LIVE_SHARE)
                self._next_live_s = elapsed_ns / 1e9 + pause_s
        elif elapsed_ns / 1e9 >= self._next_line_s:
            # Not one for each that a stopped process left out.
            self._next_line_s += (elapsed_ns / 1e9 - self._next_line_s) // PROGRESS_S * PROGRESS_S
            self._next_line_s += PROGRESS_S
            figures = runtime.statistics().models
            done = "  ".join(f"{m.model} {m.completed} done" for m in figures)
            self.line(f"{elapsed_ns / 1e9:5.1f} s  {done}")


def _headline(runtime: Runtime) -> str:
    report = runtime.report()
    return (
        f"{report.name}: {counted(len(report.statistics.models), 'model')} on {report.device}, "
        f"{counted(report.streams, 'stream')}, policy {report.policy}\n"
        f"memory: {_planned(report)}"
    )


def _planned(report: RuntimeReport) -> str:
    total = units.format_size(report.plan.total_bytes)
    staging = ""
    if report.plan.staging_bytes:
        staging = f"; {units.format_size(report.plan.staging_bytes)} of host staging"
    if report.memory_budget_bytes is None:
        return f"{total} planned, no budget{staging}"
    budget = units.format_size(report.memory_budget_bytes)
    return f"{total} planned of a budget of {budget}{staging}"


def summary(report: RuntimeReport) -> str:
    """Format how a run went."""
    rows = [summary_row(m) for m in report.statistics.models]
    lines = [
        f"{report.name}: {report.elapsed_ns / 1e9:.1f} s on {report.device}, "
        f"{counted(report.streams, 'stream')}, policy {report.policy}; times in ms",
        "",
        table(SUMMARY_HEADER, rows),
        "",
        *_memory_lines(report),
    ]
    for pipeline in report.pipelines:
        lines.append(
            f"pipeline {pipeline.name}: {pipeline.completed} items completed, "
            f"{pipeline.dropped} dropped, {pipeline.failed} failed{_reasons(pipeline.reasons)}"
        )
        lines += [f"  {line}" for line in pipeline.sinks]
        lines += [f"  stopped: {pipeline.error}"] if pipeline.error else []
    lines += _telemetry_lines(report.telemetry)
    if report.admission is not None:
        lines += outcome_lines(report.admission)
    if any(report.overruns.values()):
        counts = ", ".join(f"{name} {count}" for name, count in report.overruns.items() if count)
        lines.append(f"profile: overrun by segments of {counts}: measure it anew")
    for recording in report.recordings:
        problem = f"; it is not whole: {recording.problem}" if recording.problem else ""
        lines.append(f"recorded: {recording.path}, journal {recording.journal}{problem}")
    return "\n".join(lines)


def _memory_lines(report: RuntimeReport) -> list[str]:
    plan, size = report.plan, units.format_size
    peaks = [each.peak_bytes for each in report.statistics.staging]
    staging = (
        [
            f"  at most {size(sum(peaks))} of the streams' host staging used, "
            f"{counted(report.statistics.staged_ahead, 'request')} staged ahead"
        ]
        if plan.staging_bytes
        else []
    )
    return [
        f"memory: {_planned(report)}",
        f"  weights {size(plan.weights_bytes)}, {counted(plan.stream_count, 'arena')} of "
        f"{size(plan.arenas_bytes)} together; sharing saves {size(max(0, plan.saved_bytes))}",
        *staging,
        f"  {report.statistics.allocations_after_start} device allocations after start",
    ]


def _telemetry_lines(report: TelemetryReport | None) -> list[str]:
    if report is None:
        return ["telemetry: none (the manifest names no destination)"]
    sinks = [
        f"  {sink.where}: {counted(sink.exported_spans, 'span')}, {sink.dropped_spans} lost"
        for sink in report.sinks
    ]
    others = [
        f"  {place}" for place in report.where if place not in {s.where for s in report.sinks}
    ]
    lost = f"telemetry: {counted(report.dropped_events, 'event')} lost"
    if report.lost_log_lines:
        lost += f", {counted(report.lost_log_lines, 'line')} of the log lost"
    return [lost, *sinks, *others]


def _reasons(reasons: Any) -> str:
    return (
        f" ({', '.join(f'{count} {name}' for name, count in reasons.items())})" if reasons else ""
    )


def _as_json(value: Any) -> Any:
    """Return dataclasses, named tuples and mappings, one in the other, as JSON has them."""
    if dataclasses.is_dataclass(value):
        names = (field.name for field in dataclasses.fields(value))
        return {name: _as_json(getattr(value, name)) for name in names}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _as_json(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(key): _as_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(part) for part in value]
    return value
