"""A real Prometheus fetches the metrics of a real run and evaluates every line of the dashboard."""

from __future__ import annotations

import json
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


def test_the_dashboard_is_up_to_date_and_shows_every_metric() -> None:
    text = TOOL["PATH"].read_text(encoding="utf-8")
    assert text == TOOL["render"](), "run `python tools/generate_grafana_dashboard.py`"
    # The share of the whole run is for those who have no Prometheus to compute a recent one.
    for name in METRICS.keys() - {"aegis.stream.utilisation"}:
        assert prometheus_name(name) in text


def query(port: int, expression: str) -> list[dict[str, Any]]:
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(url) as answer:
        result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return result


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no Prometheus on this machine")
def test_a_real_prometheus_draws_every_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The one thing that this machine can not tell of itself.
    readings = DeviceReadings(41, (("sm", 1_980_000_000), ("memory", 2_619_000_000)))
    monkeypatch.setattr(CpuContext, "read_sensors", lambda context: readings)
    metrics_port, port = free_port(), free_port()
    model = ROOT / "manifests" / "quickstart" / "digits.onnx"
    (tmp_path / "m.toml").write_text(
        f'manifest_version = 1\nname = "m"\n[[models]]\nname = "digits"\npath = "{model}"\n'
        f'[telemetry]\nmetrics = {{ prometheus = "127.0.0.1:{metrics_port}" }}\n'
    )
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
        aegis_pipe.open_pipeline(tmp_path / "m.toml") as runtime,
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
                for expression, _ in panel.lines:
                    asked = expression.replace("$model", ".*").replace("$__rate_interval", "1m")
                    values = [float(found["value"][1]) for found in query(port, asked)]
                    assert values, f"{panel.title}: {asked}"
                    assert all(value >= 0 for value in values), asked
        finally:
            prometheus.terminate()


def is_answering(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready"):
            return True
    except OSError:
        return False
