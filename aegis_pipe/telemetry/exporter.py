"""The thread on which events become log lines and spans, away from the requests they tell of."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Final

from aegis_pipe.clock import Clock
from aegis_pipe.events import Event
from aegis_pipe.telemetry.assembler import TraceAssembler
from aegis_pipe.telemetry.files import LineFile
from aegis_pipe.telemetry.json_log import JsonLogFormat
from aegis_pipe.telemetry.lull import Lull
from aegis_pipe.telemetry.metrics import MetricsRecorder
from aegis_pipe.telemetry.ring import EventRing
from aegis_pipe.telemetry.sinks import SinkFeeder
from aegis_pipe.telemetry.spans import Trace

POLL_S: Final = 0.1
"""How often the ring is emptied: nobody wakes the exporter, as that would cost the emitters."""
PATIENCE_S: Final = 0.08
"""How long all traces of a round wait for lulls. Below `POLL_S`, as the ring is emptied as often
while they do."""
BREATH_S: Final = 0.0001
TRACES_A_BREATH: Final = 3
"""Some 0.3 ms of work: no request waits longer than that for the interpreter."""

_log = logging.getLogger(__name__)


class JsonLog:
    """Writes events to a file, as long as that goes well."""

    def __init__(self, file: LineFile, line_format: JsonLogFormat) -> None:
        self._file = file
        self._format = line_format
        self.where = file.where
        self.lost_lines = 0

    def write(self, events: Sequence[Event]) -> None:
        """Append a line per event; a full disk is said once and costs the lines only."""
        if self._file.write([self._format.line(event) for event in events]):
            return
        if not self.lost_lines:
            _log.warning(
                "events are not logged to %s (%s); the run goes on without: make room there",
                self.where,
                self._file.problem,
            )
        self.lost_lines += len(events)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Exporter:
    """Empties the ring at intervals; hands events to log and metrics, and spans to the sinks."""

    def __init__(
        self,
        ring: EventRing,
        assembler: TraceAssembler,
        feeders: Sequence[SinkFeeder],
        log: JsonLog | None,
        metrics: MetricsRecorder | None,
        clock: Clock,
        lull: Lull,
    ) -> None:
        self._ring = ring
        self._assembler = assembler
        self._feeders = feeders
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self._lull = lull
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aegis-telemetry", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Work off what has been emitted; return whether that was done within the time."""
        self._stop.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            pause_s = POLL_S
            while not self._stop.wait(pause_s):
                began_s = time.monotonic()
                self._take_events()
                self._offer(self._assembler.settle(self._clock.now_ns()))
                pause_s = max(POLL_S - PATIENCE_S, POLL_S - (time.monotonic() - began_s))
            self._take_events()
            self._offer(self._assembler.flush())
        except Exception:
            # Telemetry must not take the run down with it, and must not die unheard either.
            _log.exception("telemetry stopped; the run goes on without it")

    def _take_events(self) -> None:
        events = self._ring.drain()
        self._assembler.note_dropped(self._ring.dropped_count(), self._clock.now_ns())
        if events and self._log is not None:
            self._log.write(events)
        for event in events:
            self._assembler.add(event)
        if self._metrics is not None:
            for event in events:
                self._metrics.add(event)

    def _offer(self, traces: Iterable[Trace]) -> None:
        until_s = time.monotonic() + PATIENCE_S
        self._lull.wait(until_s)
        for count, trace in enumerate(traces, 1):
            for feeder in self._feeders:
                feeder.offer(trace)
            # A trace may take as long to build as a request to run: let others have the
            # interpreter in between.
            if count % TRACES_A_BREATH == 0:
                time.sleep(BREATH_S)
            self._lull.wait(until_s)
        for feeder in self._feeders:
            feeder.wake()
