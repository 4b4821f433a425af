"""Write tools/grafana/aegis-pipe.json, a Grafana dashboard over the metrics of `telemetry.metrics`.

    python tools/generate_grafana_dashboard.py

Import the file in Grafana (Dashboards, New, Import) and choose the Prometheus that scrapes the
runtime.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from aegis_pipe.telemetry.prometheus import prometheus_name as name

PATH = Path(__file__).parent / "grafana" / "aegis-pipe.json"
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_WINDOW = "$__rate_interval"


class Panel(NamedTuple):
    """One graph: what it is called, in which unit, and its lines as (expression, legend)."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    kind: str = "timeseries"


def _rate(metric: str, by: str, more: str = "") -> str:
    return f'sum by ({by}) (rate({name(metric)}{{model=~"$model"{more}}}[{_WINDOW}]))'


def _quantiles(metric: str) -> tuple[tuple[str, str], ...]:
    """Return the lines of the median and of the 99th percentile, per model."""
    buckets = f'rate({name(metric)}_bucket{{model=~"$model"}}[{_WINDOW}])'
    return tuple(
        (f"histogram_quantile({q}, sum by (model, le) ({buckets}))", f"{{{{model}}}} p{q * 100:g}")
        for q in (0.5, 0.99)
    )


PANELS = (
    Panel("Requests by outcome", "reqps", ((_rate("aegis.requests", "outcome"), "{{outcome}}"),)),
    Panel(
        "Not completed, by reason",
        "reqps",
        (
            (
                _rate("aegis.requests", "model, outcome, reason", ', outcome!="completed"'),
                "{{model}} {{outcome}} {{reason}}",
            ),
        ),
    ),
    Panel("End to end", "s", _quantiles("aegis.request.duration")),
    Panel("Wait in the queue", "s", _quantiles("aegis.queue.wait")),
    Panel("Execution", "s", _quantiles("aegis.execution.duration")),
    Panel("Deadline misses", "reqps", ((_rate("aegis.deadline.misses", "model"), "{{model}}"),)),
    Panel(
        "Segments slower than profiled",
        "ops",
        ((_rate("aegis.profile.overruns", "model"), "{{model}}"),),
    ),
    Panel(
        "Reloads by outcome",
        "short",
        (
            # Prometheus extrapolates an increase to the window's ends: 1 becomes 1.1.
            (
                f"round(sum by (outcome) (increase({name('aegis.reloads')}[{_WINDOW}])))",
                "{{outcome}}",
            ),
        ),
    ),
    Panel("Requests waiting", "short", ((name("aegis.queue.depth"), "waiting"),)),
    Panel(
        "Stream utilisation",
        "percentunit",
        ((f"rate({name('aegis.stream.busy')}[{_WINDOW}])", "stream {{stream}}"),),
    ),
    Panel(
        "Memory planned",
        "bytes",
        ((f'{name("aegis.memory.planned")}{{model=~"$model"}}', "{{model}} {{kind}}"),),
    ),
    Panel(
        "Memory reserved and peak",
        "bytes",
        (
            (name("aegis.memory.reserved"), "pool {{pool}}"),
            (f'{name("aegis.memory.peak")}{{model=~"$model"}}', "{{model}} peak"),
        ),
    ),
    Panel(
        "Device temperature",
        "celsius",
        ((name("aegis.device.temperature"), "{{device}}"),),
    ),
    Panel("Device clocks", "hertz", ((name("aegis.device.clock"), "{{device}} {{domain}}"),)),
    Panel(
        "Telemetry lost",
        "short",
        ((f"sum by (what) ({name('aegis.telemetry.dropped')})", "{{what}}"),),
        "stat",
    ),
)


def render() -> str:
    """Return the dashboard as JSON."""
    dashboard: dict[str, Any] = {
        "title": "AegisPipe",
        "uid": "aegis-pipe",
        "tags": ["aegis-pipe", "inference"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus", "label": "Source"},
                {
                    "name": "model",
                    "type": "query",
                    "label": "Model",
                    "datasource": _SOURCE,
                    "query": f"label_values({name('aegis.memory.planned')}, model)",
                    "includeAll": True,
                    "multi": True,
                    "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                    "refresh": 2,
                },
            ]
        },
        "panels": [_panel(place, panel) for place, panel in enumerate(PANELS)],
    }
    return json.dumps(dashboard, indent=2) + "\n"


def _panel(place: int, panel: Panel) -> dict[str, Any]:
    return {
        "id": place + 1,
        "type": panel.kind,
        "title": panel.title,
        "datasource": _SOURCE,
        "gridPos": {"h": 8, "w": 8, "x": place % 3 * 8, "y": place // 3 * 8},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0}
            | ({"max": 1} if panel.unit == "percentunit" else {}),
            "overrides": [],
        },
        "targets": [
            {"refId": chr(ord("A") + line), "datasource": _SOURCE, "expr": expr,
             "legendFormat": legend}
            for line, (expr, legend) in enumerate(panel.lines)
        ],
    }  # fmt: skip


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(render(), encoding="utf-8")
