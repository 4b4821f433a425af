"""profile, plan, simulate, replay and why as users run them, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.system.running import ROOT, aegis, save_model, small_nodes

MANIFEST = """
manifest_version = 1
name = "small"
[scheduler]
policy = "priority"
ageing = "0 ms"
record = true
admission = "report"
[[models]]
name = "m"
path = "m.onnx"
priority = 3
deadline = "2 s"
[[pipelines]]
name = "load"
source = { kind = "synthetic", like = "m", rate = "10/s", count = 20 }
stages = [{ name = "infer", model = "m" }]
[telemetry]
log = { path = "events.jsonl" }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest with its profile, and a run of it."""
    folder = tmp_path_factory.mktemp("analysis")
    nodes, weights = small_nodes()
    save_model(folder / "m.onnx", nodes, weights)
    (folder / "small.toml").write_text(MANIFEST)
    profiled = aegis("profile", folder / "small.toml", "--samples", "300", "--pipelines", "200 ms")
    assert profiled.returncode == 0, profiled.stderr
    assert "p98.47" in profiled.stdout
    ran = aegis("up", folder / "small.toml", "--quiet")
    assert ran.returncode == 0, ran.stderr
    assert "recorded:" in ran.stdout
    return folder


def test_profiling_runs_the_pipelines_for_times_in_place(folder: Path) -> None:
    profile = json.loads((folder / "small.profile.json").read_text())
    assert profile["in_place"]
    for model, before, total_ns in profile["in_place"]:
        assert (model, before in (0, 1, 2)) == ("m", True)
        assert 0 < total_ns <= profile["models"]["m"]["total"][0]


def test_the_plan_shows_the_certificate_and_a_changed_model_voids_it(folder: Path) -> None:
    plan = json.loads(aegis("plan", folder / "small.toml", "--json").stdout)
    assert plan["admission"]["proven"]
    (row,) = plan["admission"]["requests"]
    assert (row["name"], row["verdict"]) == ("load/infer", "proven")
    assert 0 < row["slack_ns"] < 2e9
    text = (folder / "small.toml").read_text()
    changed = folder / "changed.toml"
    changed.write_text(text.replace('"report"', '"enforce"').replace("events.jsonl", "none.jsonl"))
    refused = aegis("up", changed, "--for", "1 s")
    assert refused.returncode == 1
    # As it can be copied: by a path from where the command ran.
    assert f"aegis-pipe profile {folder / 'changed.toml'}`" in refused.stderr
    stale = folder / "changed.profile.json"
    stale.write_text((folder / "small.profile.json").read_text())
    changed.write_text(changed.read_text() + "[streams]\nthreads = 2\n")
    refused = aegis("up", changed, "--for", "1 s")
    assert refused.returncode == 1
    assert "the profile is void: threads: 1, now 2" in refused.stderr


def test_enforce_refuses_what_can_not_be_kept_with_a_change_that_would_pass(folder: Path) -> None:
    tight = folder / "tight.toml"
    text = (folder / "small.toml").read_text().replace('"report"', '"enforce"')
    text = text.replace("events.jsonl", "none.jsonl")
    profile = json.loads((folder / "small.profile.json").read_text())
    # Four times as fast as it can be, however slow the machine is.
    rate = 4e9 / profile["models"]["m"]["total"][0]
    tight.write_text(
        text.replace('rate = "10/s"', f'rate = "{rate:.3f}/s"') + 'file = "refused.jsonl"\n'
    )
    (folder / "tight.profile.json").write_text((folder / "small.profile.json").read_text())
    refused = aegis("up", tight)
    assert refused.returncode == 1
    assert "the smallest change that would pass: send to `load` every" in refused.stderr
    admission, promise = admission_spans(folder / "refused.jsonl")
    assert "smallest_change" in admission
    assert (promise["task"], promise["verdict"]) == ("load/infer", "refused")
    assert promise["error"]


def test_a_trace_tells_of_the_admission(folder: Path) -> None:
    traced = folder / "traced.toml"
    text = (folder / "small.toml").read_text().replace("events.jsonl", "none.jsonl")
    traced.write_text(text + 'file = "admitted.jsonl"\n')
    (folder / "traced.profile.json").write_text((folder / "small.profile.json").read_text())
    assert aegis("up", traced, "--quiet").returncode == 0
    admission, promise = admission_spans(folder / "admitted.jsonl")
    assert admission["proven"]
    assert (promise["task"], promise["verdict"]) == ("load/infer", "proven")
    assert int(promise["bound_ns"]) + int(promise["slack_ns"]) == int(promise["deadline_ns"])
    assert 0 < int(promise["execution_ns"]) <= int(promise["bound_ns"])


def admission_spans(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a trace file's admission span says, and the one promise's below it."""
    spans = [
        span
        for line in path.read_text().splitlines()
        for service in json.loads(line)["resourceSpans"]
        for scope in service["scopeSpans"]
        for span in scope["spans"]
    ]
    (admission,) = [span for span in spans if span["name"] == "admission"]
    (promise,) = [span for span in spans if span["name"] == "admission.promise"]
    assert promise["parentSpanId"] == admission["spanId"]
    start = next(span for span in spans if span["spanId"] == admission["parentSpanId"])
    assert start["name"] == "runtime.start"
    return facts(admission), facts(promise)


