from __future__ import annotations

import math
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import aegis_pipe
from aegis_pipe.clock import SystemClock
from aegis_pipe.device.cpu.context import CpuContext
from aegis_pipe.device.protocols import DeviceReadings
from aegis_pipe.errors import PermanentError
from aegis_pipe.telemetry import Telemetry, TelemetryConfig
from aegis_pipe.telemetry.metrics import (
    METRICS,
    SCALE,
    ExponentialHistogram,
    Losses,
    MetricsRecorder,
)
from aegis_pipe.telemetry.prometheus import CONTENT_TYPE, PrometheusEndpoint, render
from aegis_pipe.telemetry.resources import make_resources
from aegis_pipe.telemetry.sdk_metrics import SdkMetrics
from aegis_pipe.testing.event_sequences import run_events
from tests.system.receiving import free_port

NETWORK = Path(__file__).parents[3] / "manifests" / "quickstart" / "digits.onnx"


def recorded() -> MetricsRecorder:
    recorder = MetricsRecorder(SystemClock(), lambda: Losses(1, 2, 3))
    recorder.observe_device("cuda:0", lambda: DeviceReadings(41, (("sm", 1_980_000_000),)))
    for event in run_events():
        recorder.add(event)
    return recorder


def page() -> dict[str, float]:
    lines = render(recorded().read()).splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
    }


@given(st.lists(st.floats(1e-9, 1e6) | st.just(0.0), max_size=50))
def test_every_value_lies_in_its_bucket(values: list[float]) -> None:
    histogram = ExponentialHistogram()
    for value in values:
        histogram.add(value)
    state = histogram.value()
    assert state.samples == len(values)
    assert state.zeros == values.count(0.0)
    base = 2 ** (1 / 2**SCALE)
    for index, count in state.buckets.items():
        low, high = base**index * (1 - 1e-12), base ** (index + 1) * (1 + 1e-12)
        assert count <= sum(low < value <= high for value in values)
    assert sum(state.buckets.values()) + state.zeros == len(values)


def test_the_figures_are_those_of_the_events() -> None:
    values = recorded().read()
    requests = values["aegis.requests"]
    assert requests["detector", "completed", ""] == 23
    assert requests["detector", "failed", ""] == 1
    assert requests["detector", "expired", "deadline_passed"] == 1
    assert values["aegis.deadline.misses"] == {("detector",): 2}
    assert values["aegis.profile.overruns"] == {("detector",): 1}
    assert values["aegis.memory.planned"] == {
        ("detector", "weights"): 4_096,
        ("detector", "arena"): 8_192,
    }
    assert values["aegis.memory.reserved"] == {("arena",): 200 * 64}
    assert values["aegis.telemetry.dropped"] == {("events",): 1, ("spans",): 2, ("log_lines",): 3}
    assert set(values["aegis.stream.busy"]) == {("0",), ("1",)}


def test_prometheus_buckets_are_exact_and_cumulative() -> None:
    shown = page()
    buckets = [
        (math.inf if "+Inf" in name else float(name.rpartition('le="')[2][:-2]), value)
        for name, value in shown.items()
        if name.startswith('aegis_execution_duration_seconds_bucket{model="detector"')
    ]
    assert buckets == sorted(buckets)
    assert [count for _, count in buckets] == sorted(count for _, count in buckets)
    assert buckets[-1][1] == shown['aegis_execution_duration_seconds_count{model="detector"}'] == 23
    # All ran between 122 and 488 us, by the sequence of events.
    at = {f"{edge:.6g}": count for edge, count in buckets}
    assert at[f"{2**-13:.6g}"] == 0
    assert at[f"{2**-11:.6g}"] == 23


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus' promtool is not here")
def test_prometheus_own_tool_finds_nothing_wrong() -> None:
    text = render(recorded().read())
    check = subprocess.run(
        ["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False
    )
    assert (check.returncode, check.stderr) == (0, ""), check.stderr


def test_the_sdk_gets_the_same_figures() -> None:
    reader = InMemoryMetricReader()
    resources = make_resources(TelemetryConfig(), b"run")
    recorder = recorded()
    sdk = SdkMetrics([reader], recorder, resources, SystemClock())
    data = reader.get_metrics_data()
    assert data is not None
    found = {metric.name: metric for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    assert found.keys() == METRICS.keys()
    (point,) = found["aegis.queue.wait"].data.data_points
    ours = recorder.read()["aegis.queue.wait"][("detector",)]
    assert (point.count, point.sum, point.scale) == (ours.samples, ours.total, SCALE)
    offset = point.positive.offset
    counts = {offset + place: n for place, n in enumerate(point.positive.bucket_counts) if n}
    assert counts == dict(ours.buckets)
    sdk.close(1.0)
    sdk.close(1.0)


def test_a_run_serves_its_metrics_until_it_is_closed() -> None:
    telemetry = Telemetry(TelemetryConfig(prometheus="127.0.0.1:0"), SystemClock())
    telemetry.start()
    for event in run_events():
        telemetry.listener(event)
    assert telemetry._prometheus is not None
    where = telemetry._prometheus.where
    body = ""
    while 'aegis_requests_total{model="detector",outcome="failed",reason=""} 1' not in body:
        threading.Event().wait(0.02)
        with urllib.request.urlopen(where) as answer:
            assert answer.headers["Content-Type"] == CONTENT_TYPE
            body = answer.read().decode()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(where + "x")
    assert where in telemetry.close().where
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(where)


def test_an_address_in_use_is_told_with_a_way_out() -> None:
    recorder = recorded()
    first = PrometheusEndpoint("127.0.0.1:0", recorder)
    address = first.where.removeprefix("http://").removesuffix("/metrics")
    with pytest.raises(PermanentError, match="can not listen") as caught:
        PrometheusEndpoint(address, recorder)
    assert "free port" in (caught.value.hint or "")
    first.close()


def test_a_devices_readings_are_taken_when_somebody_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter([DeviceReadings(41, (("sm", 1_980_000_000),)), DeviceReadings(None, ()), None])
    threads = []

    def read_sensors(context: CpuContext) -> DeviceReadings | None:
        threads.append(threading.current_thread())
        return next(readings)

    monkeypatch.setattr(CpuContext, "read_sensors", read_sensors)
    path = tmp_path / "m.toml"
    path.write_text(
        'manifest_version = 1\nname = "m"\n'
        f'[[models]]\nname = "net"\npath = "{NETWORK}"\n'
        f'[telemetry]\nmetrics = {{ prometheus = "127.0.0.1:{(port := free_port())}" }}\n'
    )
    where = f"http://127.0.0.1:{port}/metrics"
    with aegis_pipe.open_pipeline(path):
        assert not threads
        pages = [urllib.request.urlopen(where, timeout=5).read().decode() for _ in range(3)]
    assert 'aegis_device_temperature_celsius{device="cpu"} 41\n' in pages[0]
    assert 'aegis_device_clock_hertz{device="cpu",domain="sm"} 1980000000\n' in pages[0]
    assert not any("aegis_device" in page for page in pages[1:])
    assert len(threads) == 3
    assert threading.main_thread() not in threads


def test_a_device_without_sensors_is_not_among_the_metrics() -> None:
    text = render(MetricsRecorder(SystemClock(), lambda: Losses(0, 0, 0)).read())
    assert "aegis_telemetry_dropped" in text
    assert "aegis_device" not in text
