from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from aegis_pipe.errors import PermanentError
from aegis_pipe.telemetry.assembler import TraceAssembler
from aegis_pipe.telemetry.config import TelemetryConfig
from aegis_pipe.telemetry.ids import Identifiers
from aegis_pipe.telemetry.otlp_json import OtlpJsonSink, to_json_line
from aegis_pipe.telemetry.otlp_proto import encode_request
from aegis_pipe.telemetry.resources import make_resources
from aegis_pipe.telemetry.spans import Span, expand
from aegis_pipe.testing.event_sequences import START_NS, request_events, run_events

CONFIG = TelemetryConfig(ratio=1.0)
RESOURCES = make_resources(CONFIG, b"run")


def make_spans() -> list[Span]:
    assembler = TraceAssembler(CONFIG, Identifiers(b"run"), lambda instant_ns: instant_ns)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for event in run_events() + request_events(90, START_NS, traceparent=parent):
        assembler.add(event)
    return [span for trace in assembler.flush() for span in expand(trace)]


def to_protobuf_json(value: Any, key: str = "") -> Any:
    """Undo the one difference between OTLP's JSON and protobuf's: hexadecimal ids."""
    if isinstance(value, dict):
        return {name: to_protobuf_json(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [to_protobuf_json(part) for part in value]
    if key in ("traceId", "spanId", "parentSpanId"):
        assert value == value.lower()
        return base64.b64encode(bytes.fromhex(value)).decode()
    return value


def test_json_says_the_same_as_the_protobuf_encoder() -> None:
    spans = make_spans()
    line = to_json_line(spans, RESOURCES)
    ours = json_format.ParseDict(to_protobuf_json(json.loads(line)), ExportTraceServiceRequest())
    assert ours == ExportTraceServiceRequest.FromString(encode_request(spans, RESOURCES))


def test_json_has_the_forms_that_the_mapping_asks_for() -> None:
    spans = make_spans()
    request = json.loads(to_json_line(spans[:60], RESOURCES))
    host, device = request["resourceSpans"]
    names = [
        service["resource"]["attributes"][0]["value"]["stringValue"] for service in (host, device)
    ]
    assert names == ["aegis-pipe", "aegis-pipe/cpu"]
    span = host["scopeSpans"][0]["spans"][0]
    assert (len(span["traceId"]), len(span["spanId"])) == (32, 16)
    assert isinstance(span["startTimeUnixNano"], str)
    assert span["kind"] == 1
    assert "parentSpanId" not in span
    values = {one["key"]: one["value"] for one in span["attributes"]}
    assert values["aegis.duration_ns"] == {"intValue": "100000"}


def test_a_file_is_replaced_and_gets_a_line_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "trace.json"
    path.parent.mkdir(parents=True)
    path.write_text("old")
    sink = OtlpJsonSink(path, RESOURCES)
    spans = make_spans()
    load = [span for span in spans if span.trace_id == spans[0].trace_id]
    assert sink.export(load)
    assert sink.export(spans[len(load) :])
    sink.close()
    sink.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == len({span.trace_id for span in spans})


def test_an_unwritable_path_fails_when_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PermanentError, match="can not write") as caught:
        OtlpJsonSink(tmp_path / "file" / "trace.json", RESOURCES)
    assert caught.value.hint


def test_a_full_disk_costs_the_spans_and_no_exception() -> None:
    sink = OtlpJsonSink(Path("/dev/full"), RESOURCES)
    assert not sink.export(make_spans()[:1])
    assert "space" in sink.problem
    sink.close()


def test_what_comes_after_the_end_is_lost_and_no_exception(tmp_path: Path) -> None:
    sink = OtlpJsonSink(tmp_path / "trace.json", RESOURCES)
    sink.close()
    assert not sink.export(make_spans()[:1])
    assert "closed" in sink.problem
