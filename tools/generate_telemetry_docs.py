"""Write docs/telemetry.md from the events and the tables of spans and attributes."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from aegis_pipe import events
from aegis_pipe.telemetry.attributes import ATTRIBUTES, PHASE_PREFIX, SPANS
from aegis_pipe.telemetry.json_log import event_name
from aegis_pipe.telemetry.metrics import METRICS
from aegis_pipe.telemetry.prometheus import prometheus_name

PATH = Path(__file__).parent.parent / "docs" / "telemetry.md"

_PREFACE = """\
# Telemetry

The runtime emits plain events; telemetry turns them into traces and log lines on threads of its
own. A request pays for one append to a bounded ring per event. What can not be kept or delivered
is dropped, oldest first, and counted; no request ever waits for telemetry, and the end of a run
waits no longer than 2 s for it.

Those threads build and send spans between requests, as far as there is time between them: exporting
beside a request takes from it where processors are few, or threads of one core. Spans arrive up to
half a second later for that; metrics and the log do not. If requests leave no time between them,
exporting goes on beside them.

To look at traces, start Jaeger and point the manifest at it:

```
docker compose -f tools/jaeger/docker-compose.yml up
```
```toml
[telemetry]
otlp = { endpoint = "http://127.0.0.1:4317", protocol = "grpc" }
traces = { ratio = 0.05, always = ["error", "deadline_miss"], slow = "20 ms" }
```

Then open <http://127.0.0.1:16686>. A file of OTLP JSON lines can be dropped there under *Upload*.

- **Sampling** is decided when a request has ended: errors, deadline misses and slow ones always,
  the rest by a share of the trace ids. A kept request keeps those that it was blocked by, so that
  its links lead somewhere.
- **Ids** follow from the run's id and the request's number: the same events give the same trace.
- **Two services** appear: the host, and the device as `<service>/<device>`, whose spans carry
  device times. Viewers show whole microseconds; `aegis.duration_ns` is the true duration.
- **Pipelines**: an item is one trace from source to sink; its requests lie below their stages.

## OpenTelemetry SDK exporters

What exports spans of the OpenTelemetry SDK can export these too, whatever the manifest says:

```python
from opentelemetry.sdk.trace.export import ConsoleSpanExporter

with aegis_pipe.open_pipeline("manifest.toml", span_exporters=[ConsoleSpanExporter()]) as runtime:
    ...
```

Each exporter has a thread and a bounded queue of its own, gets every batch once, and is shut down
when the runtime is closed. Spans have been sampled by then; the SDK's samplers and processors are
not involved. For OTLP prefer `telemetry.otlp`, which costs a fifth of it.

## Reading metrics

`telemetry.metrics = { prometheus = "127.0.0.1:9464" }` serves the metrics below to a Prometheus;
[tools/grafana/aegis-pipe.json](../tools/grafana/aegis-pipe.json) is a Grafana dashboard over them.
Any reader of the OpenTelemetry SDK gets them with
`open_pipeline(..., metric_readers=[PeriodicExportingMetricReader(...)])`, histograms as exponential
ones of scale 3. They are made from the events, so what a ring dropped is missing from them, and
`aegis.telemetry.dropped` says how much.

![The dashboard's panels over a run of four models](images/grafana.png)

The picture shows the dashboard's panels as Grafana's own components draw them (`@grafana/ui` 11.6:
its panel frame, time series and big value) in a page around them, over a real Prometheus that
fetched from an `aegis-pipe up` of four models on a CPU, with too much load for 20 s, and three
reloads, one of which was refused. There was no Grafana server: the page asked Prometheus itself and
put the panels where the dashboard says. Temperature and clocks are told by GPUs only.

## Looking at a recorded run

```
aegis-pipe trace summary traces.jsonl               # where each model's time went
aegis-pipe trace open traces.jsonl                  # the run as one page, needs no network
aegis-pipe trace export --perfetto run.json traces.jsonl   # for ui.perfetto.dev
aegis-pipe trace upload traces.jsonl --endpoint http://127.0.0.1:4317   # to Jaeger, afterwards
aegis-pipe why 17 --from traces.jsonl               # who held up request 17; needs `ratio = 1.0`
```

A collector's access token goes into `OTEL_EXPORTER_OTLP_HEADERS` (`authorization=Bearer%20TOKEN`),
or into `--header NAME=VALUE`, which other users of the machine can see.

Every span's resource tells the ratio as `aegis.traces.ratio`. Where it is below 1, the page says
that streams that look idle may have run requests that were not kept.

This file is generated: `python tools/generate_telemetry_docs.py`.
"""


def render() -> str:
    """Return the whole document."""
    sections = (
        _PREFACE,
        _render_spans(),
        _render_attributes(),
        _render_metrics(),
        _render_events(),
    )
    return "\n".join(sections)


def _render_spans() -> str:
    rows = ((f"`{name}`", *columns) for name, columns in SPANS.items())
    return "## Spans\n" + _table(("Span", "Service", "Parent", "Meaning"), rows)


def _render_attributes() -> str:
    rows = [(f"`{name}`", *columns) for name, columns in ATTRIBUTES.items()]
    rows.append((f"`{PHASE_PREFIX}*`", "any", "What a phase says about itself."))
    return "## Attributes\n" + _table(("Attribute", "Type", "Meaning"), rows)


def _render_metrics() -> str:
    rows = (
        (
            f"`{name}`",
            f"`{prometheus_name(name)}`",
            metric.kind,
            ", ".join(f"`{label}`" for label in metric.labels) or "-",
            metric.meaning,
        )
        for name, metric in METRICS.items()
    )
    header = ("Metric", "In Prometheus", "Kind", "Labels", "Meaning")
    return "## Metrics\n" + _table(header, rows)


def _render_events() -> str:
    parts = [
        "## Events\n",
        "One JSON line each, named as here. `at_ns` becomes `timestamp`; other instants keep their"
        "\nname; all are nanoseconds since the Unix epoch in the log. Requests are written as"
        "\n`req-<number>`, streams as `stream-<index>` in `stream_id`.",
    ]
    for kind in get_args(events.Event):
        rows = ((f"`{field}`", f"`{of_type}`", text) for field, of_type, text in _fields(kind))
        heading = f"\n### `{event_name(kind)}` ({kind.__name__})\n{inspect.getdoc(kind)}\n"
        parts.append(heading + _table(("Field", "Type", "Meaning"), rows).rstrip("\n"))
    return "\n".join(parts) + "\n"


def _fields(kind: type) -> Iterator[tuple[str, str, str]]:
    """Yield a NamedTuple's fields as (name, type, the string below it)."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(kind)).body if _is_class(node))
    for position, statement in enumerate(body):
        if isinstance(statement, ast.AnnAssign):
            below = body[position + 1] if position + 1 < len(body) else None
            text = below.value.value if _is_text(below) else ""
            yield ast.unparse(statement.target), ast.unparse(statement.annotation), text


def _is_class(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef)


def _is_text(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _table(header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    cells = (" | ".join(" ".join(cell.split()) for cell in line) for line in lines)
    return "\n" + "".join(f"| {row} |\n" for row in cells)


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
