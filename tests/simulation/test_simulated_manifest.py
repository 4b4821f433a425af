"""Whole manifests on virtual time: their own arrivals, other ones, and times from in place."""

from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import pytest

from aegis_pipe.analysis.in_place import ENOUGH, RESTED, UPON, Hold
from aegis_pipe.analysis.profile import Fingerprint, Profile, model_profile
from aegis_pipe.manifest.conversion import manifest_from_table
from aegis_pipe.pipeline_builder import arrivals_of
from aegis_pipe.simulator import simulate, simulate_again, simulate_each, with_settings

MS = 1_000_000
SECOND = 1_000 * MS


def manifest(seed):
    source = {
        "kind": "synthetic", "like": "m", "rate": "50/s", "arrivals": "poisson", "seed": seed,
    }  # fmt: skip
    pipeline = {"name": "load", "source": source, "stages": [{"name": "infer", "model": "m"}]}
    table = {
        "manifest_version": 1,
        "name": "small",
        "models": [{"name": "m", "path": "m.onnx"}],
        "pipelines": [pipeline],
    }
    return manifest_from_table(table, Path(), "small")


@pytest.fixture
def profile():
    rows = [(total_ns,) for total_ns in range(MS, 2 * MS, 1_000)]
    model = model_profile("m", rows, rows, rows, [1], (), (5,), 0.99, 0.99)
    return Profile(Fingerprint({}, "cpu", {}, 1, 1, MS), 0.99, 0.99, {"m": model})


def test_a_run_is_simulated_again_with_the_arrivals_that_it_had(profile):
    manifests = [manifest(seed) for seed in (4, 5)]
    arrived = sum(
        sum(1 for _ in takewhile(lambda at_ns: at_ns <= SECOND - 5 * MS, arrivals_of(pipeline)))
        for each in manifests
        for pipeline in each.pipelines
    )
    tallies = [simulate_again(manifests, profile, SECOND, seed) for seed in (1, 2)]
    (one,), (other,) = [tally.predictions() for tally in tallies]
    assert arrived <= one.submitted == other.submitted <= arrived + 3
    assert one.p99_ns != other.p99_ns
    (again,) = simulate_again(manifests, profile, SECOND, 1).predictions()
    assert again == one


def test_what_was_measured_in_place_is_what_is_predicted_from(profile):
    in_place = tuple(
        Hold("m", before, 3 * MS + number) for number in range(ENOUGH) for before in (UPON, RESTED)
    )
    (alone,) = simulate(manifest(1), profile, 10 * SECOND, 1).predictions
    (there,) = simulate(
        manifest(1), replace(profile, in_place=in_place), 10 * SECOND, 1
    ).predictions
    few = replace(profile, in_place=in_place[: ENOUGH - 1])
    assert alone.p50_ns < 2 * MS
    assert there.p50_ns >= 3 * MS
    assert simulate(manifest(1), few, 10 * SECOND, 1).predictions == (alone,)


def test_variants_side_by_side_are_simulated_as_each_alone(profile):
    variants = [manifest(1), with_settings(manifest(1), ["streams.count=2"])]
    together = simulate_each(variants, profile, SECOND, 1, journal=True)
    assert together == [simulate(each, profile, SECOND, 1, journal=True) for each in variants]
    assert together[0].journal != together[1].journal
