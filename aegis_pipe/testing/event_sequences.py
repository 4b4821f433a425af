"""Sequences of events as a run emits them, for tests of whatever listens to an EventHub.

Everything follows from the arguments; times start at `START_NS`, so that 0 stays "none".
"""

from __future__ import annotations

from typing import Final

import numpy as np

from aegis_pipe.events import (
    CopyFinished,
    DecisionMade,
    Event,
    EventSynchronised,
    ItemFinished,
    ListenerFailed,
    ManifestReloaded,
    MemoryAllocated,
    MemoryReleased,
    ModelLoaded,
    PhaseFinished,
    ProfileOverrun,
    RequestFinished,
    RequestSubmitted,
    RuntimeStarted,
    RuntimeStopped,
    SegmentFinished,
    StageFinished,
)

START_NS: Final = 1_000_000_000
MODEL: Final = "detector"
OPERATORS: Final = ("Conv", "Relu", "MatMul")

_WAIT_NS: Final = 40_000
_DECIDE_NS: Final = 3_000
_LAUNCH_NS: Final = 5_000
_COPY_NS: Final = 7_300
_KERNEL_NS: Final = 10_700
_REPORT_NS: Final = 6_000


def load_events(*, segments: int = 2, kernels: int = 6, tensors: int = 200) -> list[Event]:
    """Return a start-up: one model of that many segments, kernels a segment, planned tensors."""
    table = tuple(
        tuple(
            (OPERATORS[call % len(OPERATORS)], f"/layer.{segment}/{call}", "numpy")
            for call in range(kernels)
        )
        for segment in range(segments)
    )
    at = START_NS
    return [
        RuntimeStarted(at, "run", "cpu", "asked for", "priority", 2),
        _phase(2, 1, "onnx.load", at + 1_000, at + 20_000, {"nodes": 12}),
        _phase(4, 3, "pass.fold_constants", at + 21_000, at + 25_000, {"removed": 3}),
        _phase(3, 1, "passes", at + 20_500, at + 30_000, {}),
        _phase(5, 1, "memory.plan", at + 31_000, at + 40_000, {"optimal": True}),
        *(
            MemoryAllocated(at + 42_000 + i, "arena", MODEL, f"t{i}", 64 * i, 64)
            for i in range(tensors)
        ),
        _phase(6, 1, "pool.reserve", at + 41_000, at + 50_000, {}),
        _phase(7, 1, "graph.capture", at + 51_000, at + 90_000, {"ratio": 0.5}),
        _phase(1, 0, "model.load", at, at + 100_000, {}),
        ModelLoaded(at + 100_000, MODEL, 1, table, 4_096, 8_192),
    ]


def reload_events(at_ns: int) -> list[Event]:
    """Return a reload that changes what is not loaded: the model stays."""
    before, after = "b" * 64, "a" * 64
    attributes: dict[str, str | int | float | bool] = {
        "aegis.reload.outcome": "applied",
        "aegis.reload.digest.before": before,
        "aegis.reload.digest.after": after,
        "aegis.reload.models.added": "",
        "aegis.reload.models.removed": "",
        "aegis.reload.models.reloaded": "",
        "aegis.reload.models.kept": MODEL,
        "aegis.reload.requests_held": 1,
    }
    end_ns = at_ns + 60_000
    return [
        PhaseFinished(12, 11, "manifest.validate", "", at_ns + 1_000, at_ns + 20_000, {}, ""),
        PhaseFinished(13, 11, "drain", "", at_ns + 21_000, at_ns + 50_000, {}, ""),
        PhaseFinished(11, 0, "reload", "", at_ns, end_ns, attributes, ""),
        ManifestReloaded(at_ns, end_ns, "applied", before, after, (), (), (), (MODEL,), 1, ""),
    ]


def _phase(
    phase_id: int,
    parent_id: int,
    name: str,
    start_ns: int,
    end_ns: int,
    attributes: dict[str, str | int | float | bool],
) -> PhaseFinished:
    return PhaseFinished(phase_id, parent_id, name, MODEL, start_ns, end_ns, attributes, "")


