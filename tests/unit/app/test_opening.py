"""What opening a manifest gives, refuses and tells."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import aegis_pipe
from aegis_pipe.app import unmet_wishes
from aegis_pipe.cli import main
from aegis_pipe.device import registry
from aegis_pipe.manifest.model import ServeSection
from tests.unit.app.small_models import DIGITS, FLOAT_ROW, WAIT_S, WEIGHT, Open, Save, Write, row


@pytest.mark.parametrize("form", [Path, str, aegis_pipe.load_manifest])
def test_a_manifest_is_a_path_a_text_or_loaded(
    form: Callable[[Path], Any], write: Write, product: str
) -> None:
    with aegis_pipe.open_pipeline(form(write(m=product))) as runtime:
        (y,) = runtime.infer("m", {"x": row()}).values()
    np.testing.assert_allclose(y, np.maximum(row() @ WEIGHT, 0), rtol=1e-5, atol=1e-5)


def test_models_tell_their_inputs_and_outputs(opened: Open, product: str, take: str) -> None:
    runtime = opened(first=product, second=take)
    assert list(runtime.models) == ["first", "second"]
    inputs, outputs = runtime.models["second"].inputs, runtime.models["second"].outputs
    assert {name: str(spec) for name, spec in inputs.items()} == {"rows": "int64[2]"}
    assert {name: str(spec) for name, spec in outputs.items()} == {"y": "float32[2, 64]"}
    with pytest.raises(TypeError):
        runtime.models["third"] = runtime.models["first"]  # type: ignore[index]  # must not work


def test_a_manifest_with_problems_lists_them_all(write: Write) -> None:
    path = write("[scheduler]", 'policy = "prioritty"', "queue_capacity = 0", m="gone.onnx")
    with pytest.raises(aegis_pipe.ManifestError) as caught:
        aegis_pipe.open_pipeline(path)
    assert {problem.path for problem in caught.value.problems} == {
        "scheduler.policy",
        "scheduler.queue_capacity",
        "models[0].path",
    }


def test_multiprocessors_that_the_chosen_device_has_not_are_refused_by_plan_too(
    write: Write, product: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Left out of account, what was to be apart would not be."""
    # A machine without a GPU, whatever this one has.
    defaults = {**(registry.open_device.__kwdefaults__ or {}), "kinds": registry.DEVICE_KINDS[1:]}
    monkeypatch.setattr(registry.open_device, "__kwdefaults__", defaults)
    path = write("[device]", 'kind = "auto"', "[streams]", "count = 2", "sm = [16, 32]", m=product)
    for verb in ("plan", "up"):
        assert main([verb, str(path)]) == 1
        said = capsys.readouterr().err
        assert "streams.sm: streams are to have 48 multiprocessors, but cpu has 0 to divide" in said
        assert "leave `sm` out" in said


def test_a_model_over_its_budget_is_refused_with_the_cause(write: Write, product: str) -> None:
    # Twice: what was opened before the refusal must have been given back.
    path = write(m=product)
    path.write_text(path.read_text() + '\nmemory_budget = "16 KiB"\n')
    for _ in range(2):
        with pytest.raises(aegis_pipe.BudgetExceededError) as caught:
            aegis_pipe.open_pipeline(path)
    error = caught.value
    assert error.context == "model `m`"
    assert error.message.startswith("budget 16 KiB, needs 16.")
    assert "weights 16 KiB" in error.message
    assert error.hint.startswith("raise `memory_budget` to 17")
    assert error.hint.endswith("for model `m`")


def test_exporters_of_the_opentelemetry_sdk_get_the_spans(write: Write, product: str) -> None:
    exporter = InMemorySpanExporter()
    with aegis_pipe.open_pipeline(write(m=product), span_exporters=[exporter]) as runtime:
        for _ in range(3):
            runtime.infer("m", {"x": row()})
    names = [span.name for span in exporter.get_finished_spans()]
    assert names.count("model.load m") == 1
    assert names.count("infer m") == names.count("execute") == 3
    assert {"FusedGemm", "stream 0", "queue.wait"} <= set(names)
    telemetry = runtime.report().telemetry
    assert telemetry is not None
    assert (telemetry.exported_spans, telemetry.dropped_spans) == (len(names), 0)


def test_keys_that_do_nothing_yet_are_told(write: Write, product: str) -> None:
    manifest = aegis_pipe.load_manifest(write(m=product))
    assert unmet_wishes(manifest) == ()
    wishing = replace(manifest, serve=ServeSection(http="127.0.0.1:8000"))
    (line,) = unmet_wishes(wishing)
    assert "does not listen" in line


def test_a_precision_that_is_not_there_is_refused(write: Write, product: str) -> None:
    manifest = aegis_pipe.load_manifest(write(m=product))
    half = replace(manifest, models=(replace(manifest.models[0], precision="fp16"),))
    with pytest.raises(aegis_pipe.PermanentError, match="precision `fp16` is not supported by cpu"):
        aegis_pipe.open_pipeline(half)


