"""cuDNN's plans of convolutions, built by other processes while this one measures.

Building may compile, for up to seconds, and cuDNN's Python package lets nothing else of its
interpreter run meanwhile. Others need no context of the GPU for it: they are told its properties,
and give plans back as bytes (`plan_builder.py`). What a process that fails leaves behind is built
here when its turn comes.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from aegis_pipe.device.cuda.cudnn_convolution import BuiltPlan, Convolution

PROCESSES_MAX = 8
WORKER = "aegis_pipe.device.cuda.plan_builder"

Wanted = tuple[Convolution, int]
"""A plan by its position in cuDNN's order."""


class PlanBuilders:
    """Processes that run while there are plans to build."""

    def __init__(self, properties: Callable[[], str], capability: int) -> None:
        """`properties` returns what cuDNN wants to know of the GPU."""
        self._properties = properties
        self._capability = capability
        self._waiting: deque[Wanted] = deque()
        self._plans: dict[Wanted, Future[BuiltPlan | None]] = {}
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._threads: list[threading.Thread] = []
        self._running = 0
        self._lock = threading.Lock()

    def begin(self, wanted: Sequence[Wanted]) -> None:
        """Have plans built, first come first served; returns at once."""
        if not wanted:
            return
        hello = pickle.dumps((self._properties(), self._capability))
        with self._lock:
            self._plans |= {each: Future() for each in wanted}
            self._waiting.extend(wanted)
            processes = min(PROCESSES_MAX, os.cpu_count() or 1, len(self._waiting))
            missing = range(self._running, processes)
            self._running = max(processes, self._running)
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for _ in missing:
            thread = threading.Thread(
                target=self._serve, args=(hello,), name="plan-builder", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def plan(self, convolution: Convolution, index: int) -> BuiltPlan | None:
        """Wait for a plan; None if it was not asked for, or nobody could build it."""
        future = self._plans.get((convolution, index))
        return None if future is None else future.result()

    def forget(self, convolution: Convolution) -> None:
        """Drop a convolution's plans, and build no more of them."""
        for each in [each for each in self._plans if each[0] == convolution]:
            self._plans.pop(each).cancel()

    def close(self) -> None:
        """End the processes, whatever they are at; idempotent."""
        with self._lock:
            self._waiting.clear()
            for process in self._processes:
                process.kill()
        for thread in self._threads:
            thread.join()
        self._plans.clear()

    def _serve(self, hello: bytes) -> None:
        """Start a process and hand it one plan after the other."""
        try:
            with self._started() as process:
                assert process.stdin is not None
                process.stdin.write(hello)
                while self._ask(process):
                    pass
        except (OSError, EOFError, pickle.UnpicklingError):
            # It ended before it answered, or could not be started.
            pass
        finally:
            with self._lock:
                self._running -= 1
                left = [] if self._running else list(self._waiting)
                if not self._running:
                    self._waiting.clear()
            for each in left:
                self._answer(self._plans.get(each), None)

    def _started(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        with self._lock:
            self._processes.add(process)
        return process

    def _ask(self, process: subprocess.Popen[bytes]) -> bool:
        """Have one plan built; return whether there was one to build."""
        assert process.stdin is not None
        assert process.stdout is not None
        with self._lock:
            if not self._waiting:
                return False
            wanted = self._waiting.popleft()
            future = self._plans.get(wanted)
        if future is None or future.cancelled():
            return True
        built: BuiltPlan | None = None
        try:
            pickle.dump(wanted, process.stdin)
            process.stdin.flush()
            built = pickle.load(process.stdout)
        finally:
            self._answer(future, built)
        return True

    @staticmethod
    def _answer(future: Future[BuiltPlan | None] | None, built: BuiltPlan | None) -> None:
        # It may have been forgotten meanwhile.
        if future is not None and future.set_running_or_notify_cancel():
            future.set_result(built)
