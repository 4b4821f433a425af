"""What a manifest is taken to promise, and what its profile is worth."""

from dataclasses import replace
from pathlib import Path

import pytest

from aegis_pipe.analysis.execution_times import MeasuredTimes, ModelTimes
from aegis_pipe.analysis.in_place import IDLE_NS, REST_NS, Hold
from aegis_pipe.analysis.profile import Fingerprint, Profile, model_profile
from aegis_pipe.analysis_builder import Admission, _beyond_analysis, needed_ns_of
from aegis_pipe.manifest.conversion import manifest_from_table
from aegis_pipe.scheduling import ExecutionRequest

TABLE = {
    "manifest_version": 1,
    "name": "small",
    "models": [{"name": "m", "path": "m.onnx", "deadline": "20 ms"}],
}


def manifest(**keys):
    table = {**TABLE, "models": [{**TABLE["models"][0], **keys}]}
    return manifest_from_table(table, Path(), "small")


def profile(totals_ns):
    fingerprint = Fingerprint({}, "cpu", {}, 1, 1, 1_000_000)
    rows = [(each,) for each in totals_ns]
    measured = model_profile("m", rows, rows, rows, [1], (), (5,), 0.99, 0.99)
    return Profile(fingerprint, 0.99, 0.99, {"m": measured})


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"batching": {"window": "1 ms", "max_batch": 4}}, "`batching` of model `m`"),
        ({"late": "degrade", "degrade_to": "n"}, "`degrade_to` of model `m`"),
        ({"concurrency": 1}, "`concurrency` of model `m`"),
        ({}, ""),
    ],
)
def test_nothing_is_certified_that_the_analysis_does_not_cover(keys, name):
    assert _beyond_analysis(manifest(**keys)) == name


def test_early_refusals_go_by_the_shortest_time_and_batches_by_the_longest():
    batching = manifest(batching={"window": "1 ms", "max_batch": 4})
    assert needed_ns_of(batching, profile([700, 500, 900])) == {"m": 500, "m@2": 1800, "m@4": 3600}


def test_early_refusals_know_what_was_quicker_in_place():
    quicker = replace(profile([700, 500]), in_place=(Hold("m", 0, 450), Hold("m", 0, 800)))
    assert needed_ns_of(manifest(), quicker) == {"m": 450}


def test_a_void_profile_is_not_used():
    measured = profile([500])
    assert Admission(None, measured).valid_profile is measured
    assert Admission(None, measured, "void", is_void=True).valid_profile is None


def test_another_version_voids_a_profile():
    was = Fingerprint({}, "cpu", {}, 1, 1, 1, "1.0")
    assert was.differences(replace(was, version="1.1")) == ("version: 1.0, now 1.1",)


def test_a_request_upon_another_takes_other_times_than_one_after_a_rest():
    times = MeasuredTimes({"m": ModelTimes((4, 6), (100,), (300,), (500,))}, seed=1)

    def lasts(number, at_ns):
        request = ExecutionRequest(number, "m", at_ns, 2, stream=0, launched_ns=at_ns)
        first_ns = times(request, 0, ())
        request.launched_ns += first_ns
        return first_ns, times(request, 1, ())

    assert lasts(1, IDLE_NS) == (200, 300)
    assert lasts(2, IDLE_NS + 500) == (40, 60)
    assert lasts(3, IDLE_NS + REST_NS + 599) == (40, 60)
    assert lasts(4, IDLE_NS + 3 * REST_NS) == (120, 180)


def test_a_request_upon_another_models_takes_the_time_of_one_after_a_rest():
    times = MeasuredTimes({m: ModelTimes((10,), (100,), (300,)) for m in "ab"}, seed=1)
    ends_ns = 10 * REST_NS
    lasted = []
    for number, model in enumerate("aabbab"):
        request = ExecutionRequest(number, model, ends_ns, 1, stream=0, launched_ns=ends_ns)
        lasted.append(times(request, 0, ()))
        ends_ns += lasted[-1]
    assert lasted == [300, 100, 300, 100, 300, 300]
