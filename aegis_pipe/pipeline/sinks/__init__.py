"""The table of sinks: one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aegis_pipe.pipeline.parts import Sink
from aegis_pipe.pipeline.sinks.accuracy import AccuracySink
from aegis_pipe.pipeline.sinks.console import ConsoleSink
from aegis_pipe.pipeline.sinks.jsonl import JsonlSink
from aegis_pipe.pipeline.sinks.npz import NpzSink

SINKS: Mapping[str, Callable[..., Sink]] = {
    "accuracy": AccuracySink,
    "console": ConsoleSink,
    "jsonl": JsonlSink,
    "npz": NpzSink,
}
