from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any, get_args

from jsonschema import Draft202012Validator

from aegis_pipe.events import (
    DecisionMade,
    Event,
    RequestFinished,
    RequestSubmitted,
    StageFinished,
)
from aegis_pipe.telemetry.json_log import JsonLogFormat, event_name
from aegis_pipe.testing.event_sequences import START_NS, run_events

ROOT = Path(__file__).parents[3]
OFFSET_NS = 1_700_000_000_000_000_000


def to_lines(events: list[Event]) -> list[dict[str, Any]]:
    log = JsonLogFormat(lambda instant_ns: instant_ns + OFFSET_NS)
    return [json.loads(log.line(event)) for event in events]


def test_a_decision_has_the_documented_form() -> None:
    events = run_events()
    decision = next(line for line in to_lines(events) if line["event"] == "schedule_decision")
    assert decision == {
        "event": "schedule_decision",
        "start_ns": OFFSET_NS + START_NS + 240_000,
        "end_ns": OFFSET_NS + START_NS + 243_000,
        "sequence": 100,
        "kind": "start",
        "request_id": "req-1",
        "model": "detector",
        "policy": "priority",
        "reason": "highest_priority",
        "stream_id": "stream-0",
        "queue_depth": 3,
        "candidates": [["req-1", 10.0], ["req-2", "-Infinity"]],
        "blocked_by": [],
        "priority": 10,
        "timestamp": OFFSET_NS + START_NS + 243_000,
    }


def test_every_kind_of_event_has_a_line_and_a_name_of_its_own() -> None:
    kinds = get_args(Event)
    lines = to_lines(run_events())
    assert {line["event"] for line in lines} == {event_name(kind) for kind in kinds}
    assert len({event_name(kind) for kind in kinds}) == len(kinds)
    assert event_name(RequestFinished) == "request_finished"
    assert all(line["timestamp"] > OFFSET_NS for line in lines)


def test_stamps_are_decoded_to_the_wall_clock() -> None:
    segment = next(line for line in to_lines(run_events()) if line["event"] == "segment_finished")
    assert len(segment["kernel_times"]) == 6
    assert segment["kernel_times"][0][0] == segment["start_ns"]
    assert segment["kernel_times"][-1][1] == segment["end_ns"]


def test_what_there_is_none_of_is_null() -> None:
    finished = RequestFinished(9, 1, "m", "expired", "", "", 5, 0, 0, False)
    decision = DecisionMade(1, 2, 3, "expire", 1, "m", "fifo", "deadline_passed", -1, 0, (), ())
    stage = StageFinished("p", 1, "s", "source", 1, 2, 0, "caf\udce9")
    ended, expired, passed = to_lines([finished, decision, stage])
    assert (ended["start_ns"], ended["deadline_ns"]) == (None, None)
    assert (expired["stream_id"], expired["priority"]) == (None, None)
    assert passed["request_id"] is None


def test_a_finished_request_is_forgotten() -> None:
    submitted = RequestSubmitted(1, 7, "m", 10, 0, 1, "")
    finished = RequestFinished(9, 7, "m", "completed", "", "", 1, 2, 0, False)
    decision = DecisionMade(1, 2, 3, "start", 7, "m", "fifo", "first", 0, 1, (), ())
    before, _, after = to_lines([submitted, decision, finished, decision])[1:]
    assert (before["priority"], after["priority"]) == (10, None)


def test_the_schema_is_up_to_date_and_every_line_keeps_to_it() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "generate_events_schema.py"))
    text = tool["PATH"].read_text(encoding="utf-8")
    assert text == tool["render"](), "run `python tools/generate_events_schema.py`"
    validator = Draft202012Validator(json.loads(text))
    validator.check_schema(json.loads(text))
    lines = to_lines(run_events())
    for line in lines:
        assert list(validator.iter_errors(line)) == []
    for broken in ({**lines[0], "more": 1}, {"event": "schedule_decision"}, {"event": "unknown"}):
        assert list(validator.iter_errors(broken))
