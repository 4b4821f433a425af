"""Tasks of a start-up on several threads."""

from __future__ import annotations

import threading

import pytest

from aegis_pipe.parallel import run_all


@pytest.mark.parametrize("threads", [1, 2, 5, 100])
def test_every_task_runs_once(threads: int) -> None:
    runs = [0] * 20

    def task(number: int) -> None:
        runs[number] += 1

    run_all([lambda number=number: task(number) for number in range(20)], threads)
    assert runs == [1] * 20


def test_tasks_run_side_by_side() -> None:
    """Each waits for the other: one thread alone would never get past the first."""
    meeting = threading.Barrier(2, timeout=30)
    seen: set[int] = set()

    def task() -> None:
        meeting.wait()
        seen.add(threading.get_ident())

    run_all([task, task], threads=2)
    assert len(seen) == 2


def test_one_thread_starts_no_other() -> None:
    seen = set()
    run_all([lambda: seen.add(threading.get_ident())] * 3, threads=1)
    assert seen == {threading.get_ident()}


def test_the_first_error_by_position_is_raised_when_all_threads_are_done() -> None:
    meeting = threading.Barrier(2, timeout=30)

    def fail(message: str) -> None:
        meeting.wait()
        raise ValueError(message)

    with pytest.raises(ValueError, match="first"):
        run_all([lambda: fail("first"), lambda: fail("second")], threads=2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("start-up")]


def test_nothing_is_begun_after_an_error() -> None:
    done: list[str] = []

    def fail() -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        run_all([fail, lambda: done.append("after")], threads=1)
    assert not done


def test_no_task_is_no_work() -> None:
    run_all([], threads=4)
