"""`aegis-pipe trace` on what a real run recorded; pages in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator

import aegis_pipe
from aegis_pipe.analysis.blame import CAUSES
from aegis_pipe.cli import main
from aegis_pipe.events import DecisionMade
from aegis_pipe.telemetry import attributes as names
from aegis_pipe.telemetry.breakdown import break_down
from aegis_pipe.telemetry.decisions import decisions
from aegis_pipe.telemetry.spans import Span
from aegis_pipe.telemetry.trace_file import read_runs
from aegis_pipe.telemetry.viewer import page_data, render_page
from aegis_pipe.testing.event_sequences import START_NS, load_events, request_events
from tests.system.running import CROSSING, ROOT
from tests.unit.telemetry.test_recorded import write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def traces_of(path: Path) -> list[list[Span]]:
    return [list(trace) for run in read_runs(path) for trace in run.traces]


def test_all_decisions_of_a_run_are_rebuilt_from_its_trace_alone(
    recorded: tuple[Path, list[DecisionMade]],
) -> None:
    path, made = recorded
    rebuilt = decisions(traces_of(path))
    offset_ns = rebuilt[0].start_ns - min(made, key=lambda one: one.sequence).start_ns
    expected = [
        one._replace(
            start_ns=one.start_ns + offset_ns,
            end_ns=one.end_ns + offset_ns,
            kind=str(one.kind),
            reason=str(one.reason),
        )
        for one in sorted(made, key=lambda one: one.sequence)
    ]
    assert [one.sequence for one in rebuilt] == list(range(len(made)))
    assert rebuilt == expected
    # And once more from the log, which another thread wrote from the same events.
    lines = map(json.loads, (path.parent / "events.jsonl").read_text().splitlines())
    logged = [line for line in lines if line["event"] == "schedule_decision"]
    assert sorted(line["sequence"] for line in logged) == [one.sequence for one in rebuilt]
    by_sequence = {line["sequence"]: line for line in logged}
    for one in rebuilt:
        line = by_sequence[one.sequence]
        assert (line["kind"], line["reason"], line["model"]) == (one.kind, one.reason, one.model)
        assert (line["start_ns"], line["end_ns"]) == (one.start_ns, one.end_ns)


def _why(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["why", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_why_says_the_same_of_a_trace_as_of_the_log(
    recorded: tuple[Path, list[DecisionMade]], capsys: pytest.CaptureFixture[str]
) -> None:
    why = partial(_why, capsys)
    trace, log = recorded[0], recorded[0].parent / "events.jsonl"
    everything = ("--worst", 10_000, "--json", "--from")
    explained = json.loads(why(*everything, trace))
    assert explained == json.loads(why(*everything, log))
    assert len(explained) == 30 * 14
    assert {one["outcome"] for one in explained} == {
        "completed",
        "expired",
        "rejected",
        "cancelled",
    }
    for one in explained:
        assert sum(one["by_cause_ns"].values()) == one["total_ns"]
    sums = {cause: sum(one["by_cause_ns"][cause] for one in explained) for cause in CAUSES}
    assert min(sums[cause] for cause in ("queue", "execute", "copy", "launch", "host")) > 0
    held = max(explained, key=lambda one: one["by_cause_ns"]["queue"])["request"]
    assert why(held, "--from", trace) == why(held, "--from", log)
    assert " behind req-" in why(held, "--from", trace)


def test_why_refuses_a_trace_that_lacks_what_was_not_sampled(
    recorded: tuple[Path, list[DecisionMade]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = recorded[0].read_text().splitlines(keepends=True)
    requests = [line for line in lines if '"infer patient"' in line or '"infer urgent"' in line]
    sampled = tmp_path / "sampled.jsonl"
    sampled.write_text("".join(requests[::3]))
    assert main(["why", "--worst", "1", "--from", str(sampled)]) == 1
    assert "traces = { ratio = 1.0 }" in capsys.readouterr().err
    older = tmp_path / "older.jsonl"
    older.write_text("".join(line.replace("aegis.segment_times_ns", "other") for line in lines))
    assert main(["why", "--worst", "1", "--from", str(older)]) == 1
    assert "does not tell when its segments were launched" in capsys.readouterr().err


def test_why_explains_the_longest_requests_that_it_can_and_names_the_others(
    recorded: tuple[Path, list[DecisionMade]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = recorded[0].parent / "events.jsonl"
    everything = json.loads(_why(capsys, "--worst", 10_000, "--json", "--from", log))
    lacking = tmp_path / "lacking.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    gone = next(line for line in lines if '"schedule_decision"' in line and '"start"' in line)
    lacking.write_text("".join(line for line in lines if line is not gone))
    assert main(["why", "--worst", "10000", "--json", "--from", str(lacking)]) == 0
    out, err = capsys.readouterr()
    explained = json.loads(out)
    named = re.search(r"(\d+) of the 10000 longest requests can not be explained: (.*)", err)
    assert named is not None
    assert len(explained) == len(everything) - int(named[1]) < len(everything)
    assert all(one in everything for one in explained)
    request = json.loads(gone)["request_id"]
    assert request not in [one["request"] for one in explained]
    assert "telemetry.log.keep" in err


def test_the_parts_of_every_request_of_a_run_add_up(
    recorded: tuple[Path, list[DecisionMade]],
) -> None:
    requests = break_down(traces_of(recorded[0]))
    assert len(requests) == 30 * 14
    for request in requests:
        assert abs(request.accounted_ns - request.total_ns) <= 0.01 * request.total_ns, request


def test_times_of_a_run_are_monotone(recorded: tuple[Path, list[DecisionMade]]) -> None:
    on_stream: defaultdict[object, list[Span]] = defaultdict(list)
    for trace in traces_of(recorded[0]):
        by_id = {span.span_id: span for span in trace}
        for span in trace:
            assert span.start_ns <= span.end_ns
            if span.parent_id:
                parent = by_id[span.parent_id]
                assert parent.start_ns <= span.start_ns <= span.end_ns <= parent.end_ns
            for event in span.events:
                assert span.start_ns <= event.at_ns <= span.end_ns
            if span.on_device and not span.name.startswith("stream "):
                on_stream[span.attributes["aegis.stream"]].append(span)
    for spans in on_stream.values():
        spans.sort(key=lambda span: (span.start_ns, span.end_ns))
        # A stream does one thing at a time, whoever it is for.
        assert all(a.end_ns <= b.start_ns for a, b in pairwise(spans))


def browse(page: Path, folder: Path, fragment: str = "") -> str:
    """Open a page in headless Chromium; return its document once the scripts have run."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1500,900",
        "--virtual-time-budget=5000",
        "--dump-dom",
        page.as_uri() + fragment,
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    return run.stdout