def test_a_model_that_can_not_be_warmed_up_runs_all_the_same(save: Save, opened: Open) -> None:
    nodes = [
        helper.make_node("Sub", ["rows", "base"], ["shifted"]),
        helper.make_node("Gather", ["table", "shifted"], ["y"], name="look_up"),
    ]
    inputs, outputs = {"rows": (TensorProto.INT64, [2])}, {"y": (TensorProto.FLOAT, [2, 64])}
    base = np.array([1000, 1000], np.int64)
    model = save("shifted", nodes, inputs, outputs, table=WEIGHT[:4], base=base)
    runtime = opened(m=model)
    rows = runtime.infer("m", {"rows": np.array([1003, 1000])})["y"]
    np.testing.assert_array_equal(rows, WEIGHT[[3, 0]])


def test_weights_of_several_files_are_stored_once(opened: Open, save: Save, product: str) -> None:
    nodes = [
        helper.make_node("MatMul", ["a", "other_name"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["b"]),
    ]
    tanh = save("tanh", nodes, {"a": FLOAT_ROW}, {"b": FLOAT_ROW}, other_name=WEIGHT)
    runtime = opened(one=product, two=tanh, three=product)
    assert runtime.plan.weights_bytes == WEIGHT.nbytes
    assert runtime.plan.saved_bytes >= 2 * WEIGHT.nbytes
    expected = row() @ WEIGHT
    relu = np.maximum(expected, 0)
    np.testing.assert_allclose(runtime.infer("one", {"x": row()})["y"], relu, 1e-5, 1e-5)
    np.testing.assert_allclose(
        runtime.infer("two", {"a": row()})["b"], np.tanh(expected), 1e-5, 1e-5
    )
    np.testing.assert_allclose(runtime.infer("three", {"x": row()})["y"], relu, 1e-5, 1e-5)


@pytest.mark.parametrize(("policy", "groups"), [("fairness", 1), ("edf", 2), ("priority", 3)])
def test_models_share_memory_unless_the_policy_may_pause_one_for_the_other(
    write: Write, product: str, policy: str, groups: int
) -> None:
    manifest = aegis_pipe.load_manifest(write(a=product, b=product, c=product))
    models = tuple(
        replace(model, priority=priority, deadline_ns=deadline_ns, weight=1.0 + priority)
        for model, priority, deadline_ns in zip(
            manifest.models, (0, 1, 2), (10**11, 10**11, None), strict=True
        )
    )
    scheduler = replace(manifest.scheduler, policy=policy)
    with aegis_pipe.open_pipeline(replace(manifest, models=models, scheduler=scheduler)) as runtime:
        x = np.ones(runtime.models["a"].inputs["x"].shape, np.float32)
        found = [runtime.submit(model, {"x": x}) for model in ("a", "b", "c")]
        for future in found:
            expected = np.maximum(x @ WEIGHT, 0)
            np.testing.assert_allclose(future.result(WAIT_S)["y"], expected, rtol=1e-4)
        plan = runtime.plan
        assert plan.arena_bytes == groups * plan.models[0].arena_bytes


def _policies() -> dict[str, int]:
    """Return how the system schedules each of this process's threads, by name."""
    return {
        thread.name: os.sched_getscheduler(thread.native_id or 0)
        for thread in threading.enumerate()
    }


def test_what_serves_requests_runs_in_real_time_and_telemetry_does_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "real-time.toml"
    path.write_text(
        f"""
manifest_version = 1
name = "real-time"
[streams]
threads = 2
real_time = 1
[telemetry]
file = "traces.jsonl"
[[models]]
name = "digits"
path = "{DIGITS}"
[[pipelines]]
name = "read"
source = {{ kind = "synthetic", like = "digits", rate = "100/s" }}
stages = [{{ name = "infer", model = "digits" }}]
"""
    )
    before = os.sched_getscheduler(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        os.sched_setscheduler(0, before, os.sched_param(0))
    except PermissionError:
        with pytest.raises(aegis_pipe.PermanentError, match="schedule in real time") as refused:
            aegis_pipe.open_pipeline(path)
        assert "rtprio" in refused.value.hint
        return
    with aegis_pipe.open_pipeline(path) as runtime:
        runtime.start_pipelines()
        runtime.infer("digits", {"image": np.zeros((1, 1, 8, 8), np.float32)})
        policies = _policies()
        tasks = [os.sched_getscheduler(int(task)) for task in os.listdir("/proc/self/task")]
    assert os.sched_getscheduler(0) == before
    in_real_time = {name for name, policy in policies.items() if policy == os.SCHED_FIFO}
    assert {"aegis-cpu-stream-0", "read-source"} < in_real_time, policies
    # A team's helpers are not Python's.
    assert len([policy for policy in tasks if policy == os.SCHED_FIFO]) > len(in_real_time)
    assert not [name for name in in_real_time if "telemetry" in name or name == "MainThread"]
    assert [name for name in policies if "telemetry" in name], policies