def request_events(
    request_id: int,
    arrival_ns: int,
    *,
    segments: int = 2,
    kernels: int = 6,
    streams: int = 1,
    stamped: bool = True,
    blocked_by: tuple[int, ...] = (),
    deadline_ns: int = 0,
    traceparent: str = "",
    outcome: str = "completed",
) -> list[Event]:
    """Return one request that runs, segment by segment, to an end of its own.

    It is a deadline miss if it ends after `deadline_ns`, an instant; 0 for no deadline.
    """
    now = arrival_ns + _WAIT_NS
    waiting = ((request_id, 10.0), (request_id + 1, float("-inf")))
    events: list[Event] = [
        RequestSubmitted(arrival_ns, request_id, MODEL, 10, deadline_ns, 3, traceparent)
    ]
    start_ns = now
    for segment in range(segments):
        stream = segment % streams
        kind, reason = ("continue", "next_segment") if segment else ("start", "highest_priority")
        events.append(
            DecisionMade(
                now,
                now + _DECIDE_NS,
                100 * request_id + segment,
                kind,
                request_id,
                MODEL,
                "priority",
                reason,
                stream,
                3,
                waiting,
                () if segment else blocked_by,
            )
        )
        launch_ns = now + _DECIDE_NS
        now = launch_ns + _LAUNCH_NS
        if segment == 0:
            events.append(CopyFinished(request_id, MODEL, stream, "in", 1_024, now, now + _COPY_NS))
            now += _COPY_NS
        elif streams > 1:
            events.append(EventSynchronised(now, request_id, MODEL, 0, stream, "t1"))
        times = now + np.arange(kernels)[:, None] * _KERNEL_NS + np.array([0, _KERNEL_NS - 20])
        end_ns = int(times[-1, 1])
        stamps = times.astype(np.int64).tobytes() if stamped else b""
        events.append(
            SegmentFinished(request_id, MODEL, segment, stream, launch_ns, now, end_ns, stamps)
        )
        now = end_ns
    if outcome == "completed":
        stream = (segments - 1) % streams
        events.append(CopyFinished(request_id, MODEL, stream, "out", 256, now, now + _COPY_NS))
        now += _COPY_NS
    now += _REPORT_NS
    error = "detector: kernel `Conv` refused its data" if outcome == "failed" else ""
    is_missed = 0 < deadline_ns < now
    events.append(
        RequestFinished(
            now,
            request_id,
            MODEL,
            outcome,
            "",
            error,
            arrival_ns,
            start_ns,
            deadline_ns,
            is_missed,
        )
    )
    return events


def expired_events(request_id: int, arrival_ns: int) -> list[Event]:
    """Return one request that expires in the queue."""
    deadline_ns = arrival_ns + 2 * _WAIT_NS
    end_ns = deadline_ns + _DECIDE_NS
    return [
        RequestSubmitted(arrival_ns, request_id, MODEL, 0, deadline_ns, 1, ""),
        DecisionMade(
            deadline_ns,
            end_ns,
            100 * request_id,
            "expire",
            request_id,
            MODEL,
            "priority",
            "deadline_passed",
            -1,
            1,
            (),
            (request_id - 1,),
        ),
        RequestFinished(
            # The scheduler's step takes its time from its beginning.
            deadline_ns,
            request_id,
            MODEL,
            "expired",
            "deadline_passed",
            "",
            arrival_ns,
            0,
            deadline_ns,
            True,
        ),
    ]


def item_events(item: int, request_id: int, start_ns: int) -> list[Event]:
    """Return a pipeline's item on its way through source, transform, model and sink."""
    request = request_events(request_id, start_ns + 60_000)
    done_ns = next(event.at_ns for event in request if isinstance(event, RequestFinished))

    def stage(name: str, kind: str, start: int, end: int, of_request: int = 0) -> Event:
        return StageFinished("camera", item, name, kind, start, end, of_request, "")

    return [
        stage("source", "source", start_ns, start_ns + 20_000),
        stage("prepare", "transform", start_ns + 21_000, start_ns + 55_000),
        *request,
        stage("detect", "model", start_ns + 56_000, done_ns + 2_000, request_id),
        stage("jsonl", "sink", done_ns + 3_000, done_ns + 9_000),
        ItemFinished("camera", item, "completed", "", start_ns, done_ns + 10_000),
    ]


def run_events(request_count: int = 20) -> list[Event]:
    """Return a whole run with every kind of event: loads, requests of all outcomes, an item."""
    events = load_events()
    now = START_NS + 200_000
    for request_id in range(1, request_count + 1):
        blocked_by = (request_id - 1,) if request_id > 1 else ()
        events += request_events(request_id, now, blocked_by=blocked_by)
        now += 1_000_000
    last = request_count
    events += request_events(last + 1, now, outcome="failed", segments=1)
    events += expired_events(last + 2, now + 100_000)
    events += request_events(last + 3, now + 300_000, streams=2, deadline_ns=now + 350_000)
    events += request_events(last + 4, now + 600_000, stamped=False)
    events += item_events(1, last + 5, now + 900_000)
    end_ns = now + 2_000_000
    return [
        *events,
        ProfileOverrun(end_ns, last + 4, MODEL, 0, 0, 1.25, True),
        *reload_events(end_ns),
        ListenerFailed(end_ns, "table", "RuntimeError()"),
        MemoryReleased(end_ns, "arena", MODEL, "t0", 0, 64),
        RuntimeStopped(end_ns, "run", True),
    ]
