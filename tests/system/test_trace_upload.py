"""`aegis-pipe trace upload` to real receivers of OTLP, and to such as refuse, stall or die."""

from __future__ import annotations

import json
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

import aegis_pipe
from aegis_pipe.cli import main
from aegis_pipe.events import DecisionMade
from aegis_pipe.testing.event_sequences import START_NS, load_events, request_events
from tests.system.receiving import Collector, free_port, rotel, serving, wait_for
from tests.system.running import CROSSING, ROOT
from tests.unit.telemetry.test_recorded import write

Spans = dict[tuple[bytes, bytes], tuple[str, bytes]]
"""By trace and span id: the service, and the span's canonical bytes."""


def of_file(path: Path) -> Spans:
    """Return a file's spans, read by protobuf's own reader of JSON."""
    spans: Spans = {}
    for line in path.read_text().splitlines():
        # OTLP writes ids in hexadecimal where protobuf's JSON has base64.
        content = json.loads(line, object_hook=with_ids_as_protobuf_has_them)
        message = json_format.ParseDict(content, ExportTraceServiceRequest())
        for resource in message.resource_spans:
            service = next(
                pair.value.string_value
                for pair in resource.resource.attributes
                if pair.key == "service.name"
            )
            for scope in resource.scope_spans:
                for span in scope.spans:
                    spans[span.trace_id, span.span_id] = (service, canonical(span))
    return spans


def with_ids_as_protobuf_has_them(content: dict[str, Any]) -> dict[str, Any]:
    for key in ("traceId", "spanId", "parentSpanId"):
        if key in content:
            content[key] = b64encode(bytes.fromhex(content[key])).decode()
    return content


def of_collector(collector: Collector) -> Spans:
    return {
        (span.trace_id, span.span_id): (service, canonical(span))
        for service, span in collector.spans
    }


def canonical(span: Span) -> bytes:
    if not span.status.ByteSize():
        span.ClearField("status")  # Unset and empty mean the same.
    encoded: bytes = span.SerializeToString(deterministic=True)
    return encoded


