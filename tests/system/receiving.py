"""Real receivers of OTLP: one in this process that keeps everything, and rotel in front of it."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP receiver in this process that keeps all it gets, or refuses all."""

    def __init__(self, refusal: grpc.StatusCode | None = None) -> None:
        self.refusal = refusal
        self.metadata: dict[str, str] = {}
        self.spans: list[tuple[str, Span]] = []
        """With the name of the service that each came from."""

    def Export(  # noqa: N802 - the service's own name
        self,
        request: trace_service_pb2.ExportTraceServiceRequest,
        context: grpc.ServicerContext,
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.metadata = dict(context.invocation_metadata())
        if self.refusal is not None:
            context.abort(self.refusal, "not today")
        for resource in request.resource_spans:
            service = attributes(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                self.spans += [(str(service), span) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


def attributes(pairs: Iterator[KeyValue]) -> dict[str, object]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@contextmanager
def serving(collector: Collector) -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def rotel(collector_port: int, folder: Path) -> Iterator[dict[str, int]]:
    """Run a real collector between us and `collector_port`; yield its port by protocol."""
    with ExitStack() as stack:
        for _ in range(5):
            ports = {"grpc": free_port(), "http": free_port()}
            process = start_rotel(ports, collector_port, folder)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            if all(is_listening(port, process) for port in ports.values()):
                yield ports
                return
        pytest.fail(f"rotel does not start: {(folder / 'rotel.txt').read_text()}")


def start_rotel(
    ports: dict[str, int], collector_port: int, folder: Path
) -> subprocess.Popen[bytes]:
    options = {
        "otlp-grpc-endpoint": f"127.0.0.1:{ports['grpc']}",
        "otlp-http-endpoint": f"127.0.0.1:{ports['http']}",
        "exporter": "otlp",
        "otlp-exporter-endpoint": f"http://127.0.0.1:{collector_port}",
        "batch-timeout": "20ms",
        "pid-file": str(folder / "rotel.pid"),
        "log-file": str(folder / "rotel.log"),
    }
    arguments = [f"--{key}={value}" for key, value in options.items()]
    with (folder / "rotel.txt").open("wb") as output:
        binary = str(files("rotel") / "rotel-agent")
        return subprocess.Popen([binary, "start", *arguments], stdout=output, stderr=output)


def is_listening(port: int, process: subprocess.Popen[bytes]) -> bool:
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.02)
    return False


def wait_for(holds: Callable[[], bool]) -> None:
    # The test's own time limit ends this if it never holds.
    while not holds():
        time.sleep(0.02)
