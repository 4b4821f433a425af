"""The file of a profile: what is written is read, and what nobody can have measured is refused."""

import json
import math

import pytest

from aegis_pipe.analysis.in_place import Hold
from aegis_pipe.analysis.profile import (
    Fingerprint,
    Profile,
    model_profile,
    pair_profile,
    profile_text,
    read_profile,
)
from aegis_pipe.errors import PermanentError


def measured():
    rows = [(10 + number, 20 + number) for number in range(100)]
    wakes = [5, 6, 7]
    model = model_profile("m", rows, rows, rows, wakes, (2,), (4, 6, 20), 0.99, 0.99)
    fingerprint = Fingerprint({"m": "digest"}, "cpu", {"numpy": "2"}, 2, 1, 10**6)
    holds = (Hold("m", 0, 30), Hold("m", 2, 25))
    pair = pair_profile("m", "m", rows, 0.99, 0.99)
    return Profile(fingerprint, 0.99, 0.99, {"m": model}, (pair,), {"p/source": (1, 2)}, holds)


def changed(path, value):
    values = json.loads(profile_text(measured()))
    *way, last = path
    place = values
    for key in way:
        place = place[key]
    place[last] = value
    return json.dumps(values)


def test_a_profile_is_read_as_it_was_written():
    assert read_profile(profile_text(measured()), "x") == measured()


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("models", "m", "totals_ns", 3), -5, "`models.m.totals_ns[3]`: -5 is not a whole number"),
        (("models", "m", "totals_ns", 3), 10**9, "`models.m.totals_ns[4]`: 38 is less than"),
        (("models", "m", "totals_ns"), [], "`models.m.totals_ns`: [] holds no time"),
        (("models", "m", "rested_ns", 0), math.nan, "`models.m.rested_ns[0]`: nan is not"),
        (("models", "m", "idle_ns", 0), 1.5, "`models.m.idle_ns[0]`: 1.5 is not a whole"),
        (("models", "m", "wakes_ns", 1), True, "`models.m.wakes_ns[1]`: True is not a whole"),
        (("models", "m", "kernels_ns", 2), 10**30, "`models.m.kernels_ns[2]`: 1000000"),
        (("models", "m", "boundaries", 0), 3, "`models.m.boundaries`: [3] reaches beyond the 3"),
        (("models", "m", "boundaries", 0), 0, "`models.m.boundaries[0]`: 0 does not follow"),
        (("models", "m", "boundaries", 0), -1, "`models.m.boundaries[0]`: -1 is not a whole"),
        (("models", "m", "segments", 1, 0), -1, "`models.m.segments[1][0]`: -1 is not"),
        (("models", "m", "segments"), [], "`models.m.segments`: 0 are not 2 segments"),
        (("models", "m", "total", 1), math.inf, "`models.m.total[1]`: inf is not between"),
        (("models", "m", "wake", 3), 0, "`models.m.wake[3]`: 0 is not a whole number from 1"),
        (("pairs", 0, "beside"), "z", "`pairs[0].beside`: 'z' is no model of this profile"),
        (("pairs", 0, "total_median_ns"), -1, "`pairs[0].total_median_ns`: -1 is not"),
        (("host_ns", "p/source"), [2, 1], "`host_ns.p/source[1]`: 1 is less than the one before"),
        (("in_place", 1, 2), -25, "`in_place[1][2]`: -25 is not a whole number from 0"),
        (("in_place", 1, 1), 3, "`in_place[1][1]`: 3 is none of 0, 1 and 2"),
        (("in_place", 0, 0), "z", "`in_place[0][0]`: 'z' is no model of this profile"),
        (("quantile",), 1, "`quantile`: 1 is not between 0 and 1"),
        (("confidence",), math.nan, "`confidence`: nan is not between 0 and 1"),
        (("fingerprint", "threads"), 0, "`fingerprint.threads`: 0 is not a whole number from 1"),
        (("models", "m"), 7, "not a profile that can be read: it has another form"),
        (("models", "m"), {}, "not a profile that can be read: it lacks 'kernels_ns'"),
        (("pairs",), {"a": 1}, "not a profile that can be read: it has another form"),
    ],
)
def test_what_nobody_can_have_measured_is_refused_by_its_key(path, value, words):
    with pytest.raises(PermanentError) as caught:
        read_profile(changed(path, value), "m.profile.json")
    assert words in str(caught.value)
    assert caught.value.context == "m.profile.json"
    assert "aegis-pipe profile" in caught.value.hint


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{}", "[1]", '{"format": 3}', "1e999"])
def test_what_is_no_profile_is_one_error(text):
    with pytest.raises(PermanentError, match="not a profile that can be read"):
        read_profile(text, "x")
