"""Keeps what a scheduler was told, so that a run can be decided again.

A scheduler's decisions depend on nothing but what it is told and when. `RecordingScheduler` hands
each such fact to a `RunWriter`, which writes them from a thread of its own:

    a line of JSON (what the run was), then records: kind, fields; all whole numbers in LEB128

Instants are differences from the one before, so that a request takes some twenty bytes.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from aegis_pipe.errors import PermanentError
from aegis_pipe.output_file import OutputFile
from aegis_pipe.scheduling.decision import Decision, Reason, format_decision
from aegis_pipe.scheduling.request import ExecutionRequest
from aegis_pipe.scheduling.scheduler import Scheduler

_log = logging.getLogger(__name__)

FORMAT: Final = 2
INTERVAL_S: Final = 0.1
REASONS: Final = tuple(Reason)


class Submitted(NamedTuple):
    """A request took its place in the queue."""

    at_ns: int
    request_id: int
    model: int
    segment_count: int
    priority: int
    deadline_ns: int
    """-1 for none."""
    arrival_ns: int


class Pending(NamedTuple):
    """A request had a place, and was not in it yet when everything was abandoned."""

    at_ns: int
    request_id: int
    model: int
    segment_count: int
    priority: int
    deadline_ns: int
    arrival_ns: int


class Ended(NamedTuple):
    """A segment left its stream."""

    at_ns: int
    request_id: int
    failed: int


class Cancelled(NamedTuple):
    """Somebody asked for a request to end."""

    request_id: int
    reason: int


class Decided(NamedTuple):
    """The scheduler was asked, and decided something."""

    at_ns: int


class Rejected(NamedTuple):
    """A request found no place; on the thread of whoever submitted it."""

    at_ns: int
    request_id: int
    model: int
    segment_count: int
    priority: int
    deadline_ns: int
    arrival_ns: int
    sequence: int
    reason: int
    queue_depth: int


class Abandoned(NamedTuple):
    """Everything open was ended on the spot."""

    at_ns: int
    failed: int


Fact = Submitted | Pending | Ended | Cancelled | Decided | Rejected | Abandoned
KINDS: Final[tuple[type[Fact], ...]] = (
    Submitted, Pending, Ended, Cancelled, Decided, Rejected, Abandoned,
)  # fmt: skip
_SEAL: Final = len(KINDS)
_CODES: Final = {kind: code for code, kind in enumerate(KINDS)}


class Journal:
    """A hash over all decisions in their order, whoever hands them in when."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._waiting: list[tuple[int, Decision]] = []
        self.count = 0

    def add(self, decisions: Iterable[Decision]) -> None:
        """Take decisions; those whose predecessors are still missing wait for them."""
        for decision in decisions:
            heapq.heappush(self._waiting, (decision.sequence, decision))
        while self._waiting and self._waiting[0][0] == self.count:
            decision = heapq.heappop(self._waiting)[1]
            self._digest.update(format_decision(decision).encode("ascii") + b"\n")
            self.count += 1

    def digest(self) -> bytes:
        """Return the hash; every decision has to be there by now."""
        assert not self._waiting, f"decision {self.count} is missing"
        return self._digest.digest()


class RunWriter:
    """Writes facts and hashes decisions, on a thread of its own; loses nothing.

    Making it raises a PermanentError if the file can not be written. One that can not be written
    any more ends there, with a warning: `problem` says why.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self._facts: deque[Fact | tuple[Decision, ...]] = deque()
        self._journal = Journal()
        self._last_ns = 0
        self.problem = ""
        try:
            self._file = OutputFile(path)
            self._file.write(json.dumps({"format": FORMAT, **header}).encode("utf-8") + b"\n")
        except OSError as error:
            raise PermanentError(
                f"`{path}` can not be written: {error.strerror}",
                context="scheduler.record",
                hint="make room or make it writable, or set `record = false`",
            ) from error
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aegis-recording", daemon=True)
        self._thread.start()
        self.take = self._facts.append
        """Takes a fact, or the decisions that were made; from any thread."""

    def close(self) -> str:
        """Write what is left; return the journal's hash."""
        self._stop.set()
        self._thread.join()
        self._drain()
        digest = self._journal.digest()
        self._write(bytes((_SEAL,)) + digest)
        self._file.close()
        return digest.hex()

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self._drain()

    def _drain(self) -> None:
        out = bytearray()
        for _ in range(len(self._facts)):
            fact = self._facts.popleft()
            if type(fact) is tuple:
                self._journal.add(cast("tuple[Decision, ...]", fact))
            else:
                self._encode(cast(Fact, fact), out)
        self._write(out)

    def _write(self, records: bytes | bytearray) -> None:
        """Write, unless a gap would come before it."""
        if self.problem:
            return
        try:
            self._file.write(records)
        except OSError as error:
            self.problem = error.strerror or str(error)
            _log.warning(
                "%s: the recording ends here (%s); the run goes on: make room there",
                self.path,
                self.problem,
            )

    def _encode(self, fact: Fact, out: bytearray) -> None:
        out.append(_CODES[type(fact)])
        for name, value in fact._asdict().items():
            if name == "at_ns":
                _write(out, value - self._last_ns)
                self._last_ns = value
            elif name == "deadline_ns" and value < 0:
                _write(out, _NO_DEADLINE)
            elif name in ("arrival_ns", "deadline_ns"):
                _write(out, self._last_ns - value)
            else:
                _write(out, value)


