"""Look at recorded traces: the files of OTLP JSON lines that `telemetry.file` writes.

`summary` says where each model's time went, `open` shows the run as a page, `export --perfetto`
writes it for Perfetto, `upload` sends it to an OTLP collector such as Jaeger after the fact.
"""

from __future__ import annotations

import argparse
import json
import os
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from aegis_pipe.cli.arguments import duration
from aegis_pipe.cli.tables import counted, milliseconds, table
from aegis_pipe.errors import PermanentError, TransientError
from aegis_pipe.http_headers import parse_environment, parse_header
from aegis_pipe.output_file import replace_file
from aegis_pipe.telemetry.breakdown import PARTS, ModelBreakdown, break_down, by_model
from aegis_pipe.telemetry.config import PROTOCOLS
from aegis_pipe.telemetry.perfetto import to_events
from aegis_pipe.telemetry.resources import RATIO
from aegis_pipe.telemetry.spans import Span
from aegis_pipe.telemetry.trace_file import RecordedRun, read_runs
from aegis_pipe.telemetry.upload import upload
from aegis_pipe.telemetry.viewer import render_page

HEADERS_VARIABLE: Final = "OTEL_EXPORTER_OTLP_HEADERS"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take what to do, the file, and where the result goes."""
    verbs = parser.add_subparsers(metavar="ACTION", required=True)
    one = verbs.add_parser("summary", help="show where each model's time went")
    one.add_argument("--json", action="store_true", help="print it as JSON")
    one.set_defaults(act=_summary)
    one = verbs.add_parser("export", help="write the run in another format")
    one.add_argument(
        "--perfetto", type=Path, required=True, metavar="FILE", help="JSON for ui.perfetto.dev"
    )
    one.set_defaults(act=_export)
    one = verbs.add_parser("open", help="show the run as a page in the browser")
    one.add_argument("--output", type=Path, metavar="FILE", help="the page; beside the trace")
    one.add_argument("--no-browser", action="store_true", help="only write the page")
    one.set_defaults(act=_open)
    one = verbs.add_parser("upload", help="send the traces to an OTLP collector")
    one.add_argument("--endpoint", default="http://127.0.0.1:4317", help="its address")
    one.add_argument("--protocol", choices=PROTOCOLS, default="grpc")
    one.add_argument("--timeout", type=duration, default="10 s", help="time a batch may take")
    one.add_argument(
        "--header",
        type=_header,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="sent with each batch, such as an access token; may be repeated, and goes before "
        f"{HEADERS_VARIABLE} of the environment, which other users of the machine do not see",
    )
    one.set_defaults(act=_upload)
    for action in verbs.choices.values():
        action.add_argument("file", type=Path, help="what `telemetry.file` wrote")


def _header(text: str) -> tuple[str, str]:
    try:
        return parse_header(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(options: argparse.Namespace) -> int:
    """Do what was asked for; an AegisError if the file can not be read."""
    status: int = options.act(options)
    return status


def _traces(path: Path) -> list[Sequence[Span]]:
    return _joined(path, read_runs(path))


def _joined(path: Path, runs: Sequence[RecordedRun]) -> list[Sequence[Span]]:
    traces = [trace for recorded in runs for trace in recorded.traces]
    if not traces:
        raise PermanentError(
            f"there are no traces in `{path}`",
            context="trace",
            hint="nothing was kept: raise `traces.ratio`, or let it run longer",
        )
    return traces


def _summary(options: argparse.Namespace) -> int:
    models = by_model(break_down(_traces(options.file)))
    print(json.dumps([m._asdict() for m in models], indent=2) if options.json else summary(models))
    return 0


def summary(models: Sequence[ModelBreakdown]) -> str:
    """Format where each model's time went."""
    if not models:
        return "no requests in this trace, only loads"
    header = ("model", "requests", "missed", "failed", "p50", "p99", *PARTS, "accounted")
    rows = [
        (
            m.model,
            str(m.requests),
            str(m.missed),
            str(m.failed),
            milliseconds(m.p50_ns),
            milliseconds(m.p99_ns),
            *(milliseconds(round(m.parts_ns[part])) for part in PARTS),
            f"{m.accounted:.1%}",
        )
        for m in models
    ]
    lines = [
        "times in ms; from `wait` to `report` the mean parts of a request's time:",
        *(f"  {part}: {meaning}" for part, meaning in PARTS.items()),
        "",
        table(header, rows),
    ]
    for m in models:
        if m.blockers:
            held = ", ".join(f"{other} ({count})" for other, count in m.blockers.items())
            lines.append(f"\n{m.model} waited for requests of: {held}")
    return "\n".join(lines)


def _export(options: argparse.Namespace) -> int:
    events = list(to_events(_traces(options.file)))
    content = {"traceEvents": events, "displayTimeUnit": "ns"}
    replace_file(options.perfetto, json.dumps(content, separators=(",", ":")))
    print(
        f"{options.perfetto}: {counted(len(events), 'event')}; open it at https://ui.perfetto.dev"
    )
    return 0


def _open(options: argparse.Namespace) -> int:
    page = options.output or options.file.with_suffix(".html")
    runs = read_runs(options.file)
    traces = _joined(options.file, runs)
    # Files of before the ratio was told are not known to be sampled.
    ratio = min(float(run.resources.host.get(RATIO, 1)) for run in runs)
    replace_file(page, render_page(options.file.name, traces, ratio))
    print(page)
    if not options.no_browser and not webbrowser.open(page.resolve().as_uri()):
        print("no browser is here; open the page elsewhere, it needs no other file")
    return 0


def _upload(options: argparse.Namespace) -> int:
    runs = read_runs(options.file)
    report = upload(
        runs,
        endpoint=options.endpoint,
        protocol=options.protocol,
        timeout_ns=options.timeout,
        headers=_environment_headers() | dict(options.header),
    )
    if report.problem:
        raise TransientError(
            f"{report.problem}; {report.sent} of {counted(report.total, 'span')} had arrived",
            context=options.endpoint,
            hint=f"start a collector there that takes OTLP over {options.protocol} (`--protocol`), "
            "and upload once more: spans that arrive twice are the same spans",
        )
    print(f"{options.endpoint}: {counted(report.sent, 'span')}")
    return 0


def _environment_headers() -> dict[str, str]:
    try:
        return parse_environment(os.environ.get(HEADERS_VARIABLE, ""))
    except ValueError as error:
        raise PermanentError(
            str(error),
            context=f"the environment's {HEADERS_VARIABLE}",
            hint="write it as `name=value,name=value`, with %20 for a space; or unset it",
        ) from error
