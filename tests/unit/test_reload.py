"""Reloading a runtime: real models, real files, requests under way."""

from __future__ import annotations

import gc
import json
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

import aegis_pipe
from aegis_pipe.analysis.replay import replay
from aegis_pipe.device.cpu.region import CpuRegion
from aegis_pipe.events import (
    DecisionMade,
    Event,
    ManifestReloaded,
    ModelLoaded,
    PhaseFinished,
    RequestFinished,
)
from aegis_pipe.manifest.conversion import manifest_from_table
from aegis_pipe.revision import Revision
from aegis_pipe.scheduler_builder import make_scheduler
from aegis_pipe.scheduling.recording import read_run

WAIT_S = 60
SIZE = 64
WEIGHT = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((1, SIZE)).astype(np.float32)

Write = Callable[..., Path]
Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save `x` float32[1, 64] -> MatMul with weights times `factor` -> `y`; replaces at once."""

    def make(name: str, factor: float = 1.0, output: str = "y", external: str = "") -> Path:
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], [output])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, SIZE])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, SIZE])],
            [numpy_helper.from_array(WEIGHT * np.float32(factor), "w")],
        )
        opsets = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        path = tmp_path / f"{name}.onnx"
        options = {"save_as_external_data": True, "location": external} if external else {}
        (tmp_path / external).unlink(missing_ok=True) if external else None
        onnx.save(model, tmp_path / "new.onnx", **options)  # type: ignore[arg-type]
        (tmp_path / "new.onnx").replace(path)
        return path

    return make


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write `manifest.toml` with these models (name=more lines) after a head."""

    def make(*head: str, **models: str) -> Path:
        lines = ["manifest_version = 1", *head]
        if not any(line.startswith("name") for line in head):
            lines.insert(1, 'name = "test"')
        for name, more in models.items():
            path = "" if more.startswith("path =") else f'path = "{name}.onnx"'
            lines += ["[[models]]", f'name = "{name}"', path, more]
        file = tmp_path / "manifest.toml"
        file.write_text("\n".join(lines), encoding="utf-8")
        return file

    return make


class Heard:
    """A listener that keeps all events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def phases(self) -> list[str]:
        return [event.name for event in self.of(PhaseFinished)]


class Latch(Heard):
    """Holds the scheduling thread once it has started a request."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.released = threading.Event()

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, DecisionMade) and event.kind == "start":
            self.reached.set()
            assert self.released.wait(WAIT_S)


@pytest.fixture
def latch() -> Iterator[Latch]:
    held = Latch()
    yield held
    held.released.set()


def expected(factor: float = 1.0) -> bytes:
    return bytes((X @ (WEIGHT * np.float32(factor))).tobytes())


def answer(runtime: aegis_pipe.Runtime, model: str = "m") -> np.ndarray:
    (value,) = runtime.infer(model, {"x": X}).values()
    return value


# --- what changes -------------------------------------------------------------------------------


def test_models_that_lie_as_before_are_not_loaded_again(write: Write, save: Save) -> None:
    save("m")
    heard = Heard()
    with aegis_pipe.open_pipeline(write(m="priority = 1"), listeners=[heard]) as runtime:
        before = answer(runtime)
        report = runtime.reload(write(m="priority = 7\nlate = 'run'\ndeadline = '1 s'"))
        assert (report.outcome, report.models_kept) == ("applied", ("m",))
        assert (report.models_added, report.models_removed, report.models_reloaded) == ((), (), ())
        assert runtime.manifest.models[0].priority == 7
        assert answer(runtime).tobytes() == before.tobytes()
        assert len(heard.of(ModelLoaded)) == 1
        assert runtime.report().statistics.models[0].completed == 2
    (told,) = heard.of(ManifestReloaded)
    assert (told.outcome, told.digest_before, told.digest_after, told.models_kept) == (
        "applied",
        report.digest_before,
        report.digest_after,
        ("m",),
    )


def test_the_same_manifest_changes_nothing(write: Write, save: Save) -> None:
    save("m")
    path = write(m="")
    heard = Heard()
    with aegis_pipe.open_pipeline(path, listeners=[heard]) as runtime:
        assert runtime.reload(path).outcome == "unchanged"
        assert "drain" not in heard.phases()


@pytest.mark.parametrize("external", ["", "weights.bin"])
def test_a_model_whose_file_changed_is_loaded_anew(write: Write, save: Save, external: str) -> None:
    save("m", external=external)
    path = write(m="")
    with aegis_pipe.open_pipeline(path) as runtime:
        first = answer(runtime)
        save("m", factor=2.0, external=external)
        report = runtime.reload(path)
        assert (report.outcome, report.models_reloaded) == ("applied", ("m",))
        np.testing.assert_array_equal(answer(runtime), 2 * first)


