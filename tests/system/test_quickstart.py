"""The quickstart manifest from end to end, with its traces sent through a real collector."""

from __future__ import annotations

import re
import shutil
import threading
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

import aegis_pipe
from aegis_pipe.cli.up import summary
from aegis_pipe.runtime_report import RuntimeReport
from tests.system.receiving import Collector, attributes, rotel, serving, wait_for
from tests.system.running import ROOT

MANIFEST = ROOT / "manifests" / "quickstart.toml"
IMAGES = 60
LOAD_PHASES = {"onnx.load", "passes", "memory.plan", "pool.reserve", "graph.capture"}
SpanId = tuple[bytes, bytes]


def variant(folder: Path, endpoint: str, protocol: str) -> Path:
    """Write the quickstart with fewer images, all traces kept, and these sent to a collector."""
    images = sorted((MANIFEST.parent / "quickstart" / "images").iterdir())
    (folder / "images").mkdir()
    for image in images[:: len(images) // IMAGES][:IMAGES]:
        shutil.copy(image, folder / "images")
    head, telemetry, _ = MANIFEST.read_text(encoding="utf-8").partition("[telemetry]")
    assert telemetry
    text = head.replace('"quickstart/images"', '"images"')
    text = text.replace('"quickstart/', f'"{MANIFEST.parent}/quickstart/')
    text += f'[telemetry]\notlp = {{ endpoint = "{endpoint}", protocol = "{protocol}" }}\n'
    path = folder / "quickstart.toml"
    path.write_text(text, encoding="utf-8")
    return path


def run(path: Path) -> RuntimeReport:
    with aegis_pipe.open_pipeline(path) as runtime:
        runtime.start_pipelines()
        assert runtime.join(120, threading.Event())
    return runtime.report()


class Traces:
    """Received spans, by id and by parent."""

    def __init__(self, collector: Collector) -> None:
        self.services = {service for service, _ in collector.spans}
        self.received = len(collector.spans)
        self.spans: dict[SpanId, Span] = {
            (span.trace_id, span.span_id): span for _, span in collector.spans
        }
        self._children: defaultdict[SpanId, list[Span]] = defaultdict(list)
        for span in self.spans.values():
            if span.parent_span_id:
                self._children[span.trace_id, span.parent_span_id].append(span)

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans.values() if span.name == name]

    def below(self, span: Span) -> dict[str, list[Span]]:
        """Return a span's children by name."""
        children: defaultdict[str, list[Span]] = defaultdict(list)
        for child in self._children[span.trace_id, span.span_id]:
            children[child.name].append(child)
        return children

    def parent(self, span: Span) -> Span:
        return self.spans[span.trace_id, span.parent_span_id]


def check_whole(traces: Traces) -> None:
    """Nothing ends before it starts; parents are there and around; links lead somewhere."""
    assert len(traces.spans) == traces.received
    for span in traces.spans.values():
        assert span.end_time_unix_nano >= span.start_time_unix_nano > 0
        if span.parent_span_id:
            parent = traces.parent(span)
            assert parent.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= parent.end_time_unix_nano
        for link in span.links:
            assert (link.trace_id, link.span_id) in traces.spans


def check_loads(traces: Traces, models: set[str]) -> dict[str, Span]:
    """Return the `model.load` span of each model, after a look at what lies below."""
    loads = {model: span for model in models for span in traces.named(f"model.load {model}")}
    assert loads.keys() == models
    for model, load in loads.items():
        assert attributes(load.attributes)["aegis.model"] == model
    for load in loads.values():
        assert not load.parent_span_id
        phases = traces.below(load)
        assert phases.keys() >= LOAD_PHASES
        assert len(phases["graph.capture"]) == 2  # One for each stream.
        (passes,) = phases["passes"]
        assert all(name.startswith("pass.") for name in traces.below(passes))
        assert traces.below(passes)
        assert any(
            event.name == "memory.allocated" for p in phases["pool.reserve"] for event in p.events
        )
    return loads


