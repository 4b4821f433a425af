"""The cyclic collector is kept away while it can find nothing, and let back afterwards."""

from __future__ import annotations

import gc

import pytest

from aegis_pipe.execution.collector import collector_paused, heap_frozen


def test_the_collector_rests_and_is_left_as_it_was_found() -> None:
    """A program that had switched it off does not find it on."""
    assert gc.isenabled()
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_what_lives_is_passed_over_until_the_last_holder_ends() -> None:
    """Two runtimes in one process may end in any order."""
    first, second = heap_frozen(), heap_frozen()
    first.__enter__()
    passed_over = gc.get_freeze_count()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_freeze_count() >= passed_over > 10_000
    second.__exit__(None, None, None)
    assert gc.get_freeze_count() == 0


def test_an_error_thaws_the_heap() -> None:
    """A runtime that failed does not keep its objects for ever."""
    with pytest.raises(ValueError, match="late"), heap_frozen():
        raise ValueError("late")
    assert gc.get_freeze_count() == 0
