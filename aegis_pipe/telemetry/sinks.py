"""Where spans go: the protocol of a destination, and the thread that feeds one.

Each destination has a bounded queue and a thread of its own, so that a slow or dead collector
delays neither the log nor another destination, and closing is bounded. A batch is tried once;
after a failure the destination is left in peace for a while that doubles up to `PAUSE_MAX_S`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Final, NamedTuple, Protocol

from aegis_pipe.telemetry.lull import Lull
from aegis_pipe.telemetry.spans import Span, SpanBlock, Trace, span_count

BATCH_SPANS: Final = 4_096
"""Some 0.7 MB of OTLP; collectors refuse messages above 4 MiB."""
BATCH_MIN_SPANS: Final = 128
BATCHES_A_BACKLOG: Final = 4
"""Small batches, so that what one costs, here and at a collector on this machine, fits between two
requests; larger ones where much waits."""
PATIENCE_S: Final = 0.4
"""How long all that is ready waits for lulls; the queue has room for much more."""
PAUSE_MIN_S: Final = 1.0
PAUSE_MAX_S: Final = 30.0

_log = logging.getLogger(__name__)


class SpanSink(Protocol):
    """A destination of spans. `close` may be called while another thread is in `export`."""

    @property
    def where(self) -> str:
        """Name the destination, for messages and the report."""
        ...

    @property
    def problem(self) -> str:
        """Say what went wrong at the last failed export."""
        ...

    def open(self) -> None:
        """Get ready; may take long (imports), connects to nobody."""
        ...

    def export(self, batch: Trace) -> bool:
        """Hand over a batch; return whether it arrived."""
        ...

    def close(self) -> None:
        """Let go of the destination, cutting short what is on its way; idempotent."""
        ...


class SinkReport(NamedTuple):
    """What became of the spans meant for one destination."""

    where: str
    exported_spans: int
    dropped_spans: int
    failed_exports: int


class SinkFeeder:
    """Feeds one sink from a bounded queue, on a thread of its own."""

    def __init__(self, sink: SpanSink, queue_capacity: int, lull: Lull) -> None:
        self._sink = sink
        self._lull = lull
        self._queue: deque[Trace] = deque()
        self._capacity = queue_capacity
        self._offered = 0
        self._overflowed = 0
        self._taken = 0
        self._exported = 0
        self._failed_exports = 0
        self._failed_spans = 0
        self._pause_s = 0.0
        """Above 0 after a failure, until an export succeeds."""
        self._ready = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"aegis-telemetry {sink.where}", daemon=True
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def offer(self, trace: Trace) -> None:
        """Enqueue a trace; beyond the capacity the oldest give way. For one thread only."""
        self._offered += span_count(trace)
        self._queue.append(trace)
        # Whole traces are lost, never some of their spans: half a trace misleads.
        while self._waiting > self._capacity and (oldest := self._pop()):
            self._overflowed += span_count(oldest)

    def wake(self) -> None:
        """Have the thread hand over what was offered; not for each trace, so that batches fill."""
        self._ready.set()

    def finish(self) -> None:
        """Ask the thread to hand over what it has and end; does not wait."""
        self._stop.set()
        self._ready.set()

    def close(self, timeout_s: float) -> SinkReport:
        """Finish, wait no longer than that, close the sink, and report; what is left is lost."""
        self.finish()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._sink.close()
        exported = self._exported
        dropped = self._offered - exported
        return SinkReport(self._sink.where, exported, dropped, self._failed_exports)

    @property
    def lost_spans(self) -> int:
        """Return how many spans are lost for good so far."""
        return self._overflowed + self._failed_spans

    @property
    def _waiting(self) -> int:
        return self._offered - self._overflowed - self._taken

    def _run(self) -> None:
        try:
            self._feed()
        except Exception:
            # A sink's fault must neither take the run down nor stay unheard.
            _log.exception("telemetry no longer goes to %s; the run goes on", self._sink.where)

    def _feed(self) -> None:
        self._sink.open()
        is_last = False
        while not is_last:
            self._ready.wait()
            self._ready.clear()
            # Read before draining: what was offered before `finish` is then drained for sure.
            is_last = self._stop.is_set()
            self._drain()

    def _drain(self) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while self._queue:
            self._lull.wait(until_s)
            batch = self._take()
            if batch:
                self._send(batch)
            if self._pause_s and self._stop.wait(self._pause_s):
                # Closing, and the last try failed: another would only hold up the end.
                self._queue.clear()

    def _take(self) -> Trace:
        """Return whole traces, of the batch's size or a little more."""
        spans_max = min(max(BATCH_MIN_SPANS, self._waiting // BATCHES_A_BACKLOG), BATCH_SPANS)
        batch: list[Span | SpanBlock] = []
        spans = 0
        while spans < spans_max and (trace := self._pop()):
            batch += trace
            spans += span_count(trace)
        self._taken += spans
        return batch

    def _pop(self) -> Trace:
        """Return the oldest trace; empty if the other thread was quicker."""
        try:
            return self._queue.popleft()
        except IndexError:
            return ()

    def _send(self, batch: Trace) -> None:
        if self._sink.export(batch):
            self._exported += span_count(batch)
            self._pause_s = 0.0
            return
        if not self._failed_exports:
            _log.warning(
                "no traces reach %s (%s); the run goes on without them: start a collector there, "
                "make room if it is a file, or take it out of the manifest's `telemetry`",
                self._sink.where,
                self._sink.problem,
            )
        self._failed_exports += 1
        self._failed_spans += span_count(batch)
        self._pause_s = min(max(PAUSE_MIN_S, 2 * self._pause_s), PAUSE_MAX_S)