def facts(span: dict[str, Any]) -> dict[str, Any]:
    """Return what a phase says about itself, and its error if it failed."""
    values = {
        pair["key"].removeprefix("aegis.phase."): next(iter(pair["value"].values()))
        for pair in span["attributes"]
    }
    return values | {"error": span["status"].get("message", "")}


def test_models_beside_each_other_are_measured_in_pairs_and_counted_in_the_proof(
    folder: Path,
) -> None:
    pair = folder / "pair.toml"
    text = (folder / "small.toml").read_text().replace("events.jsonl", "pair.jsonl")
    second = '[[models]]\nname = "other"\npath = "m.onnx"\n[[pipelines]]'
    pair.write_text(text.replace("[[pipelines]]", second) + "[streams]\ncount = 2\n")
    measured = aegis(
        "profile",
        pair,
        "--samples",
        "60",
        "--pair-samples",
        "40",
        "--pipelines",
        "200 ms",
        "--json",
    )
    assert measured.returncode == 0, measured.stderr
    profile = json.loads(measured.stdout)
    rows = {(row["model"], row["beside"]): row for row in profile["pairs"]}
    assert set(rows) == {(one, other) for one in ("m", "other") for other in ("m", "other")}
    assert all(len(row["totals_ns"]) >= 40 for row in rows.values())
    plan = aegis("plan", pair)
    assert "beside" in plan.stdout
    alone = profile["models"]["m"]["total"][0]
    longest = max(alone, *(rows["m", other]["total"][0] for other in ("m", "other")))
    requests = json.loads(aegis("plan", pair, "--json").stdout)["admission"]["requests"]
    (row,) = [row for row in requests if row["name"] == "load/infer"]
    assert row["bound"]["response_ns"] >= longest
    simulated = json.loads(aegis("simulate", pair, "--for", "10 s", "--json").stdout)
    assert [each["submitted"] for each in simulated["models"]] == [100, 0]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("concurrency = 1\n", "`concurrency` of model `m`"),
        ("[streams]\nin_flight = 2\n", "`streams.in_flight`"),
    ],
)
def test_what_the_proof_does_not_cover_has_no_certificate(
    folder: Path, key: str, name: str
) -> None:
    beyond = folder / f"beyond-{name.split()[0].strip('`')}.toml"
    text = (folder / "small.toml").read_text().replace("events.jsonl", "none.jsonl")
    at = "[telemetry]" if key.startswith("[") else "[[pipelines]]"
    beyond.write_text(text.replace(at, key + at))
    (folder / f"{beyond.stem}.profile.json").write_text((folder / "small.profile.json").read_text())
    admission = json.loads(aegis("plan", beyond, "--json").stdout)["admission"]
    assert not admission["proven"]
    assert f"{name} is not in the analysis yet" in aegis("plan", beyond).stdout


def test_simulation_is_repeatable_and_takes_settings(folder: Path) -> None:
    def simulate(*more: str) -> dict[str, object]:
        words = ("simulate", folder / "small.toml", "--for", "10 s", "--json", "--journal", *more)
        done = aegis(*words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    one = simulate("--seed", "4")
    assert one == simulate("--seed", "4")
    assert one["journal"] != simulate("--seed", "5")["journal"]
    assert one["requests"] == 100
    twice = simulate("--set", "pipelines.load.source.rate=20/s", "--set", "scheduler.policy=edf")
    assert (twice["requests"], twice["policy"]) == (200, "edf")
    wrong = aegis("simulate", folder / "small.toml", "--set", "scheduler.polic=edf")
    assert wrong.returncode == 2
    assert "did you mean `policy`" in wrong.stderr


def test_replay_gives_the_same_journal_in_every_process(folder: Path) -> None:
    journals = set()
    for seed in ("0", "1", "12345"):
        done = subprocess.run(
            [sys.executable, "-m", "aegis_pipe", "replay", folder / "small.run", "--json"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
        )
        result = json.loads(done.stdout)
        journals.add((result["journal"], result["recorded_journal"]))
    assert len(journals) == 1
    assert len(set(journals.pop())) == 1
    other = json.loads(aegis("replay", folder / "small.run", "--policy", "fifo", "--json").stdout)
    assert other["what_if"][0]["submitted"] == 20


def test_why_adds_up_to_the_whole(folder: Path) -> None:
    worst = json.loads(
        aegis("why", "--worst", "10", "--from", folder / "small.toml", "--json").stdout
    )
    assert len(worst) == 10
    for each in worst:
        assert sum(each["by_cause_ns"].values()) == each["total_ns"]
        assert each["by_cause_ns"]["execute"] > 0
    text = aegis("why", worst[0]["request"], "--from", folder / "events.jsonl")
    assert "chosen on stream-0 by `priority`" in text.stdout
    lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    third = len(lines) // 3
    for name, part in (("2", lines[:third]), ("1", lines[third : 2 * third])):
        (folder / f"parts.jsonl.{name}").write_text("".join(part))
    (folder / "parts.jsonl").write_text("".join(lines[2 * third :]))
    parted = aegis("why", "--worst", "10", "--from", folder / "parts.jsonl", "--json")
    assert json.loads(parted.stdout) == worst
    assert aegis("why", "req-999999", "--from", folder / "events.jsonl").returncode == 1
    assert aegis("why", "--from", folder / "events.jsonl").returncode == 2
