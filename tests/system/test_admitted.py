"""A set that is admitted, run, and held against what was proven of it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.system.running import ROOT, aegis


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`manifests/admitted.toml` with time for machines that do much else, and its profile."""
    folder = tmp_path_factory.mktemp("admitted")
    text = (ROOT / "manifests" / "admitted.toml").read_text()
    text, deadlines = re.subn(r'deadline = "\d+ ms"', 'deadline = "5 s"', text)
    assert deadlines == 3
    (folder / "admitted.toml").write_text(text)
    (folder / "quickstart").mkdir()
    digits = ROOT / "manifests" / "quickstart" / "digits.onnx"
    shutil.copy(digits, folder / "quickstart" / "digits.onnx")
    words = ("--samples", "60", "--pipelines", "200 ms")
    profiled = aegis("profile", folder / "admitted.toml", *words)
    assert profiled.returncode == 0, profiled.stderr
    return folder


def test_a_run_of_an_admitted_set_is_held_against_its_proof(folder: Path) -> None:
    ran = aegis("up", folder / "admitted.toml", "--for", "3 s", "--json")
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    admission = report["admission"]
    assert (admission["mode"], admission["problem"]) == ("enforce", "")
    statistics = {model["model"]: model for model in report["statistics"]["models"]}
    assert list(statistics) == [model["model"] for model in admission["models"]]
    for model in admission["models"]:
        figures = statistics[model["model"]]
        assert model["verdict"] == "proven"
        assert model["requests"] == model["completed"] == figures["submitted"] > 0
        assert model["deadline_misses"] == 0
        assert model["overruns"] == report["overruns"][model["model"]]
        assert 0 < model["latency_p50_ns"] <= model["latency_p99_ns"] <= model["latency_max_ns"]
        assert model["latency_p99_ns"] == figures["latency_p99_ns"]
        assert 0 < model["bound_ns"] <= model["deadline_ns"] == 5_000_000_000
    plan = json.loads(aegis("plan", folder / "admitted.toml", "--json").stdout)["admission"]
    proven = {row["model"]: row["bound"]["response_ns"] for row in plan["requests"]}
    assert {model["model"]: model["bound_ns"] for model in admission["models"]} == proven


def shorter(times: Any) -> Any:
    """Return a profile of a machine that is a million times as fast."""
    match times:
        case dict():
            return {key: shorter(value) for key, value in times.items()}
        case list():
            return [shorter(value) for value in times]
        case int() if times > 1_000 and not isinstance(times, bool):
            return max(1, times // 1_000_000)
        case _:
            return times


@pytest.mark.parametrize(("mode", "status"), [("enforce", 1), ("report", 0)])
def test_a_deadline_that_was_proven_and_missed_fails_an_enforced_run(
    folder: Path, mode: str, status: int
) -> None:
    manifest = folder / f"{mode}d.toml"
    text = (folder / "admitted.toml").read_text()
    text = text.replace('deadline = "5 s"', 'deadline = "1 us"\nlate = "run"')
    manifest.write_text(text.replace('"enforce"', f'"{mode}"'))
    profile = json.loads((folder / "admitted.profile.json").read_text())
    for part in ("models", "host_ns"):
        profile[part] = shorter(profile[part])
    (folder / f"{mode}d.profile.json").write_text(json.dumps(profile))
    ran = aegis("up", manifest, "--for", "1 s", "--quiet")
    assert ran.returncode == status, ran.stderr
    assert f"promises (admission {mode}): BROKEN" in ran.stdout
    assert re.search(r"digits: (\d+) of \1 requests missed a deadline that was proven", ran.stdout)
    assert "digits: a request took" in ran.stdout
    (row,) = re.findall(r"^  digits +proven +(\d+) +(\d+) +(\d+) +(\d+)", ran.stdout, re.MULTILINE)
    requests, completed, missed, overruns = map(int, row)
    assert requests == completed == missed == overruns > 0


def test_a_run_without_a_profile_says_that_nothing_is_proven(folder: Path) -> None:
    manifest = folder / "unmeasured.toml"
    text = (folder / "admitted.toml").read_text().replace('"enforce"', '"report"')
    manifest.write_text(text)
    ran = aegis("up", manifest, "--for", "200 ms", "--quiet")
    assert ran.returncode == 0, ran.stderr
    assert "promises (admission report): nothing is proven: there is no profile" in ran.stdout