_NO_DEADLINE: Final = 1 << 62


def _write(out: bytearray, value: int) -> None:
    # Signed numbers alternate (0, -1, 1, -2, ...), so that small ones are short.
    value = value << 1 if value >= 0 else (-value << 1) - 1
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


class RecordedRun(NamedTuple):
    """A recording, read back."""

    header: Mapping[str, Any]
    facts: tuple[Fact, ...]
    journal: str
    """Hash of the run's own decisions; empty if it was not closed in good order."""


def read_run(path: Path) -> RecordedRun:
    """Read a recording; raises PermanentError for what is none."""
    try:
        content = path.read_bytes()
        line, _, body = content.partition(b"\n")
        header = json.loads(line)
        if header.pop("format") != FORMAT:
            raise ValueError("it is of another version")
        return RecordedRun(header, *_records(body))
    except OSError as error:
        raise PermanentError(
            f"it can not be read: {error.strerror}",
            context=str(path),
            hint="`record = true` under `[scheduler]` makes a run keep its recording",
        ) from error
    except (ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise PermanentError(
            "it is cut short"
            if isinstance(error, IndexError)
            else f"this is no recording: {error}",
            context=str(path),
            hint="give the `.run` file that a run with `record = true` wrote",
        ) from error


def _records(body: bytes) -> tuple[tuple[Fact, ...], str]:
    facts: list[Fact] = []
    position, last_ns = 0, 0
    while position < len(body):
        code = body[position]
        position += 1
        if code == _SEAL:
            return tuple(facts), body[position:].hex()
        kind = KINDS[code]
        values = []
        for name in kind._fields:
            value, position = _read(body, position)
            if name == "at_ns":
                value = last_ns = last_ns + value
            elif name == "arrival_ns":
                value = last_ns - value
            elif name == "deadline_ns":
                value = -1 if value == _NO_DEADLINE else last_ns - value
            values.append(value)
        facts.append(kind(*values))
    return tuple(facts), ""


def _read(body: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (-(value + 1 >> 1) if value & 1 else value >> 1), position


class RecordingScheduler(Scheduler):
    """A scheduler that tells a `RunWriter` what it is told; attach one before the first request."""

    writer: RunWriter
    model_numbers: Mapping[str, int]

    def record_to(self, writer: RunWriter, models: Iterable[str]) -> None:
        """Begin to record; `models` are numbered in this order."""
        self.writer = writer
        self.model_numbers = {model: number for number, model in enumerate(models)}

    def reject(self, request: ExecutionRequest, now_ns: int, reason: Reason) -> Decision:
        """As a scheduler; a refusal is a fact of its own."""
        refusal = super().reject(request, now_ns, reason)
        self.writer.take(
            Rejected(
                *self._described(request, now_ns),
                refusal.sequence,
                REASONS.index(refusal.reason),
                refusal.queue_depth,
            )
        )
        self.writer.take((refusal,))
        return refusal

    def enqueue(self, request: ExecutionRequest, now_ns: int) -> None:
        """As a scheduler, and keep it."""
        self.writer.take(Submitted(*self._described(request, now_ns)))
        super().enqueue(request, now_ns)

    def cancel(self, request_id: int, reason: Reason = Reason.CALLER_CANCELLED) -> bool:
        """As a scheduler, and keep it if the request was open."""
        was_open = super().cancel(request_id, reason)
        if was_open:
            self.writer.take(Cancelled(request_id, REASONS.index(reason)))
        return was_open

    def segment_finished(
        self, request_id: int, now_ns: int, error: Exception | None = None
    ) -> None:
        """As a scheduler, and keep it."""
        self.writer.take(Ended(now_ns, request_id, int(error is not None)))
        super().segment_finished(request_id, now_ns, error)

    def decide(self, now_ns: int) -> tuple[Decision, ...]:
        """As a scheduler, and keep that it was asked, if it decided anything."""
        decisions = super().decide(now_ns)
        if decisions:
            self.writer.take(Decided(now_ns))
            self.writer.take(decisions)
        return decisions

    def abandon(
        self,
        now_ns: int,
        error: Exception | None = None,
        *,
        admitted: Iterable[ExecutionRequest] = (),
    ) -> tuple[Decision, ...]:
        """As a scheduler, and keep it."""
        pending = list(admitted)
        for request in pending:
            self.writer.take(Pending(*self._described(request, now_ns)))
        decisions = super().abandon(now_ns, error, admitted=pending)
        self.writer.take(Abandoned(now_ns, int(error is not None)))
        self.writer.take(decisions)
        return decisions

    def _described(
        self, request: ExecutionRequest, now_ns: int
    ) -> tuple[int, int, int, int, int, int, int]:
        return (
            now_ns,
            request.request_id,
            self.model_numbers[request.model],
            request.segment_count,
            request.priority,
            -1 if request.deadline_ns is None else request.deadline_ns,
            request.arrival_ns,
        )


def numbers_without(taken: frozenset[int]) -> Iterator[int]:
    """Yield 0, 1, 2, ... but for those taken."""
    number = 0
    while True:
        if number not in taken:
            yield number
        number += 1
