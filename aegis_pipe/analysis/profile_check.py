"""Whether the numbers of a profile's file can be measured ones: files are edited, too.

What is proven rests on them, and one that is negative, or no number at all, proves anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aegis_pipe.analysis.in_place import IDLE, RESTED, UPON

MAX_NS: Final = 2**63 - 1
_DISTRIBUTIONS: Final = ("totals_ns", "rested_ns", "idle_ns", "wakes_ns")
_RARE: Final = ("rested_ns", "idle_ns")
"""Of few samples, none may be of this kind."""


def check_profile(values: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the first key whose value can not have been measured.

    `values` is the file as JSON has it; a KeyError or a TypeError says that it is of another form.
    """
    for key in ("quantile", "confidence"):
        _check(0 < values[key] < 1, key, values[key], "is not between 0 and 1")
    for name in ("stream_count", "threads", "max_block_ns"):
        _check_whole(f"fingerprint.{name}", values["fingerprint"][name], lowest=1)
    for name, model in values["models"].items():
        _check_model(f"models.{name}", model)
    for index, pair in enumerate(values["pairs"]):
        key = f"pairs[{index}]"
        for end in ("model", "beside"):
            is_known = pair[end] in values["models"]
            _check(is_known, f"{key}.{end}", pair[end], "is no model of this profile")
        _check_bounds(f"{key}.segments", pair["segments"])
        _check_bound(f"{key}.total", pair["total"])
        _check_whole(f"{key}.total_median_ns", pair["total_median_ns"])
        _check_distribution(f"{key}.totals_ns", pair["totals_ns"])
        _check_count(
            f"{key}.segments", pair["segments"], values["models"][pair["model"]]["segments"]
        )
    for name, times_ns in values["host_ns"].items():
        _check_distribution(f"host_ns.{name}", times_ns)
    for index, (model, before, total_ns) in enumerate(values["in_place"]):
        key = f"in_place[{index}]"
        _check(model in values["models"], f"{key}[0]", model, "is no model of this profile")
        _check(before in (UPON, RESTED, IDLE), f"{key}[1]", before, "is none of 0, 1 and 2")
        _check_whole(f"{key}[2]", total_ns)


def _check_model(key: str, model: Mapping[str, Any]) -> None:
    for name in ("kernels_ns", "segment_medians_ns"):
        for index, time_ns in enumerate(model[name]):
            _check_whole(f"{key}.{name}[{index}]", time_ns)
    boundaries = [0, *model["boundaries"]]
    for index, (one, following) in enumerate(itertools.pairwise(boundaries)):
        _check_whole(f"{key}.boundaries[{index}]", following)
        what = "does not follow the one before it"
        _check(one < following, f"{key}.boundaries[{index}]", following, what)
    # Where no kernel was timed, there are none.
    count = len(model["kernels_ns"])
    is_within = not count or boundaries[-1] < count
    _check(is_within, f"{key}.boundaries", boundaries[1:], f"reaches beyond the {count} kernels")
    _check_bounds(f"{key}.segments", model["segments"])
    for name in ("segments", "segment_medians_ns"):
        _check_count(f"{key}.{name}", model[name], boundaries)
    for name in ("total", "wake"):
        _check_bound(f"{key}.{name}", model[name])
    for name in _DISTRIBUTIONS:
        _check_distribution(f"{key}.{name}", model[name], may_be_empty=name in _RARE)


def _check_bounds(key: str, rows: Sequence[Sequence[Any]]) -> None:
    for index, row in enumerate(rows):
        _check_bound(f"{key}[{index}]", row)


def _check_bound(key: str, row: Sequence[Any]) -> None:
    bound_ns, quantile, confidence, samples = row
    _check_whole(f"{key}[0]", bound_ns)
    for index, share in ((1, quantile), (2, confidence)):
        _check(0 <= share <= 1, f"{key}[{index}]", share, "is not between 0 and 1")
    _check_whole(f"{key}[3]", samples, lowest=1)


def _check_distribution(key: str, times_ns: Sequence[Any], may_be_empty: bool = False) -> None:
    _check(may_be_empty or len(times_ns) > 0, key, times_ns, "holds no time")
    for index, time_ns in enumerate(times_ns):
        _check_whole(f"{key}[{index}]", time_ns)
        is_ordered = not index or times_ns[index - 1] <= time_ns
        _check(is_ordered, f"{key}[{index}]", time_ns, "is less than the one before it")


def _check_whole(key: str, value: object, lowest: int = 0) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= MAX_NS
    _check(is_whole, key, value, f"is not a whole number from {lowest} to 2**63 - 1")


def _check_count(key: str, found: Sequence[Any], expected: Sequence[Any]) -> None:
    _check(len(found) == len(expected), key, len(found), f"are not {len(expected)} segments")


def _check(holds: bool, key: str, value: object, problem: str) -> None:
    if not holds:
        text = repr(value)
        raise ValueError(f"`{key}`: {text if len(text) <= 40 else text[:37] + '...'} {problem}")