def test_external_data_alone_may_change(write: Write, save: Save, tmp_path: Path) -> None:
    save("m", external="weights.bin")
    path = write(m="")
    with aegis_pipe.open_pipeline(path) as runtime:
        first = answer(runtime)
        (tmp_path / "other").write_bytes((3 * WEIGHT).tobytes())
        (tmp_path / "other").replace(tmp_path / "weights.bin")
        assert runtime.reload(path).models_reloaded == ("m",)
        np.testing.assert_allclose(answer(runtime), 3 * first, rtol=1e-5, atol=1e-5)


def test_models_come_and_go_and_their_figures_stay(write: Write, save: Save) -> None:
    for name in ("m", "n"):
        save(name)
    with aegis_pipe.open_pipeline(write(m="")) as runtime:
        answer(runtime)
        report = runtime.reload(write(n="", m=""))
        assert (report.models_added, report.models_reloaded) == (("n",), ("m",))
        answer(runtime, "n")
        answer(runtime, "m")
        report = runtime.reload(write("[streams]\ncount = 2", n=""))
        assert report.models_removed == ("m",)
        assert runtime.report().streams == 2
        with pytest.raises(aegis_pipe.InvalidInputError, match="there is no model `m`"):
            runtime.submit("m", {"x": X})
        answer(runtime, "n")
    figures = {each.model: each.completed for each in runtime.report().statistics.models}
    assert figures == {"n": 2, "m": 2}
    assert runtime.report().statistics.allocations_after_start == 0


# --- what is refused ----------------------------------------------------------------------------

REFUSED = {
    "no TOML": ("name = = 3",),
    "a key that is not there": ("colour = 3",),
    "over the budget": ('[device]\nmemory_budget = "1 KiB"',),
    "not proven": ('[scheduler]\nadmission = "enforce"',),
    "another device": ('[device]\nkind = "auto"',),
    "another endpoint": ('[telemetry]\notlp = { endpoint = "http://127.0.0.1:1" }',),
    "another policy that is not there": ('[scheduler]\npolicy = "nowhere.at_all:Policy"',),
}


@pytest.mark.parametrize("what", [*REFUSED, "no file", "no model file", "a damaged model"])
def test_what_is_refused_leaves_all_as_it_was(
    write: Write, save: Save, what: str, tmp_path: Path
) -> None:
    save("m")
    (tmp_path / "damaged.onnx").write_bytes(b"not a model")
    heard = Heard()
    with aegis_pipe.open_pipeline(write(m=""), listeners=[heard]) as runtime:
        before, plan, manifest = answer(runtime), runtime.plan, runtime.manifest
        path = write(*REFUSED.get(what, ()), m='path = "gone.onnx"' if "no model" in what else "")
        if what == "a damaged model":
            path = write(m="", n='path = "damaged.onnx"')
        if what == "no file":
            path.unlink()
        with pytest.raises(aegis_pipe.PermanentError) as caught:
            runtime.reload(path)
        assert answer(runtime).tobytes() == before.tobytes()
        assert runtime.plan is plan
        assert runtime.manifest is manifest
        assert "drain" not in heard.phases()
        assert len(heard.of(ModelLoaded)) == 1
        (told,) = heard.of(ManifestReloaded)
        assert told.outcome == "refused"
        assert told.error == str(caught.value)
        roots = [phase for phase in heard.of(PhaseFinished) if phase.name == "reload"]
        assert [phase.error for phase in roots] == [told.error]
        # Whatever was begun is told to its end: no phase hangs on one that never ended.
        ended = {phase.phase_id for phase in heard.of(PhaseFinished)}
        assert {phase.parent_id for phase in heard.of(PhaseFinished)} <= ended | {0}
        # And it is no obstacle to the next one.
        write(m="priority = 2")
        assert runtime.reload(tmp_path / "manifest.toml").outcome == "applied"


def test_keys_that_can_not_change_are_named(write: Write, save: Save) -> None:
    save("m")
    with aegis_pipe.open_pipeline(write(m="")) as runtime:
        head = 'name = "other"\n[streams]\nthreads = 2\n[telemetry]\nlog = { path = "log.jsonl" }'
        with pytest.raises(aegis_pipe.ManifestError) as caught:
            runtime.reload(write(head, m=""))
        keys = [problem.path for problem in caught.value.problems]
        assert keys == ["name", "streams.threads", "telemetry.log.path"]


