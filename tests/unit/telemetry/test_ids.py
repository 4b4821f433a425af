from __future__ import annotations

import pytest

from aegis_pipe.telemetry.ids import Identifiers, is_within_ratio, parse_traceparent, span_id_at


def test_ids_follow_from_run_kind_and_key() -> None:
    one = Identifiers(b"one")
    assert one.root("request", 1) == Identifiers(b"one").root("request", 1)
    others = [
        one.root("request", 2),
        one.root("phase", 1),
        Identifiers(b"two").root("request", 1),
    ]
    assert one.root("request", 1) not in others


def test_positions_give_distinct_ids_that_are_not_zero() -> None:
    ids = {span_id_at(1, position) for position in range(10_000)}
    assert len(ids) == 10_000
    assert span_id_at(2**64 - 0x9E3779B97F4A7C15, 1) == 1
    assert all(0 < span_id < 2**64 for span_id in ids)


def test_ratio_bounds_are_exact() -> None:
    assert is_within_ratio(2**128 - 1, 1.0)
    assert not is_within_ratio(2**64, 0.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        "00-" + "0" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "0" * 16 + "-01",
        "ff-" + "1" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "G" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 31 + "-" + "1" * 16 + "-01",
    ],
)
def test_invalid_traceparents_are_none(text: str) -> None:
    assert parse_traceparent(text) is None


def test_traceparents_of_later_versions_are_read() -> None:
    caller = parse_traceparent("01-" + "a" * 32 + "-" + "b" * 16 + "-00-more")
    assert caller is not None
    assert caller.span.span_id == 0xBBBBBBBBBBBBBBBB
    assert not caller.is_sampled