def upload(path: Path, port: int, *words: str) -> int:
    return main(["trace", "upload", str(path), "--endpoint", f"http://127.0.0.1:{port}", *words])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_what_a_real_collector_passes_on_is_the_file_to_the_byte(
    protocol: str,
    recorded: tuple[Path, list[DecisionMade]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, _ = recorded
    written = of_file(path)
    collector = Collector()
    with serving(collector) as port, rotel(port, tmp_path) as ports:
        assert upload(path, ports[protocol], "--protocol", protocol) == 0
        wait_for(lambda: len(collector.spans) >= len(written))
    assert f"{len(written)} spans" in capsys.readouterr().out
    assert len(collector.spans) == len(written) > 2_000
    assert of_collector(collector) == written
    assert {service for service, _ in written.values()} == {"crossing", "crossing/cpu"}


def test_a_second_upload_sends_the_same_spans_again(
    recorded: tuple[Path, list[DecisionMade]],
) -> None:
    collector = Collector()
    with serving(collector) as port:
        assert upload(recorded[0], port) == 0
        once = of_collector(collector)
        assert upload(recorded[0], port) == 0
    assert len(collector.spans) == 2 * len(once)
    assert of_collector(collector) == once


def test_an_upload_is_what_the_run_would_have_sent_itself(tmp_path: Path) -> None:
    model = ROOT / "manifests" / "quickstart" / "digits.onnx"
    live, afterwards = Collector(), Collector()
    image = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    with serving(live) as port:
        text = CROSSING.format(model=model) + f'otlp = {{ endpoint = "http://127.0.0.1:{port}" }}\n'
        (tmp_path / "m.toml").write_text(text)
        with aegis_pipe.open_pipeline(tmp_path / "m.toml") as runtime:
            for number in range(50):
                late = number % 5 == 4
                future = runtime.submit("urgent", image, deadline=0 if late else None)
                assert (future.exception() is not None) == late
    with serving(afterwards) as port:
        assert upload(tmp_path / "traces.jsonl", port) == 0
    assert of_collector(afterwards) == of_collector(live)
    assert len(live.spans) == len(afterwards.spans) > 400


@pytest.fixture(scope="module")
def several_batches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "traces.jsonl"
    events = load_events()
    for number in range(900):
        events += request_events(number + 1, START_NS + 1_000_000 + number * 400_000)
    write(path, events)
    return path


class Dying(Collector):
    """Takes some batches, then refuses, says nothing, or keeps only a part."""

    def __init__(self, then: str, batches: int = 1) -> None:
        super().__init__()
        self.then = then
        self.batches = batches
        self.ended = threading.Event()

    def Export(  # noqa: N802 - the service's own name
        self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        if self.batches:
            self.batches -= 1
            return super().Export(request, context)
        if self.then == "refuses":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the disk is full")
        if self.then == "is silent":
            self.ended.wait()
        response = ExportTraceServiceResponse()
        response.partial_success.rejected_spans = 3
        response.partial_success.error_message = "too long a name"
        return response


@pytest.mark.parametrize(
    ("then", "words"),
    [
        ("refuses", "RESOURCE_EXHAUSTED: the disk is full"),
        ("is silent", "DEADLINE_EXCEEDED"),
        ("keeps a part", "it refused 3 of the batch's spans: too long a name"),
    ],
)
def test_a_collector_that_dies_midway_is_told_and_costs_nothing(
    then: str, words: str, several_batches: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = of_file(several_batches)
    before = several_batches.read_bytes()
    collector = Dying(then)
    with serving(collector) as port:
        limit = "2 s" if then == "is silent" else "60 s"
        assert upload(several_batches, port, "--timeout", limit) == 1
        collector.ended.set()
        first = len(collector.spans)
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.count("error:") == 1
        assert words in told.err
        assert f"; {first} of {len(written)} spans had arrived" in told.err
        assert 0 < first < len(written)
        # The collector recovers: the same command brings the rest, and nothing that is new.
        collector.batches = -1
        assert upload(several_batches, port) == 0
    assert of_collector(collector) == written
    assert len(collector.spans) == first + len(written)
    assert several_batches.read_bytes() == before


class _Handler(BaseHTTPRequestHandler):
    server: HttpReceiver
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.server.behave(self, self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


class HttpReceiver(ThreadingHTTPServer):
    """An HTTP server that does with each request what it is told to."""

    daemon_threads = True

    def __init__(self, behave: Callable[[BaseHTTPRequestHandler, bytes], None]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behave = behave


@contextmanager
def answering(behave: Callable[[BaseHTTPRequestHandler, bytes], None]) -> Iterator[int]:
    with HttpReceiver(behave) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def overloaded(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_error(503, "come back later")


def another_service(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_error(404)


def moved(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_response(307)
    handler.send_header("Location", "/elsewhere")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def part_taken(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 7
    reply(handler, response.SerializeToString())


def part_taken_in_json(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    answer = {"partialSuccess": {"rejectedSpans": "7", "errorMessage": "full"}}
    reply(handler, json.dumps(answer).encode(), "application/json; charset=utf-8")


def garbled(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    reply(handler, b"<html>welcome to the portal</html>")


def reply(
    handler: BaseHTTPRequestHandler, body: bytes, content_type: str = "application/x-protobuf"
) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", content_type)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def closing(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def stalling(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
    handler.wfile.flush()
    handler.connection.settimeout(10)
    handler.rfile.read(1)  # Until the other side gives up.


was_cut = threading.Event()


def trickling(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    handler.close_connection = True
    try:
        for _ in range(400):
            handler.wfile.write(b"X")
            time.sleep(0.05)
    except OSError:
        was_cut.set()


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        (overloaded, "HTTP 503 come back later"),
        (another_service, "HTTP 404 Not Found"),
        (moved, "HTTP 307"),
        (part_taken, "it refused 7 of the batch's spans"),
        (part_taken_in_json, "it refused 7 of the batch's spans: full"),
        (garbled, "what it answers is not OTLP"),
        (closing, "closed"),
        (stalling, "timed out"),
        (trickling, "timed out"),
    ],
)
def test_an_upload_that_fails_over_http_is_one_clear_error(
    behave: Callable[[BaseHTTPRequestHandler, bytes], None],
    words: str,
    several_batches: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with answering(behave) as port:
        limit = "300 ms" if words == "timed out" else "60 s"
        status = upload(several_batches, port, "--protocol", "http", "--timeout", limit)
    told = capsys.readouterr()
    assert (status, told.out) == (1, "")
    assert told.err.count("error:") == 1
    assert words in told.err.lower() or words in told.err
    assert "; 0 of " in told.err
    # The time limit is the batch's, not each read's: the trickle was cut short.
    assert behave is not trickling or was_cut.wait()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_an_upload_to_nobody_fails_and_says_what_to_do(
    protocol: str,
    recorded: tuple[Path, list[DecisionMade]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert upload(recorded[0], free_port(), "--protocol", protocol) == 1
    told = capsys.readouterr().err
    assert "start a collector there" in told
    assert "0 of " in told


def noting(seen: dict[str, str]) -> Callable[[BaseHTTPRequestHandler, bytes], None]:
    def note(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        seen.update((name.lower(), value) for name, value in handler.headers.items())
        reply(handler, ExportTraceServiceResponse().SerializeToString())

    return note


HEADERS = ("--header", "Authorization=Bearer a=b, c", "--header", "x-tenant = blue ")
ENVIRONMENT = "authorization=other,x-team=green%20team"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_headers_go_with_every_batch_and_before_those_of_the_environment(
    protocol: str,
    several_batches: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", ENVIRONMENT)
    collector, seen = Collector(), dict[str, str]()
    if protocol == "grpc":
        with serving(collector) as port:
            assert upload(several_batches, port, *HEADERS) == 0
        seen = collector.metadata
    else:
        with answering(noting(seen)) as port:
            assert upload(several_batches, port, "--protocol", "http", *HEADERS) == 0
    expected = {"authorization": "Bearer a=b, c", "x-tenant": "blue", "x-team": "green team"}
    assert {name: seen.get(name) for name in expected} == expected
    assert "Bearer" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("SECRET", "expected NAME=VALUE"),
        ("=SECRET", "expected NAME=VALUE"),
        ("a b=SECRET", "a header's name has letters"),
        ("authorization=SECRET\r\nx: y", "`authorization`: its value has a character"),
        ("authorization=SECRÉT", "only printable ASCII"),
        ("content-length=5SECRET", "belongs to the protocol"),
        ("token-bin=SECRET", "belongs to the protocol"),
    ],
)
@pytest.mark.parametrize("place", ["argument", "environment"])
def test_a_header_that_can_not_be_sent_is_refused_without_its_value(
    header: str,
    words: str,
    place: str,
    several_batches: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    port = str(free_port())
    if place == "argument":
        with pytest.raises(SystemExit) as ended:
            upload(several_batches, int(port), "--header", header)
        assert ended.value.code == 2
    else:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-team=green,{header}")
        assert upload(several_batches, int(port)) == 1
    told = "".join(capsys.readouterr())
    assert words in told
    assert "SECR" not in told


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4317", "http://", "http://a:99999", "http://[::1"])
def test_an_upload_to_what_is_no_address_is_refused(
    endpoint: str, several_batches: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "upload", str(several_batches), "--endpoint", endpoint]) == 1
    assert f"`{endpoint}` is not a URL" in capsys.readouterr().err


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_an_upload_by_the_wrong_protocol_ends(
    protocol: str,
    recorded: tuple[Path, list[DecisionMade]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    collector = Collector()
    with serving(collector) as port, rotel(port, tmp_path) as ports:
        other = ports["http" if protocol == "grpc" else "grpc"]
        assert upload(recorded[0], other, "--protocol", protocol, "--timeout", "2 s") == 1
    told = capsys.readouterr().err
    assert told.count("error:") == 1
    assert "--protocol" in told