def check_request(traces: Traces, infer: Span, load: Span) -> Counter[str]:
    """Check one request's spans; return what ran on the stream."""
    assert (load.trace_id, load.span_id) in {
        (link.trace_id, link.span_id)
        for link in infer.links
        if attributes(link.attributes)["aegis.link"] == "model.load"
    }
    below = traces.below(infer)
    assert below.keys() == {"queue.wait", "schedule.decide", "execute"}
    (wait,), (decide,), (execute,) = below.values()
    assert wait.start_time_unix_nano == infer.start_time_unix_nano
    assert attributes(decide.attributes)["aegis.decision"] == "start"
    parts = traces.below(execute)
    lanes = [name for name in parts if name.startswith("stream ")]
    assert parts.keys() - lanes <= {"schedule.decide"}
    (lane,) = parts[lanes[0]]
    assert len(lanes) == 1
    assert lanes[0] == f"stream {attributes(decide.attributes)['aegis.stream']}"
    kernels = traces.below(lane)
    for copy in ("copy.in", "copy.out"):
        assert len(kernels.pop(copy)) == 1
    for name, spans in kernels.items():
        for span in spans:
            told = attributes(span.attributes)
            assert str(told["aegis.operator"]).rpartition(".")[2] == name
            assert told["aegis.kernel"]
    return Counter({name: len(spans) for name, spans in kernels.items()})


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_quickstart_and_its_traces(protocol: str, tmp_path: Path) -> None:
    collector = Collector()
    with serving(collector) as port, rotel(port, tmp_path) as ports:
        endpoint = f"http://127.0.0.1:{ports[protocol]}"
        report = run(variant(tmp_path, endpoint, protocol))
        told = report.telemetry
        assert told is not None
        assert (told.dropped_events, told.dropped_spans, told.failed_exports) == (0, 0, 0)
        assert told.abandoned_traces == 0
        wait_for(lambda: len(collector.spans) >= told.exported_spans)
    traces = Traces(collector)
    assert traces.received == told.exported_spans
    assert traces.services == {"quickstart", "quickstart/cpu"}
    check_whole(traces)
    figures = {model.model: model for model in report.statistics.models}
    loads = check_loads(traces, set(figures))
    for name, model in figures.items():
        infers = traces.named(f"infer {name}")
        assert len(infers) == model.submitted
        kernels = [check_request(traces, infer, loads[name]) for infer in infers]
        assert kernels[0]
        assert all(each == kernels[0] for each in kernels)
    check_items(traces)
    check_summary(report)


def check_items(traces: Traces) -> None:
    items = traces.named("pipeline read-digits")
    assert len(items) == IMAGES
    for item in items:
        stages = traces.below(item)
        assert stages.keys() == {
            "source images",
            "transform prepare",
            "model read",
            "transform digit",
            "sink accuracy.0",
        }
        (stage,) = stages["model read"]
        assert traces.below(stage).keys() == {"infer digits"}


def check_summary(report: RuntimeReport) -> None:
    text = summary(report)
    accuracy = re.search(r"accuracy: ([\d.]+)% of (\d+) right", text)
    assert accuracy
    assert float(accuracy[1]) >= 97
    assert int(accuracy[2]) == IMAGES
    assert "\n  0 device allocations after start\n" in text
    assert report.statistics.allocations_after_start == 0
    assert "planned of a budget of 64 MiB" in text
    assert report.memory_budget_bytes is not None
    assert 0 < report.plan.total_bytes <= report.memory_budget_bytes
    assert f"pipeline read-digits: {IMAGES} items completed, 0 dropped, 0 failed" in text
    assert report.telemetry is not None
    assert "telemetry: 0 events lost" in text
    assert f": {report.telemetry.exported_spans} spans, 0 lost" in text
    assert not report.failed
