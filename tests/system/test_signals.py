"""What ctrl-C, SIGTERM and SIGHUP do to `up` at any time: nothing hangs, files stay whole."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from tests.system.receiving import wait_for
from tests.system.running import LOAD, Write, aegis, environment, save_model, small_nodes, start

HELD = """
shapes = { x = [1, 4] }
batching = { max_batch = 64, window = "10 s" }
[[pipelines]]
name = "load"
source = { kind = "synthetic", like = "m", rate = "200/s", count = 3 }
stages = [{ name = "infer", model = "m" }]
sinks = [{ kind = "jsonl", path = "out.jsonl", input = "infer.y" }]
[telemetry]
log = { path = "events.jsonl" }
"""
"""Three requests that wait for others which never come."""


def slow_to_load(tmp_path: Path) -> Path:
    _, weights = small_nodes()
    chain = [helper.make_node("Relu", ["x"], ["t0"])]
    chain += [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(20_000)]
    chain += [helper.make_node("MatMul", ["t20000", "weight"], ["y"])]
    return save_model(tmp_path / "model.onnx", chain, weights)


def wait_for_requests(process: subprocess.Popen[str], events: Path, count: int) -> None:
    def are_there() -> bool:
        assert process.poll() is None
        return events.exists() and events.read_text().count('"request_submitted"') >= count

    wait_for(are_there)


def save_held(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    save_model(tmp_path / "model.onnx", *small_nodes(), ends[:1], ends[1:])


def start_held(write_manifest: Write, tmp_path: Path, drain_timeout: str):
    save_held(tmp_path)
    head = f'[scheduler]\ndrain_timeout = "{drain_timeout}"\nrecord = true\n'
    process = start("up", write_manifest(HELD, head=head))
    wait_for_requests(process, tmp_path / "events.jsonl", 3)
    return process


def test_the_drain_timeout_holds_for_items_of_pipelines(
    write_manifest: Write, tmp_path: Path
) -> None:
    with start_held(write_manifest, tmp_path, "10 ms") as process:
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "0 items completed, 3 dropped, 0 failed (3 RuntimeStoppedError)" in output
    assert "stopping: what is under way is finished" in errors


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_gives_up_and_leaves_whole_files(
    write_manifest: Write, tmp_path: Path, second: signal.Signals
) -> None:
    with start_held(write_manifest, tmp_path, "1 h") as process:
        assert process.stderr is not None
        process.send_signal(signal.SIGINT)
        while "stopping" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(second)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert not errors
    assert "3 dropped" in output
    assert "recorded:" in output
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [e["outcome"] for e in events if e["event"] == "request_finished"] == ["cancelled"] * 3


def test_sigterm_during_loading_ends_at_once(tmp_path: Path, write_manifest: Write) -> None:
    slow_to_load(tmp_path)
    telemetry = '[telemetry]\nlog = { path = "events.jsonl" }\n'
    with start("up", write_manifest(LOAD, telemetry)) as process:
        wait_for((tmp_path / "events.jsonl").exists)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors == "interrupted\n"


def test_sighup_during_loading_reloads_after_it(tmp_path: Path, write_manifest: Write) -> None:
    slow_to_load(tmp_path)
    telemetry = '[telemetry]\nlog = { path = "events.jsonl" }\n'
    endless = LOAD.replace("count = 20", 'rate = "10/s"')
    with start("up", write_manifest(endless, telemetry)) as process:
        assert process.stderr is not None
        wait_for((tmp_path / "events.jsonl").exists)
        process.send_signal(signal.SIGHUP)
        lines = iter(process.stderr.readline, "")
        assert any("reload: nothing has changed" in line for line in lines)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def test_ctrl_c_while_modules_are_imported(tmp_path: Path, write_manifest: Write) -> None:
    with start("-v", "up", write_manifest(LOAD)) as process:
        # The verb's modules are mapped one after the other, NumPy's among the first.
        def imports_numpy() -> bool:
            assert process.poll() is None
            return "numpy" in Path(f"/proc/{process.pid}/maps").read_text()

        wait_for(imports_numpy)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors
    assert process.returncode == 130, errors


SIGNALLED_IN_A_CALLBACK = """
import signal, sys, weakref
from aegis_pipe.cli import main

class Referent:
    pass

def watch(event, details):
    global referent
    if referent is not None and event == sys.argv[1] and str(details[0]).endswith(sys.argv[2]):
        del referent
        referent = None

referent = Referent()
reference = weakref.ref(referent, lambda _: signal.raise_signal(signal.SIGINT))
sys.addaudithook(watch)
sys.exit(main(sys.argv[3:]))
"""
"""Runs a command line that a SIGINT reaches in a callback, where Python drops exceptions."""


@pytest.mark.parametrize(
    ("event", "name"),
    [("import", "numpy"), ("open", "model.onnx")],
    ids=["while modules are imported", "while models are loaded"],
)
def test_ctrl_c_in_a_callback_is_not_lost(
    tmp_path: Path, write_manifest: Write, event: str, name: str
) -> None:
    save_model(tmp_path / "model.onnx", *small_nodes())
    arguments = [event, name, "up", str(write_manifest(LOAD))]
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED_IN_A_CALLBACK, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.endswith("interrupted\n")


def test_two_runs_do_not_write_to_the_same_files(write_manifest: Write, tmp_path: Path) -> None:
    with start_held(write_manifest, tmp_path, "10 ms") as process:
        second = aegis("up", tmp_path / "manifest.toml", "--for", "1s")
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert second.returncode == 1
    assert "events.jsonl`: another process is writing to it" in second.stderr
    assert "hint:" in second.stderr
    assert process.returncode == 0, errors
    for line in (tmp_path / "events.jsonl").read_text().splitlines():
        json.loads(line)
