"""What is read from a trace file: spans, decisions, parts of time, other formats."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from aegis_pipe.analysis.blame import RunLog
from aegis_pipe.cli import main
from aegis_pipe.errors import InvalidInputError
from aegis_pipe.events import DecisionMade, Event, RequestFinished, SegmentFinished
from aegis_pipe.telemetry.assembler import TraceAssembler
from aegis_pipe.telemetry.breakdown import PARTS, break_down, by_model
from aegis_pipe.telemetry.config import TelemetryConfig
from aegis_pipe.telemetry.decisions import decisions
from aegis_pipe.telemetry.ids import Identifiers
from aegis_pipe.telemetry.json_log import JsonLogFormat
from aegis_pipe.telemetry.otlp_json import OtlpJsonSink
from aegis_pipe.telemetry.perfetto import to_events
from aegis_pipe.telemetry.resources import make_resources
from aegis_pipe.telemetry.spans import Span, expand
from aegis_pipe.telemetry.trace_file import read_runs
from aegis_pipe.telemetry.trace_log import log_lines
from aegis_pipe.testing.event_sequences import run_events

CONFIG = TelemetryConfig(ratio=1.0)


def write(path: Path, events: list[Event], run_id: bytes = b"run", max_spans: int = 2_000) -> None:
    config = TelemetryConfig(ratio=1.0, max_spans=max_spans)
    assembler = TraceAssembler(config, Identifiers(run_id), lambda instant_ns: instant_ns)
    sink = OtlpJsonSink(path, make_resources(config, run_id))
    for event in events:
        assembler.add(event)
    for trace in assembler.flush():
        assert sink.export(trace)
    sink.close()


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    path = tmp_path / "traces.jsonl"
    write(path, run_events())
    return path


def read(path: Path) -> list[list[Span]]:
    return [list(trace) for run in read_runs(path) for trace in run.traces]


def test_what_is_read_is_what_was_written(trace_file: Path) -> None:
    assembler = TraceAssembler(CONFIG, Identifiers(b"run"), lambda instant_ns: instant_ns)
    for event in run_events():
        assembler.add(event)
    written = [list(expand(trace)) for trace in assembler.flush()]
    (run,) = read_runs(trace_file)
    assert run.resources == make_resources(CONFIG, b"run")
    assert len(written) == len(run.traces)
    for expected, found in zip(written, run.traces, strict=True):
        by_id = {span.span_id: span for span in found}
        for span in expected:
            other = by_id.pop(span.span_id)
            assert plain(other) == plain(span)
        assert not by_id


def plain(span: Span) -> object:
    return json.loads(json.dumps(span, default=list))


def test_runs_in_one_file_are_told_apart(tmp_path: Path) -> None:
    one, other, both = (tmp_path / name for name in ("one", "other", "both"))
    write(one, run_events(2), b"1")
    write(other, run_events(3), b"2")
    both.write_text(one.read_text() + other.read_text())
    runs = read_runs(both)
    assert [len(run.traces) for run in runs] == [len(read(one)), len(read(other))]


@pytest.mark.parametrize("line", ["{", "[]", '{"resourceSpans": [{}]}', '{"a": 1}'])
def test_what_is_not_a_trace_is_told_by_line(trace_file: Path, line: str) -> None:
    text = trace_file.read_text().splitlines()
    trace_file.write_text("\n".join([*text[:2], line]))
    with pytest.raises(InvalidInputError, match=r"line 3: not a line of OTLP JSON"):
        read_runs(trace_file)


@pytest.mark.parametrize("max_spans", [2_000, 3])
def test_every_decision_is_rebuilt_from_the_trace(tmp_path: Path, max_spans: int) -> None:
    path = tmp_path / "traces.jsonl"
    write(path, run_events(), max_spans=max_spans)
    made = [event for event in run_events() if isinstance(event, DecisionMade)]
    assert decisions(read(path)) == sorted(made, key=lambda decision: decision.sequence)


@pytest.mark.parametrize("max_spans", [2_000, 3])
def test_requests_are_explained_from_the_trace_as_from_the_log(
    tmp_path: Path, max_spans: int
) -> None:
    path = tmp_path / "traces.jsonl"
    # A batch's variant runs in place of what was asked for.
    events = [
        event._replace(model="detector@4")
        if isinstance(event, SegmentFinished) and event.request_id == 1
        else event
        for event in run_events()
    ]
    write(path, events, max_spans=max_spans)
    line_format = JsonLogFormat(lambda instant_ns: instant_ns)
    logged = RunLog(json.loads(line_format.line(event)) for event in events)
    traced = RunLog(log_lines(read(path)))
    assert sorted(traced.requests) == sorted(logged.requests)
    assert len(logged.requests) == 25
    for request in logged.requests:
        assert traced.explain(request) == logged.explain(request)
    rebuilt = [line for line in log_lines(read(path)) if line["event"] == "segment_finished"]
    assert [line["model"] for line in rebuilt].count("detector@4") == 2
    assert [line["event"] for line in log_lines(read(path))].count("manifest_reloaded") == 1


@pytest.mark.parametrize("max_spans", [2_000, 3])
def test_the_parts_of_every_request_add_up(tmp_path: Path, max_spans: int) -> None:
    path = tmp_path / "traces.jsonl"
    write(path, run_events(), max_spans=max_spans)
    requests = break_down(read(path))
    finished = [event for event in run_events() if isinstance(event, RequestFinished)]
    assert len(requests) == len(finished)
    for request in requests:
        assert set(request.parts_ns) == set(PARTS)
        assert min(request.parts_ns.values()) >= 0
        assert abs(request.accounted_ns - request.total_ns) <= 0.01 * request.total_ns
    (model,) = by_model(requests)
    assert (model.requests, model.missed, model.failed) == (len(finished), 2, 2)
    assert model.blockers == {"detector": 20}


def test_perfetto_gets_every_span_in_the_order_of_its_thread(trace_file: Path) -> None:
    traces = read(trace_file)
    events = list(to_events(traces))
    lanes = sum(span.name.startswith("stream ") for trace in traces for span in trace)
    shown = sum(event["ph"] in "Xb" for event in events)
    assert shown == sum(map(len, traces)) - lanes
    assert sum(event["ph"] == "b" for event in events) == sum(e["ph"] == "e" for e in events)
    assert sum(event["ph"] == "i" for event in events) == 2
    for event in events:
        if event["ph"] in "XbeCi":
            assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0
    # Perfetto drops what overlaps something on its thread without lying in it.
    for stream in {event["tid"] for event in events if event["ph"] == "X"}:
        own = sorted((e["ts"], e["dur"]) for e in events if e["ph"] == "X" and e["tid"] == stream)
        for (start, length), (successor, _) in pairwise(own):
            assert start + length <= successor + 1e-6


def test_the_summary_is_printed_and_comes_as_json(
    trace_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "summary", str(trace_file)]) == 0
    text = capsys.readouterr().out
    assert "detector waited for requests of: detector (20)" in text
    assert "100.0%" in text
    assert main(["trace", "summary", "--json", str(trace_file)]) == 0
    (model,) = json.loads(capsys.readouterr().out)
    assert model["requests"] == 25


def test_an_empty_file_and_none_are_told_with_a_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "summary", str(tmp_path / "missing.jsonl")]) == 1
    assert "telemetry.file" in capsys.readouterr().err
    (tmp_path / "empty.jsonl").write_text("")
    assert main(["trace", "summary", str(tmp_path / "empty.jsonl")]) == 1
    assert "traces.ratio" in capsys.readouterr().err
