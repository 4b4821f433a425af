"""A real Prometheus fetches the metrics of a real run and evaluates every line of the dashboard."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aegis_pipe
from aegis_pipe.device.cpu.context import CpuContext
from aegis_pipe.device.protocols import DeviceReadings
from aegis_pipe.telemetry.metrics import METRICS
from aegis_pipe.telemetry.prometheus import prometheus_name
from tests.system.receiving import free_port, wait_for
from tests.system.running import ROOT

TOOL = runpy.run_path(str(ROOT / "tools" / "generate_grafana_dashboard.py"))


def tell_sensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the CPU tell the one thing that this machine can not tell of itself."""
    readings = DeviceReadings(41, (("sm", 1_980_000_000), ("memory", 2_619_000_000)))
    monkeypatch.setattr(CpuContext, "read_sensors", lambda context: readings)


def write_manifest(folder: Path, metrics_port: int) -> Path:
    model = ROOT / "manifests" / "quickstart" / "digits.onnx"
    path = folder / "m.toml"
    path.write_text(
        f'manifest_version = 1\nname = "m"\n[[models]]\nname = "digits"\npath = "{model}"\n'
        f'[telemetry]\nmetrics = {{ prometheus = "127.0.0.1:{metrics_port}" }}\n'
    )
    return path


def test_the_dashboard_is_up_to_date_and_shows_every_metric() -> None:
    text = TOOL["PATH"].read_text(encoding="utf-8")
    assert text == TOOL["render"](), "run `python tools/generate_grafana_dashboard.py`"
    # The share of the whole run is for those who have no Prometheus to compute a recent one.
    for name in METRICS.keys() - {"aegis.stream.utilisation"}:
        assert prometheus_name(name) in text


def test_every_expression_names_metrics_that_a_real_run_exposes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Needs no Prometheus; that one parses and evaluates them is the next test."""
    tell_sensors(monkeypatch)
    metrics_port = free_port()
    image = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    with aegis_pipe.open_pipeline(write_manifest(tmp_path, metrics_port)) as runtime:
        runtime.submit("digits", image).result()
        exposed: set[str] = set()

        def is_told() -> bool:
            with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics") as answer:
                exposed.update(re.findall(r"^(\w+)[{ ]", answer.read().decode(), re.MULTILINE))
            return prometheus_name("aegis.requests") in exposed

        wait_for(is_told)
    dashboard = json.loads(TOOL["PATH"].read_text(encoding="utf-8"))
    expressions = [
        *(target["expr"] for panel in dashboard["panels"] for target in panel["targets"]),
        *(one["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"),
    ]
    assert len(expressions) > 15
    for expression in expressions:
        named = set(re.findall(r"aegis_\w+", expression))
        assert named
        assert named <= exposed, expression


def query(port: int, expression: str) -> list[dict[str, Any]]:
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(url) as answer:
        result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return result


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no Prometheus on this machine")
def test_a_real_prometheus_draws_every_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell_sensors(monkeypatch)
    metrics_port, port = free_port(), free_port()
    manifest = write_manifest(tmp_path, metrics_port)
    (tmp_path / "prometheus.yml").write_text(
        "global: { scrape_interval: 500ms }\nscrape_configs:\n- job_name: aegis\n"
        f"  static_configs: [{{ targets: ['127.0.0.1:{metrics_port}'] }}]\n"
    )
    command = [
        "prometheus",
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    image = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    with (
        aegis_pipe.open_pipeline(manifest) as runtime,
        subprocess.Popen(command) as prometheus,
    ):
        try:
            wait_for(lambda: is_answering(port))

            def is_scraped() -> bool:
                runtime.submit("digits", image).result()
                late = runtime.submit("digits", image, deadline=0)
                assert late.exception() is not None
                time.sleep(0.1)
                counts = query(port, f"count_over_time({prometheus_name('aegis.requests')}[1m])")
                return len(counts) >= 2 and all(int(c["value"][1]) >= 3 for c in counts)

            wait_for(is_scraped)
            for panel in TOOL["PANELS"]:
                for expression, legend in panel.lines:
                    asked = expression.replace("$model", ".*").replace("$__rate_interval", "1m")
                    found = query(port, asked)
                    values = [float(series["value"][1]) for series in found]
                    assert values, f"{panel.title}: {asked}"
                    assert all(value >= 0 for value in values), asked
                    for series in found:
                        assert set(re.findall(r"{{(\w+)}}", legend)) <= series["metric"].keys()
        finally:
            prometheus.terminate()


def is_answering(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready"):
            return True
    except OSError:
        return False
