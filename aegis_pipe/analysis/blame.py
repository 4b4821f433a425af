"""Where a request's time went, from the events of a run's log, or of its trace in that form.

A request's life from arrival to end is cut at every event that concerns it or its stream, and
each piece is put down to exactly one cause, so that the pieces add up to the whole:

    queue      another request of at least its priority was on the stream
    blocked    a segment of a request of lower priority was, and could not be preempted
    execute    its own kernels ran
    copy       its inputs or outputs were copied
    launch     it was handed to the device, which had not begun yet
    host       nobody was on the stream: waking up, deciding, reporting
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Line = Mapping[str, Any]
"""An event as the log has it, parsed."""

_NEVER_NS = 2**63

CAUSES = ("queue", "blocked", "execute", "copy", "launch", "host")


class Piece(NamedTuple):
    """A stretch of a request's life with its cause."""

    cause: str
    start_ns: int
    end_ns: int
    request: str
    """Whose work it was: its own, or another's that it waited for."""
    model: str
    segment: int
    """-1 where no segment is meant."""

    @property
    def duration_ns(self) -> int:
        """Length of the stretch."""
        return self.end_ns - self.start_ns


@dataclass(frozen=True, slots=True)
class Rival:
    """A request that competed, with its score."""

    request: str
    model: str
    score: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """A request's life, and the decision that started it."""

    request: str
    model: str
    outcome: str
    reason: str
    priority: int
    arrival_ns: int
    end_ns: int
    deadline_ns: int | None
    missed: bool
    policy: str
    rule: str
    """Which rule set the winner of its start decision apart; empty if it never started."""
    stream: str
    queue_depth: int
    candidates: tuple[Rival, ...]
    """Of its start decision, best first: it is the winner."""
    lost: tuple[str, ...]
    """Requests that were started in its place while it waited, on its stream."""
    pieces: tuple[Piece, ...]

    @property
    def total_ns(self) -> int:
        """Arrival to end."""
        return self.end_ns - self.arrival_ns

    def by_cause(self) -> dict[str, int]:
        """Return nanoseconds by cause; they add up to the total."""
        sums = dict.fromkeys(CAUSES, 0)
        for piece in self.pieces:
            sums[piece.cause] += piece.duration_ns
        return sums

    def by_culprit(self) -> list[Piece]:
        """Return what it waited for, longest first: one piece per request and cause."""
        grouped: defaultdict[tuple[str, str, str], list[Piece]] = defaultdict(list)
        for piece in self.pieces:
            if piece.cause in ("queue", "blocked"):
                grouped[piece.cause, piece.request, piece.model].append(piece)
        merged = [
            # Together as long as its parts, from the first on.
            Piece(
                cause,
                pieces[0].start_ns,
                pieces[0].start_ns + sum(piece.duration_ns for piece in pieces),
                request,
                model,
                pieces[0].segment if len(pieces) == 1 else -1,
            )
            for (cause, request, model), pieces in grouped.items()
        ]
        return sorted(merged, key=lambda piece: (-piece.duration_ns, piece.request))


