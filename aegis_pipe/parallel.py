"""Work of a start-up on several threads: for what mostly runs outside of the interpreter."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence


def cores() -> int:
    """Return how many logical cores this process may use."""
    return len(os.sched_getaffinity(0))


def run_all(tasks: Sequence[Callable[[], object]], threads: int) -> None:
    """Run independent tasks, on this thread and up to `threads - 1` others; return when all did.

    Each takes the next one that nobody has taken. Raises what the first task that failed raised,
    by position; tasks that nobody had taken by then are left.
    """
    numbers = itertools.count()
    errors: dict[int, BaseException] = {}

    def work() -> None:
        while not errors and (number := next(numbers)) < len(tasks):
            try:
                tasks[number]()
            except BaseException as error:
                errors[number] = error

    helpers = [
        threading.Thread(target=work, name=f"start-up.{index}", daemon=True)
        for index in range(1, min(threads, len(tasks)))
    ]
    for helper in helpers:
        helper.start()
    work()
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[min(errors)]
