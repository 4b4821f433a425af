"""How soon a thread runs that has something to do.

The system gives cores away, and wakes late; the interpreter lets one thread at a time run Python.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from aegis_pipe.errors import PermanentError

TURN_S: Final = 50e-6
"""For how long a thread keeps the interpreter while others wait for it; Python's own is 5 ms."""

_PR_SET_TIMERSLACK: Final = 29
_lock = threading.Lock()
_holders = 0
_before_s = _set_s = 0.0


def wake_promptly() -> None:
    """Have this thread's waits end within a microsecond of their instant.

    Linux lets them end up to 50 us late (the thread's timer slack, prctl(2)); elsewhere nothing is
    done.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1_000), 0, 0, 0)


@contextmanager
def real_time_threads(priority: int | None) -> Iterator[None]:
    """Have the threads that the body starts go before every ordinary one of the system.

    They inherit Linux's SCHED_FIFO (sched(7)) from the calling thread, which has it for as long.
    None changes nothing. Raises PermanentError where the system has no such thing, or forbids it.
    """
    if priority is None:
        yield
        return
    context = f"real_time = {priority}"
    if sys.platform != "linux":
        raise PermanentError(
            f"threads can not be scheduled in real time on {sys.platform}",
            context=context,
            hint="leave `streams.real_time` out",
        )
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError as error:
        raise PermanentError(
            f"the system does not let this process schedule in real time ({error.strerror})",
            context=context,
            hint="run it as root, with CAP_SYS_NICE, or with an `rtprio` limit as high "
            "(`ulimit -r`, systemd's `LimitRTPRIO`, docker's `--ulimit rtprio`), or leave "
            "`streams.real_time` out",
        ) from error
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


@contextmanager
def short_turns() -> Iterator[None]:
    """Have every thread of this process hand the interpreter over after `TURN_S`, if one waits.

    A request needs it several times over, on several threads, each time until a thread that
    computes in Python has had its turn. Several may hold at once; with the last one ends what was
    asked for, unless somebody has asked for something else since. Who asked for less keeps it.
    """
    global _holders, _before_s, _set_s
    with _lock:
        _holders += 1
        if _holders == 1:
            _before_s = sys.getswitchinterval()
            _have_turns_of(min(TURN_S, _before_s))
            _set_s = sys.getswitchinterval()
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if _holders == 0 and sys.getswitchinterval() == _set_s:
                _have_turns_of(_before_s)


def _have_turns_of(seconds: float) -> None:
    # The interpreter counts whole microseconds and drops the rest, of what it gave out itself, too.
    sys.setswitchinterval(seconds + 0.5e-6)
