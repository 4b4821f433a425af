"""Threads take short turns for as long as somebody asks for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from aegis_pipe.threads import TURN_S, short_turns


@pytest.fixture(autouse=True)
def as_python_has_it() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    yield
    sys.setswitchinterval(before)


def test_the_last_who_asked_for_short_turns_ends_them() -> None:
    first, second = short_turns(), short_turns()
    with first:
        assert sys.getswitchinterval() == pytest.approx(TURN_S)
        second.__enter__()
    assert sys.getswitchinterval() == pytest.approx(TURN_S)
    second.__exit__(None, None, None)
    assert sys.getswitchinterval() == pytest.approx(0.005)


@pytest.mark.parametrize("wanted_s", [TURN_S / 5, 0.001])
def test_what_the_program_asks_for_meanwhile_stays(wanted_s: float) -> None:
    with short_turns():
        sys.setswitchinterval(wanted_s)
    assert sys.getswitchinterval() == pytest.approx(wanted_s)


def test_what_was_set_before_comes_back_to_the_microsecond() -> None:
    for microseconds in (7, 41, 57, 100, 1_001):
        sys.setswitchinterval((microseconds + 0.5) / 1e6)
        before_s = sys.getswitchinterval()
        for _ in range(3):
            with short_turns():
                pass
        assert sys.getswitchinterval() == before_s


def test_shorter_turns_than_ours_are_left_alone() -> None:
    sys.setswitchinterval(TURN_S / 5)
    with short_turns():
        assert sys.getswitchinterval() == pytest.approx(TURN_S / 5)
    assert sys.getswitchinterval() == pytest.approx(TURN_S / 5)
