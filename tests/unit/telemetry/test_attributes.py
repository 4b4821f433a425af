"""The documented names are the emitted names, no more and no fewer."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

from aegis_pipe.execution.known_operators import KNOWN_OPERATORS
from aegis_pipe.execution.operators import OPERATORS
from aegis_pipe.telemetry import attributes as names
from aegis_pipe.telemetry.assembler import SETTLE_NS, TraceAssembler
from aegis_pipe.telemetry.config import TelemetryConfig
from aegis_pipe.telemetry.ids import Identifiers
from aegis_pipe.telemetry.spans import Span, expand
from aegis_pipe.testing.event_sequences import (
    START_NS,
    item_events,
    load_events,
    request_events,
    run_events,
)

TOOL = Path(__file__).parents[3] / "tools" / "generate_telemetry_docs.py"


def assemble_everything() -> list[Span]:
    spans: list[Span] = []
    for max_spans in (2_000, 3):
        config = TelemetryConfig(ratio=1.0, max_spans=max_spans)
        assembler = TraceAssembler(config, Identifiers(b"1"), lambda instant_ns: instant_ns)
        assembler.dropped_events = 5
        for event in run_events(3):
            assembler.add(event)
        spans += [span for trace in assembler.flush() for span in expand(trace)]
    return spans


def test_every_documented_attribute_is_emitted_and_the_other_way_round() -> None:
    emitted = {names.LINK}
    for span in assemble_everything():
        emitted |= span.attributes.keys()
        emitted |= {key for event in span.events for key in event.attributes}
    emitted = {name for name in emitted if not name.startswith(names.PHASE_PREFIX)}
    assert emitted == names.ATTRIBUTES.keys()


def test_every_attribute_has_its_documented_type() -> None:
    types = {"bool": bool, "int": int, "string": str, "int[]": (list, tuple), "float[]": list}
    for span in assemble_everything():
        for key, value in span.attributes.items():
            if key in names.ATTRIBUTES:
                assert isinstance(value, types[names.ATTRIBUTES[key][0]]), key


def test_spans_are_in_the_service_they_are_documented_in() -> None:
    device_spans = {"stream", "segment", "copy.in", "copy.out", "Conv", "Relu", "MatMul"}
    for span in assemble_everything():
        assert span.on_device == (span.name.partition(" ")[0] in device_spans), span.name


def test_span_names_are_few_however_many_requests_there_are() -> None:
    def count(requests: int) -> int:
        config = TelemetryConfig(ratio=1.0)
        assembler = TraceAssembler(config, Identifiers(b"1"), lambda instant_ns: instant_ns)
        events = load_events()
        for i in range(1, requests):
            events += request_events(i, START_NS + i * SETTLE_NS)
            events += item_events(i, 1_000 + i, START_NS + i * SETTLE_NS)
        for event in events:
            assembler.add(event)
        return len({span.name for trace in assembler.flush() for span in expand(trace)})

    assert count(2) == count(40) == 22


def test_the_document_is_up_to_date() -> None:
    tool = runpy.run_path(str(TOOL))
    assert tool["PATH"].read_text(encoding="utf-8") == tool["render"](), (
        "run `python tools/generate_telemetry_docs.py`"
    )


def test_jaegers_ui_is_told_attributes_that_there_are() -> None:
    settings = json.loads((TOOL.parent / "jaeger" / "ui.json").read_text(encoding="utf-8"))
    for prefix in settings["topTagPrefixes"]:
        assert any(name.startswith(prefix) for name in names.ATTRIBUTES), prefix
    for pattern in settings["linkPatterns"]:
        used = re.findall(r"#\{([^}]*)\}", pattern["url"] + pattern["text"])
        assert {pattern["key"], *used} <= names.ATTRIBUTES.keys()


def test_jaegers_ui_links_to_pages_that_there_are() -> None:
    """A page of ONNX has operators without a domain; what is our own has no page."""
    settings = json.loads((TOOL.parent / "jaeger" / "ui.json").read_text(encoding="utf-8"))
    patterns = [one for one in settings["linkPatterns"] if one["key"] == names.OPERATOR]
    linked = {pattern["url"].partition("#")[0]: pattern["value"] for pattern in patterns}
    assert linked == {
        "https://onnx.ai/onnx/operators/onnx__": [
            name for name in KNOWN_OPERATORS if "." not in name
        ],
        "https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md": sorted(
            name for name in OPERATORS.names() if name.startswith("com.microsoft.")
        ),
    }
