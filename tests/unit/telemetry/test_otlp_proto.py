"""Our encoder against OpenTelemetry's own: the same messages."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import given, strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from aegis_pipe.telemetry.assembler import TraceAssembler
from aegis_pipe.telemetry.config import TelemetryConfig
from aegis_pipe.telemetry.ids import Identifiers, SpanReference
from aegis_pipe.telemetry.otlp_proto import encode_request
from aegis_pipe.telemetry.resources import make_resources
from aegis_pipe.telemetry.sdk_sink import SdkSpans
from aegis_pipe.telemetry.spans import Span, SpanEvent, SpanLink, expand
from aegis_pipe.testing.event_sequences import START_NS, request_events, run_events

CONFIG = TelemetryConfig(ratio=1.0)
RESOURCES = make_resources(CONFIG, b"run")
to_readable = SdkSpans(RESOURCES).convert


def check(spans: Sequence[Span]) -> None:
    hosts_first = sorted(spans, key=lambda span: span.on_device)
    expected = encode_spans([to_readable(span) for span in hosts_first])
    ours = ExportTraceServiceRequest.FromString(encode_request(spans, RESOURCES))
    assert ours == expected


def test_a_whole_run_says_the_same() -> None:
    assembler = TraceAssembler(CONFIG, Identifiers(b"run"), lambda instant_ns: instant_ns)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for event in run_events() + request_events(90, START_NS, traceparent=parent):
        assembler.add(event)
    spans = [span for trace in assembler.flush() for span in expand(trace)]
    assert len(spans) > 300
    check(spans)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
integers = st.integers(-(2**63), 2**63 - 1)
numbers = st.floats(allow_nan=False)
values = st.one_of(
    texts,
    st.booleans(),
    integers,
    numbers,
    st.lists(texts, max_size=3),
    st.lists(integers, max_size=3),
    st.lists(numbers, max_size=3),
)
mappings = st.dictionaries(texts, values, max_size=5)
instants = st.integers(0, 2**64 - 1)
span_ids = st.integers(1, 2**64 - 1)
references = st.builds(SpanReference, st.integers(1, 2**128 - 1), span_ids)
spans_of_any_kind = st.builds(
    Span,
    st.integers(1, 2**128 - 1),
    span_ids,
    st.integers(0, 2**64 - 1),
    st.just(False),
    texts,
    instants,
    instants,
    mappings,
    texts,
    st.booleans(),
    st.lists(st.builds(SpanLink, references, texts), max_size=3).map(tuple),
    st.lists(st.builds(SpanEvent, instants, texts, mappings), max_size=3).map(tuple),
)


@given(st.lists(spans_of_any_kind, max_size=4))
def test_any_spans_say_the_same(spans: list[Span]) -> None:
    check(spans)


def test_not_a_number_is_kept() -> None:
    span = Span(1, 2, 0, False, "s", 0, 1, {"x": math.nan}, "", False, (), ())
    request = ExportTraceServiceRequest.FromString(encode_request([span], RESOURCES))
    (attribute,) = request.resource_spans[0].scope_spans[0].spans[0].attributes
    assert math.isnan(attribute.value.double_value)