class RunLog:
    """The events of a run, by request and by stream."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._submitted: dict[str, Line] = {}
        self._finished: dict[str, Line] = {}
        self._decisions: defaultdict[str, list[Line]] = defaultdict(list)
        self._copies: defaultdict[str, list[Line]] = defaultdict(list)
        self._on_stream: defaultdict[str, list[Line]] = defaultdict(list)
        self._reloads: list[Line] = []
        keep = {
            "request_submitted": lambda line: self._submitted.update({line["request_id"]: line}),
            "request_finished": lambda line: self._finished.update({line["request_id"]: line}),
            "schedule_decision": lambda line: self._decisions[line["request_id"]].append(line),
            "copy_finished": lambda line: self._copies[line["request_id"]].append(line),
            "segment_finished": lambda line: self._on_stream[line["stream_id"]].append(line),
            "manifest_reloaded": self._reloads.append,
        }
        for line in lines:
            if (take := keep.get(line.get("event", ""))) is not None:
                take(line)
        for segments in self._on_stream.values():
            # By number those of one batch, which are launched together.
            segments.sort(key=lambda line: (line["launch_ns"], _number(line["request_id"])))
        self._ran = {line["request_id"] for lines in self._on_stream.values() for line in lines}
        self._ran |= {r for r, line in self._finished.items() if line["outcome"] == "completed"}

    @property
    def requests(self) -> tuple[str, ...]:
        """Finished requests, in the order in which they ended."""
        return tuple(self._finished)

    def worst(self, count: int) -> list[str]:
        """Return the requests with the longest lives, longest first."""

        def life_ns(request: str) -> int:
            line = self._finished[request]
            return int(line["timestamp"] - line["arrival_ns"])

        return sorted(self._finished, key=lambda request: (-life_ns(request), request))[:count]

    def missing(self, request: str) -> int:
        """Return how many decisions and requests that an explanation needs are not in the log.

        Decisions made while the request lived are numbered without gaps (from 0 on again after a
        reload), and they name the requests that held its streams. KeyError as for `explain`.
        """
        finished = self._finished[request]
        arrival_ns, end_ns = finished["arrival_ns"], finished["timestamp"]
        since_ns = max([r["start_ns"] for r in self._reloads if r["start_ns"] <= arrival_ns] or [0])
        until_ns = min([r["end_ns"] for r in self._reloads if r["end_ns"] >= end_ns] or [_NEVER_NS])
        numbers = {
            line["sequence"]: arrival_ns <= line["start_ns"] <= end_ns
            for lines in self._decisions.values()
            for line in lines
            if since_ns <= line["start_ns"] <= until_ns
        }
        own = self._decisions[request]
        within = [number for number, is_within in numbers.items() if is_within]
        within += [line["sequence"] for line in own]
        expected = range(min(within), max(within) + 1) if within else ()
        gaps = sum(number not in numbers for number in expected)
        # Every request is decided about, though not always between two others that are there.
        kinds = {line["kind"] for line in own}
        if not kinds or (request in self._ran and "start" not in kinds):
            gaps = max(gaps, 1)
        blockers = {other for line in own for other in line["blocked_by"]}
        return gaps + len(blockers - self._finished.keys() - self._submitted.keys())

    def explain(self, request: str) -> Explanation:
        """Explain one finished request; KeyError if the log has no end of it."""
        finished = self._finished[request]
        submitted = self._submitted.get(request, {})
        decisions = self._decisions[request]
        start = next((each for each in decisions if each["kind"] == "start"), None)
        stream = (start or {}).get("stream_id") or ""
        priority = submitted.get("priority") or 0
        arrival_ns, end_ns = finished["arrival_ns"], finished["timestamp"]
        return Explanation(
            request=request,
            model=finished["model"],
            outcome=finished["outcome"],
            reason=finished["reason"],
            priority=priority,
            arrival_ns=arrival_ns,
            end_ns=end_ns,
            deadline_ns=finished["deadline_ns"],
            missed=finished["deadline_missed"],
            policy=decisions[0]["policy"] if decisions else "",
            rule=start["reason"] if start else "",
            stream=stream,
            queue_depth=start["queue_depth"] if start else 0,
            candidates=tuple(
                Rival(other, self._model(other), float(score))
                for other, score in (start or {}).get("candidates", ())
            ),
            lost=self._started_before(request, stream, arrival_ns, start),
            pieces=tuple(self._pieces(request, priority, stream, arrival_ns, end_ns)),
        )

    def _model(self, request: str) -> str:
        line = self._submitted.get(request) or self._finished.get(request) or {}
        return str(line.get("model", "?"))

    def _priority(self, request: str) -> int:
        return self._submitted.get(request, {}).get("priority") or 0

    def _started_before(
        self, request: str, stream: str, arrival_ns: int, start: Line | None
    ) -> tuple[str, ...]:
        until_ns = start["start_ns"] if start else self._finished[request]["timestamp"]
        others = (
            line["request_id"]
            for line in self._segments(stream)
            if arrival_ns <= line["launch_ns"] < until_ns and line["request_id"] != request
        )
        return tuple(dict.fromkeys(others))

    def _segments(self, stream: str) -> Sequence[Line]:
        """Return what ran on a stream; on any, for a request that never got one."""
        if stream:
            return self._on_stream[stream]
        return [line for name in sorted(self._on_stream) for line in self._on_stream[name]]

    def _pieces(
        self, request: str, priority: int, stream: str, arrival_ns: int, end_ns: int
    ) -> list[Piece]:
        stretches = [
            # Earlier entries win where two overlap.
            *self._own(request, stream),
            *self._others(request, priority, stream, arrival_ns, end_ns),
            *self._launches(request, stream),
        ]
        cuts = {arrival_ns, end_ns}
        for stretch in stretches:
            cuts.update((stretch.start_ns, stretch.end_ns))
        edges = sorted(cut for cut in cuts if arrival_ns <= cut <= end_ns)
        pieces: list[Piece] = []
        for first_ns, last_ns in itertools.pairwise(edges):
            cause = next(
                (
                    each
                    for each in stretches
                    if each.start_ns <= first_ns and each.end_ns >= last_ns
                ),
                Piece("host", first_ns, last_ns, request, self._model(request), -1),
            )
            piece = cause._replace(start_ns=first_ns, end_ns=last_ns)
            if pieces and _is_same(pieces[-1], piece):
                pieces[-1] = pieces[-1]._replace(end_ns=last_ns)
            else:
                pieces.append(piece)
        return pieces

    def _own(self, request: str, stream: str) -> list[Piece]:
        model = self._model(request)
        ran = [
            Piece("execute", line["start_ns"], line["end_ns"], request, model, line["segment"])
            for line in self._on_stream[stream]
            if line["request_id"] == request
        ]
        copied = [
            Piece("copy", line["start_ns"], line["end_ns"], request, model, -1)
            for line in self._copies[request]
        ]
        return ran + copied

    def _launches(self, request: str, stream: str) -> list[Piece]:
        return [
            Piece(
                "launch",
                line["launch_ns"],
                line["start_ns"],
                request,
                line["model"],
                line["segment"],
            )
            for line in self._on_stream[stream]
            if line["request_id"] == request
        ]

    def _others(
        self, request: str, priority: int, stream: str, arrival_ns: int, end_ns: int
    ) -> list[Piece]:
        # Behind its own last segment others follow, for whom it does not wait.
        own = [
            line["launch_ns"] for line in self._on_stream[stream] if line["request_id"] == request
        ]
        until_ns = max(own, default=end_ns)
        return [
            Piece(
                "blocked" if self._priority(line["request_id"]) < priority else "queue",
                line["launch_ns"],
                line["end_ns"],
                line["request_id"],
                line["model"],
                line["segment"],
            )
            for line in self._segments(stream)
            if line["request_id"] != request
            and line["end_ns"] > arrival_ns
            and line["launch_ns"] < end_ns
            and line["launch_ns"] <= until_ns
        ]


def _number(request: str) -> int:
    return int(request.removeprefix("req-"))


def _is_same(one: Piece, other: Piece) -> bool:
    return one._replace(start_ns=0, end_ns=0) == other._replace(start_ns=0, end_ns=0)