@needs_chromium
def test_a_page_of_a_real_run_shows_it(
    recorded: tuple[Path, list[DecisionMade]], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    assert main(["trace", "open", "--no-browser", str(recorded[0]), "--output", str(page)]) == 0
    document = browse(page, tmp_path)
    assert 'data-ready="yes"' in document
    assert "420 requests, 60 deadlines missed" in re.sub(r"\s+", " ", document)
    request_id = next(
        request.request_id
        for request in break_down(traces_of(recorded[0]))
        if request.outcome == "completed"
    )
    chosen = browse(page, tmp_path, f"#request={request_id}")
    assert f"request {request_id}</h2>" in chosen
    assert len(re.findall(r'class="bar"', chosen)) == 7


def test_a_page_counts_weights_that_models_share_once(
    recorded: tuple[Path, list[DecisionMade]],
) -> None:
    traces = traces_of(recorded[0])
    loads = [span for trace in traces for span in trace if span.name.startswith("model.load")]
    first, second = (int(str(span.attributes[names.WEIGHTS_BYTES])) for span in loads)
    assert first == second > 0
    at_rest = page_data("page", traces)["memory"]["value"][0]
    # The pool's end is aligned.
    assert first <= at_rest < 1.1 * first


@needs_chromium
def test_a_page_of_a_hundred_thousand_events_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    events = load_events(kernels=60)
    for number in range(850):
        start_ns = START_NS + 1_000_000 + number * 1_500_000
        events += request_events(number + 1, start_ns, kernels=60, streams=1 + number % 2)
    write(path, events)
    page = tmp_path / "page.html"
    text = render_page("large", traces_of(path))
    page.write_text(text)
    # Nothing is fetched: the page is all there is.
    assert not re.search(r"(src|href)=|url\(|@import|fetch\(|XMLHttpRequest", text)
    document = browse(page, tmp_path)
    assert 'data-ready="yes"' in document
    count = re.search(r"(\d+) events", document)
    assert count is not None
    assert int(count[1]) > 100_000
    whole = re.search(r'data-drawn="(\d+)"', document)
    near = re.search(r'data-drawn="(\d+)"', browse(page, tmp_path, "#3000000-3400000"))
    assert whole is not None
    assert near is not None
    # Far off, what falls on one pixel is drawn once; near, every kernel of the stretch is.
    assert 1_000 < int(whole[1]) < 10_000
    assert 20 < int(near[1]) < 200


@needs_chromium
def test_a_page_says_that_its_traces_were_sampled(
    recorded: tuple[Path, list[DecisionMade]], tmp_path: Path
) -> None:
    page, sampled = tmp_path / "page.html", tmp_path / "sampled.jsonl"
    whole = recorded[0].read_text()
    told = '{"key":"aegis.traces.ratio","value":{"stringValue":"1"}}'
    assert whole.count(told) >= len(whole.splitlines())
    sampled.write_text(whole.replace(told, told.replace('"1"', '"0.05"')))
    for path, is_told in ((recorded[0], False), (sampled, True)):
        assert main(["trace", "open", str(path), "--output", str(page), "--no-browser"]) == 0
        shown = re.search(r'id="sampled">([^<]*)<', browse(page, tmp_path))
        assert shown is not None
        assert shown[1].startswith("sampled: ratio 0.05,") == bool(shown[1]) == is_told


def test_every_line_of_a_runs_log_keeps_to_the_schema(
    recorded: tuple[Path, list[DecisionMade]],
) -> None:
    schema = json.loads((ROOT / "schemas" / "events.schema.json").read_text())
    validator = Draft202012Validator(schema)
    lines = (recorded[0].parent / "events.jsonl").read_text().splitlines()
    for line in lines:
        values = json.loads(line)
        # Against its own kind first: that says what is wrong.
        own = Draft202012Validator({**schema, "oneOf": [{"$ref": f"#/$defs/{values['event']}"}]})
        assert [error.message for error in own.iter_errors(values)] == []
    validator.validate(json.loads(lines[0]))


def test_a_callers_trace_is_continued_and_handed_on(tmp_path: Path) -> None:
    model = ROOT / "manifests" / "quickstart" / "digits.onnx"
    (tmp_path / "m.toml").write_text(CROSSING.format(model=model))
    image = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with aegis_pipe.open_pipeline(tmp_path / "m.toml") as runtime:
        future = runtime.submit("urgent", image, traceparent=caller)
        future.result()
        handed_on = runtime.traceparent(future)
        alone = runtime.submit("urgent", image)
        alone.result()
        own = runtime.traceparent(alone)
        ignored = runtime.submit("urgent", image, traceparent="00-nonsense")
        ignored.result()
    spans = {
        span.attributes["aegis.request.id"]: span
        for trace in traces_of(tmp_path / "traces.jsonl")
        for span in trace
        if span.name == "infer urgent"
    }
    for asked, text in ((future, handed_on), (alone, own)):
        span = spans[asked.request_id]
        assert text == f"00-{span.trace_id:032x}-{span.span_id:016x}-01"
    assert handed_on[:35] == caller[:35]
    assert f"{spans[future.request_id].parent_id:016x}" == caller[36:52]
    assert spans[ignored.request_id].parent_id == 0


def test_a_real_run_emits_what_is_documented(recorded: tuple[Path, list[DecisionMade]]) -> None:
    spans = [span for trace in traces_of(recorded[0]) for span in trace]
    emitted = {key for span in spans for key in span.attributes}
    emitted |= {key for span in spans for event in span.events for key in event.attributes}
    documented = set(names.ATTRIBUTES) | {
        key for key in emitted if key.startswith(names.PHASE_PREFIX)
    }
    assert emitted <= documented
    # What only pipelines, several streams a request, many kernels, lost events or reloads bring.
    rare = {
        names.PIPELINE,
        names.ITEM,
        names.STAGE,
        names.STAGE_KIND,
        names.RECORD_STREAM,
        names.WAIT_STREAM,
        names.AGGREGATED,
        names.CALLS,
        names.DECISIONS_LOG,
        names.DECISIONS_OMITTED,
        names.DROPPED_EVENTS,
        names.EVENTS_OMITTED,
        names.LINK,
        names.RELOAD_OUTCOME,
        names.RELOAD_DIGEST_BEFORE,
        names.RELOAD_DIGEST_AFTER,
        names.RELOAD_MODELS_ADDED,
        names.RELOAD_MODELS_REMOVED,
        names.RELOAD_MODELS_RELOADED,
        names.RELOAD_MODELS_KEPT,
        names.RELOAD_REQUESTS_HELD,
    }
    assert documented - emitted <= rare
    phases = {span.name for span in spans if span.name.split(" ")[0] not in SPAN_WORDS}
    assert {"model.load urgent", "onnx.load", "passes", "memory.plan", "pool.reserve"} <= phases


SPAN_WORDS = {name.split(" ")[0].rstrip(",") for name in names.SPANS} - {"model.load"}


def test_a_ring_that_overflows_costs_events_and_no_request(tmp_path: Path) -> None:
    model = ROOT / "manifests" / "quickstart" / "digits.onnx"
    text = CROSSING.format(model=model).replace("queue_capacity = 8", "queue_capacity = 500")
    (tmp_path / "m.toml").write_text(text.replace("[telemetry]", "[telemetry]\nring_capacity = 64"))
    image = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    with aegis_pipe.open_pipeline(tmp_path / "m.toml") as runtime:
        for _ in range(3):
            for future in [runtime.submit("urgent", image) for _ in range(400)]:
                assert future.result()
    report = runtime.report()
    assert sum(model.completed for model in report.statistics.models) == 3 * 400
    assert report.telemetry is not None
    assert report.telemetry.dropped_events > 100
    # What was kept says that something is missing.
    roots = [trace[0] for trace in traces_of(tmp_path / "traces.jsonl")]
    assert any(names.DROPPED_EVENTS in root.attributes for root in roots)
