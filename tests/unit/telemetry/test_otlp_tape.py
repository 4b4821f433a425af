"""The compiled encoder against Python's: the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from aegis_pipe.telemetry import otlp_proto, otlp_tape
from aegis_pipe.telemetry.assembler import TraceAssembler
from aegis_pipe.telemetry.config import TelemetryConfig
from aegis_pipe.telemetry.ids import Identifiers
from aegis_pipe.telemetry.native import LONG_CALLS
from aegis_pipe.telemetry.otlp_proto import encode_request
from aegis_pipe.telemetry.otlp_tape import OtlpEncoder
from aegis_pipe.telemetry.resources import make_resources
from aegis_pipe.telemetry.spans import SegmentCalls, Span, SpanBlock, SpanEvent, Trace
from aegis_pipe.testing.event_sequences import START_NS, request_events, run_events
from tests.unit.telemetry.test_otlp_proto import spans_of_any_kind

pytestmark = pytest.mark.skipif(LONG_CALLS is None, reason="the exporter's loops are not compiled")

CONFIG = TelemetryConfig(ratio=1.0)
RESOURCES = make_resources(CONFIG, b"run")
CALLS = SegmentCalls(
    [("com.microsoft.FusedConv" if i % 2 else "Conv", f"/{i}", "direct") for i in range(200)], 1
)


def span(**values: object) -> Span:
    return Span(1, 2, 0, False, "s", 5, 9, values, "", False, (), ())  # type: ignore[arg-type]


def block(first_id: int = 7, duration_ns: int = 99) -> SpanBlock:
    starts = START_NS + 1_000 * np.arange(200)
    columns = np.array([starts, starts + duration_ns, np.full(200, duration_ns)])
    return SpanBlock(2**127 + 5, 2**63 + 1, CALLS, 3, first_id, columns)


def run() -> Trace:
    assembler = TraceAssembler(CONFIG, Identifiers(b"run"), lambda instant_ns: instant_ns)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for event in run_events() + request_events(90, START_NS, traceparent=parent):
        assembler.add(event)
    return [part for trace in assembler.flush() for part in trace]


def test_a_whole_run_is_the_same_bytes() -> None:
    encoder = OtlpEncoder(RESOURCES)
    trace = run()
    assert encoder.encode(trace) == encode_request(trace, RESOURCES)
    # Once more, and in another order, now that everything that repeats is known.
    assert encoder.encode(trace[::-1]) == encode_request(trace[::-1], RESOURCES)


@given(st.lists(st.lists(spans_of_any_kind, max_size=3), max_size=3))
def test_any_spans_are_the_same_bytes(batches: list[list[Span]]) -> None:
    encoder = OtlpEncoder(RESOURCES)
    for batch in batches:
        assert encoder.encode(batch) == encode_request(batch, RESOURCES)


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 129, 16_383, 16_384, 2**21, 3_000_000])
def test_messages_of_any_length_are_the_same_bytes(size: int) -> None:
    event = SpanEvent(4, "e", {"t": "x" * size, "n": 1})
    batch = [span(t="x" * size), span()._replace(events=(event,)), span(v=[1] * (size // 11))]
    assert OtlpEncoder(RESOURCES).encode(batch) == encode_request(batch, RESOURCES)


def test_one_and_true_and_one_point_nought_stay_apart() -> None:
    values = (1, True, 1.0, [1], [1.0], [True], [1, 1.0], [], "1", ["1"], -1, [-1], np.float64(1))
    batch = [span(v=value) for value in (*values, *values[::-1])]
    assert OtlpEncoder(RESOURCES).encode(batch) == encode_request(batch, RESOURCES)


@pytest.mark.parametrize("first_id", [1, 2**64 - 1, -200 * 0x9E3779B97F4A7C15 % 2**64])
def test_blocks_of_any_ids_are_the_same_bytes(first_id: int) -> None:
    # The third's ids come to nought at the place after the last; the fourth's among them.
    for first in (first_id, (first_id + 0x9E3779B97F4A7C15 * 50) % 2**64):
        batch = [block(first), span(), block(first, 2**35 - 1)]
        assert OtlpEncoder(RESOURCES).encode(batch) == encode_request(batch, RESOURCES)


def test_a_kernel_of_a_minute_is_the_same_bytes() -> None:
    batch = [span(), block(), block(duration_ns=60_000_000_000)]
    assert OtlpEncoder(RESOURCES).encode(batch) == encode_request(batch, RESOURCES)


def test_texts_that_never_repeat_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp_tape, "CONSTANTS_MAX_BYTES", 10_000)
    encoder = OtlpEncoder(RESOURCES)
    for number in range(100):
        batch = [span(t=f"{number}" * 100)]
        assert encoder.encode(batch) == encode_request(batch, RESOURCES)
        assert encoder._constants.size_bytes < 11_000


def test_without_the_library_python_does_it() -> None:
    trace = run()
    assert OtlpEncoder(RESOURCES, None).encode(trace) == encode_request(trace, RESOURCES)


def test_python_encodes_nothing_that_c_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp_proto, "encode_request", None)
    assert OtlpEncoder(RESOURCES).encode(run())