# --- requests under way -------------------------------------------------------------------------


def test_no_request_is_lost_and_each_result_is_of_one_manifest(write: Write, save: Save) -> None:
    save("m", 1.0)
    save("n", 2.0)
    path = write(m="")
    results: list[bytes] = []
    ending = threading.Event()
    with aegis_pipe.open_pipeline(path) as runtime:
        exact = [answer(runtime).tobytes()]

        def load() -> None:
            mine = []
            while not ending.is_set():
                mine += [runtime.submit("m", {"x": X}) for _ in range(8)]
                time.sleep(0.0005)
                results.extend(f.result(WAIT_S)["y"].tobytes() for f in mine[-8:])

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        for turn in range(8):
            # By turns another model, and only another priority of the same one.
            file = "n.onnx" if turn // 2 % 2 else "m.onnx"
            report = runtime.reload(write(m=f'path = "{file}"\npriority = {turn + 1}'))
            assert report.outcome == "applied"
        ending.set()
        for thread in threads:
            thread.join(WAIT_S)
        runtime.reload(write(m='path = "n.onnx"'))
        exact.append(answer(runtime).tobytes())
    (figures,) = runtime.report().statistics.models
    assert figures.submitted == figures.completed == len(results) + 2
    assert set(results) == set(exact)


def in_background(action: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(action())
        except aegis_pipe.AegisError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def wait_until(holds: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.002)


def is_holding(runtime: aegis_pipe.Runtime) -> bool:
    return runtime._gate._held is not None


def test_what_comes_during_the_swap_waits_for_the_new_manifest(
    write: Write, save: Save, latch: Latch
) -> None:
    save("m", 1.0)
    save("n", 2.0)
    path = write("[scheduler]\nqueue_capacity = 4", m="")
    with aegis_pipe.open_pipeline(path, listeners=[latch]) as runtime:
        old = runtime.submit("m", {"x": X})
        assert latch.reached.wait(WAIT_S)
        path = write("[scheduler]\nqueue_capacity = 4", m='path = "n.onnx"')
        thread, outcome = in_background(lambda: runtime.reload(path))
        wait_until(lambda: is_holding(runtime))
        held = [runtime.submit("m", {"x": X}) for _ in range(4)]
        with pytest.raises(aegis_pipe.QueueFullError, match="4 requests wait for its end"):
            runtime.submit("m", {"x": X})
        with pytest.raises(aegis_pipe.TransientError, match="another reload is under way"):
            runtime.reload(path)
        assert held[1].cancel()
        assert not any(future.done() for future in (old, *held))
        latch.released.set()
        thread.join(WAIT_S)
        assert outcome[0].requests_held == 4
        np.testing.assert_array_equal(held[0].result(WAIT_S)["y"], 2 * old.result(WAIT_S)["y"])
        with pytest.raises(aegis_pipe.RequestCancelledError):
            held[1].result(WAIT_S)
        assert [held[i].result(WAIT_S)["y"].shape for i in (2, 3)] == [(1, SIZE)] * 2
    outcomes = [event.outcome for event in latch.of(RequestFinished)]
    assert sorted(outcomes) == ["cancelled", *["completed"] * 4, "rejected"]
    (figures,) = runtime.report().statistics.models
    assert (figures.submitted, figures.completed) == (6, 4)


def test_a_held_request_that_the_new_manifest_has_no_model_for_is_told(
    write: Write, save: Save, latch: Latch
) -> None:
    save("m")
    save("n")
    with aegis_pipe.open_pipeline(write(m=""), listeners=[latch]) as runtime:
        runtime.submit("m", {"x": X})
        assert latch.reached.wait(WAIT_S)
        path = write(n="")
        thread, outcome = in_background(lambda: runtime.reload(path))
        wait_until(lambda: is_holding(runtime))
        held = runtime.submit("m", {"x": X})
        latch.released.set()
        thread.join(WAIT_S)
        assert outcome[0].outcome == "applied"
        with pytest.raises(aegis_pipe.InvalidInputError, match="there is no model `m`"):
            held.result(WAIT_S)


def test_what_is_not_done_in_time_refuses_the_reload_and_is_lost_by_nobody(
    write: Write, save: Save, latch: Latch
) -> None:
    save("m")
    save("n")
    path = write("[scheduler]\ndrain_timeout = '30 ms'", m="")
    with aegis_pipe.open_pipeline(path, listeners=[latch]) as runtime:
        old = [runtime.submit("m", {"x": X}) for _ in range(3)]
        assert latch.reached.wait(WAIT_S)
        with pytest.raises(aegis_pipe.TransientError, match=r"3 requests were still under way"):
            runtime.reload(write(n=""))
        latch.released.set()
        assert [len(future.result(WAIT_S)) for future in old] == [1, 1, 1]
        assert list(runtime.models) == ["m"]
        answer(runtime)
    (told,) = latch.of(ManifestReloaded)
    assert told.outcome == "refused"


# --- a start that fails in spite of the checks --------------------------------------------------


@pytest.mark.parametrize("model", ["m", "n"])
def test_the_manifest_before_is_started_again(
    write: Write, save: Save, tmp_path: Path, model: str
) -> None:
    """A recording that can not be written stops the start after everything else went well."""
    save("m")
    save("n")
    (tmp_path / "manifest.reload-1.run").mkdir()
    heard = Heard()
    with aegis_pipe.open_pipeline(write(m=""), listeners=[heard]) as runtime:
        before = answer(runtime)
        path = write("[scheduler]\nrecord = true", **{model: ""})
        with pytest.raises(aegis_pipe.PermanentError, match="the one before runs again"):
            runtime.reload(path)
        assert answer(runtime).tobytes() == before.tobytes()
        assert [told.outcome for told in heard.of(ManifestReloaded)] == ["restored"]
        assert runtime.report().statistics.models[0].completed == 2


def test_if_neither_can_be_started_everyone_is_told(
    write: Write, save: Save, tmp_path: Path
) -> None:
    file = save("m")
    save("n")
    (tmp_path / "manifest.reload-1.run").mkdir()
    heard = Heard()
    with aegis_pipe.open_pipeline(write(m=""), listeners=[heard]) as runtime:
        answer(runtime)
        file.unlink()
        with pytest.raises(aegis_pipe.FatalError, match="nothing runs any more"):
            runtime.reload(write("[scheduler]\nrecord = true", n=""))
        with pytest.raises(aegis_pipe.RuntimeStoppedError):
            runtime.submit("m", {"x": X})
    assert [told.outcome for told in heard.of(ManifestReloaded)] == ["failed"]


def test_after_close_there_is_no_reload(write: Write, save: Save) -> None:
    save("m")
    path = write(m="")
    with aegis_pipe.open_pipeline(path) as runtime:
        pass
    with pytest.raises(aegis_pipe.RuntimeStoppedError):
        runtime.reload(path)


# --- what stays behind --------------------------------------------------------------------------


def test_twenty_reloads_leave_nothing_behind(write: Write, save: Save) -> None:
    save("m")
    save("n")

    def held(runtime: aegis_pipe.Runtime) -> tuple[int, int, int, int]:
        gc.collect()
        gc.unfreeze()
        objects = gc.get_objects()
        gc.freeze()
        process = psutil.Process()
        resources = runtime._platform.context._resources.values()  # type: ignore[attr-defined]
        return (
            sum(each.size_bytes for each in resources if isinstance(each, CpuRegion)),
            sum(isinstance(each, Revision) for each in objects),
            process.num_threads(),
            process.num_fds(),
        )

    with aegis_pipe.open_pipeline(write(m="", n="")) as runtime:
        answer(runtime)
        first = held(runtime)
        for turn in range(20):
            # By turns loaded anew, and only scheduled otherwise.
            file = "m.onnx" if turn // 2 % 2 else "n.onnx"
            path = write(m="", n=f'path = "{file}"\nperiod = "{turn + 1} ms"')
            assert runtime.reload(path).outcome == "applied"
            answer(runtime)
        runtime.reload(write(m="", n=""))
        assert held(runtime) == first
        # A pool with nothing in it, here that of states, takes a byte.
        assert first[0] == runtime.plan.total_bytes + 1
        assert first[1] == 1


def test_a_recording_ends_at_a_reload_and_each_part_replays(
    write: Write, save: Save, tmp_path: Path
) -> None:
    save("m")
    save("n")
    head = "[scheduler]\nrecord = true"
    with aegis_pipe.open_pipeline(write(head, m="")) as runtime:
        for _ in range(3):
            answer(runtime)
        runtime.reload(write(head, m="priority = 1"))
        for _ in range(2):
            answer(runtime)
        runtime.reload(write(head, n=""))
        answer(runtime, "n")
    recordings = runtime.report().recordings
    names = [each.path.name for each in recordings]
    assert names == ["manifest.run", "manifest.reload-1.run", "manifest.reload-2.run"]
    done = []
    for recording in recordings:
        recorded = read_run(recording.path)
        manifest = manifest_from_table(tomllib.loads(recorded.header["manifest"]), Path())
        result = replay(
            recorded, make_scheduler(manifest, recorded.header["segments"]), lambda decision: None
        )
        assert result.journal == recorded.journal == recording.journal
        done.append({each.model: each.completed for each in result.predictions})
    assert done == [{"m": 3}, {"m": 2}, {"n": 1}]


# --- pipelines ----------------------------------------------------------------------------------


def pipeline(name: str, count: int, rate: str = "400/s", more: str = "") -> str:
    return (
        f'[[pipelines]]\nname = "{name}"\n'
        f'source = {{ kind = "synthetic", like = "m", count = {count}, rate = "{rate}" }}\n'
        f'stages = [{{ name = "infer", model = "m" }}]\n'
        f'sinks = [{{ kind = "jsonl", path = "{name}.jsonl", input = ["infer.y"] }}]\n{more}'
    )


def test_a_pipeline_that_is_the_same_goes_on_where_it_was(
    write: Write, save: Save, tmp_path: Path
) -> None:
    save("m", 1.0)
    save("n", 2.0)
    same, other = pipeline("same", 120), pipeline("other", 10_000)
    with aegis_pipe.open_pipeline(write(m=same + other)) as runtime:
        runtime.start_pipelines()
        wait_until(lambda: runtime.report().pipelines[0].completed > 10)
        # The model becomes another one, one pipeline ends sooner, and one is new.
        more = same + pipeline("other", 20) + pipeline("new", 5)
        report = runtime.reload(write(m='path = "n.onnx"\n' + more))
        assert report.outcome == "applied"
        assert runtime.join(WAIT_S, threading.Event())
    reports = {each.name: each for each in runtime.report().pipelines}
    assert set(reports) == {"same", "other", "new"}
    assert {(each.failed, each.dropped, each.error) for each in reports.values()} == {(0, 0, "")}
    assert reports["same"].completed == 120
    assert reports["other"].sinks[1].startswith("jsonl: 20 lines")
    assert reports["new"].completed == 5
    for name, each in reports.items():
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        items = [json.loads(line)["item"] for line in lines]
        assert items == list(range(each.completed)), name


def test_a_refused_reload_lets_pipelines_be(write: Write, save: Save) -> None:
    save("m")
    text = pipeline("same", 40)
    with aegis_pipe.open_pipeline(write(m=text)) as runtime:
        runtime.start_pipelines()
        # What only shows when the file is opened: the loader was not asked.
        path = write(m=text + pipeline("good", 3) + pipeline("worse", 3))
        manifest = aegis_pipe.load_manifest(path)
        worse = manifest.pipelines[2]
        sink = replace(worse.sinks[0], path="m.onnx/worse.jsonl")  # type: ignore[call-arg]
        pipelines = (*manifest.pipelines[:2], replace(worse, sinks=(sink,)))
        with pytest.raises(aegis_pipe.PipelineError, match="can not be written"):
            runtime.reload(replace(manifest, pipelines=pipelines))
        assert runtime.join(WAIT_S, threading.Event())
    (report,) = runtime.report().pipelines
    assert (report.name, report.completed) == ("same", 40)


def test_a_pipeline_gone_with_a_reload_is_still_reported(write: Write, save: Save) -> None:
    save("m")
    with aegis_pipe.open_pipeline(write(m=pipeline("gone", 10_000) + pipeline("stays", 60))) as r:
        r.start_pipelines()
        wait_until(lambda: r.report().pipelines[0].completed > 3)
        r.reload(write(m=pipeline("stays", 60)))
        assert r.join(WAIT_S, threading.Event())
    stays, gone = r.report().pipelines
    assert (stays.name, stays.completed, gone.name) == ("stays", 60, "gone")
    assert gone.completed > 3
    assert not gone.error


def test_pipelines_that_end_with_another_do_so_after_a_reload(write: Write, save: Save) -> None:
    save("m")
    load = pipeline("load", 10_000).replace("count = 10000", 'until = "main"')
    with aegis_pipe.open_pipeline(write(m=pipeline("main", 60) + load)) as runtime:
        runtime.start_pipelines()
        runtime.reload(write(m=pipeline("main", 60, "300/s") + load))
        assert runtime.join(WAIT_S, threading.Event())
        runtime.reload(write(m=pipeline("main", 60, "300/s") + load.replace("400/s", "200/s")))
        # Its companion is over, so it has nothing to wait for.
        assert runtime.join(WAIT_S, threading.Event())
