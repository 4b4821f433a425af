"""Reloads of a real `up` by SIGHUP, and their trace at a real receiver."""

from __future__ import annotations

import json
import signal
import threading
from collections import deque
from pathlib import Path

import numpy as np
import pytest

import aegis_pipe
from tests.system.receiving import Collector, attributes, serving, wait_for
from tests.system.running import Write, start

FEED = """
[[pipelines]]
name = "load"
source = { kind = "synthetic", like = "m", rate = "200/s" }
stages = [{ name = "infer", model = "m" }]
sinks = [{ kind = "jsonl", path = "out.jsonl", input = ["infer.y"] }]
"""


def test_sighup_reloads_refuses_and_loses_no_item(
    model_file: Path, write_manifest: Write, tmp_path: Path
) -> None:
    more = '[[models]]\nname = "n"\npath = "model.onnx"\n'
    log = '[telemetry]\nlog = { path = "events.jsonl" }\n'
    process = start("up", write_manifest(FEED, log))
    assert process.stderr is not None
    told: deque[str] = deque()
    reader = threading.Thread(target=lambda: told.extend(process.stderr))
    reader.start()

    def says(words: str) -> bool:
        assert process.poll() is None, list(told)
        return any(words in line for line in list(told))

    try:
        wait_for(lambda: says("planned"))
        wait_for(lambda: (tmp_path / "out.jsonl").exists())
        write_manifest(more, FEED, log)
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: says("reload: applied; added n; loaded anew m"))
        (tmp_path / "manifest.toml").write_text("name = = 3")
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: says("error: reload:"))
        write_manifest(more, FEED, log)
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: says("reload: nothing has changed"))
    finally:
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        summary = process.stdout.read()
        process.wait(60)
        reader.join()
        process.stdout.close()
        process.stderr.close()
    assert process.returncode == 0, summary
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["item"] for line in lines] == list(range(len(lines)))
    assert f"{len(lines)} items completed, 0 dropped, 0 failed" in summary
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    outcomes = [each["outcome"] for each in events if each["event"] == "manifest_reloaded"]
    assert outcomes == ["applied", "refused", "unchanged"]


def test_a_reload_is_one_trace_that_links_to_the_start_before(
    model_file: Path, write_manifest: Write
) -> None:
    collector = Collector()
    x = {"x": np.ones((1, 4), np.float32)}
    more = '[[models]]\nname = "n"\npath = "model.onnx"\n'
    with serving(collector) as port:
        otlp = f'[telemetry]\notlp = {{ endpoint = "http://127.0.0.1:{port}" }}\n'
        with aegis_pipe.open_pipeline(write_manifest(otlp)) as runtime:
            runtime.infer("m", x)
            first = runtime.reload(write_manifest(more, otlp))
            runtime.infer("n", x)
            budget = '[device]\nmemory_budget = "100 B"\n'
            with pytest.raises(aegis_pipe.BudgetExceededError):
                runtime.reload(write_manifest(otlp, budget))
            runtime.reload(write_manifest(otlp))
            runtime.infer("m", x)
        report = runtime.report().telemetry
    assert report is not None
    assert (report.dropped_spans, report.abandoned_traces) == (0, 0)
    spans = [span for _, span in collector.spans]
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    start_span = next(span for span in spans if span.name == "runtime.start")
    roots = sorted(
        (span for span in spans if span.name == "reload"), key=lambda s: s.start_time_unix_nano
    )
    values = [attributes(root.attributes) for root in roots]
    assert [each["aegis.reload.outcome"] for each in values] == ["applied", "refused", "applied"]
    assert [bool(root.status.message) for root in roots] == [False, True, False]
    assert values[0]["aegis.reload.digest.before"] == first.digest_before
    assert values[0]["aegis.reload.digest.after"] == first.digest_after
    assert values[0]["aegis.reload.models.added"] == "n"
    assert values[0]["aegis.reload.models.reloaded"] == "m"
    assert values[2]["aegis.reload.models.removed"] == "n"
    # To the start, then twice to the reload that was applied.
    linked = [by_id[link.trace_id, link.span_id] for root in roots for link in root.links]
    assert linked == [start_span, roots[0], roots[0]]
    children = [
        [
            span.name
            for span in spans
            if (span.trace_id, span.parent_span_id) == (r.trace_id, r.span_id)
        ]
        for r in roots
    ]
    assert {"manifest.validate", "admission", "plan", "drain"} <= set(children[0])
    assert {"model.load m", "model.load n"} <= set(children[0])
    assert "drain" not in children[1]
    assert "plan" in children[1]
    # Every request links to the load of the model that it ran on.
    infers = sorted(
        (span for span in spans if span.name.startswith("infer ")),
        key=lambda span: span.start_time_unix_nano,
    )
    loads = [by_id[link.trace_id, link.span_id] for span in infers for link in span.links]
    assert [load.name for load in loads] == [f"model.load {span.name[6:]}" for span in infers]
    assert [
        load.trace_id == root.trace_id for load, root in zip(loads[1:], roots[::2], strict=True)
    ] == [True, True]
    assert loads[0].trace_id not in {root.trace_id for root in roots}
