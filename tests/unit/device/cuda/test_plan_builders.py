"""Plans built by other processes: all that were asked for, whoever dies of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda import plan_builders
from aegis_pipe.device.cuda.cudnn_convolution import Convolution
from aegis_pipe.device.cuda.plan_builders import PlanBuilders
from tests.unit.device.cuda.building_process import ENDS, IMPOSSIBLE

PROCESSES = 2


@pytest.fixture
def builders(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlanBuilders]:
    monkeypatch.setattr(plan_builders, "WORKER", "tests.unit.device.cuda.building_process")
    monkeypatch.setattr(plan_builders.os, "cpu_count", lambda: PROCESSES)
    found = PlanBuilders(lambda: "a GPU", 90)
    yield found
    found.close()
    assert not [each for each in threading.enumerate() if each.name == "plan-builder"]


def convolution(filters: int) -> Convolution:
    ones = (1, 1)
    return Convolution(1, 8, (4, 4), filters, ones, ones, ones, (0, 0), (0, 0), "float16")


def test_plans_are_told_apart_and_processes_end(builders: PlanBuilders) -> None:
    wanted = [(convolution(filters), index) for filters in range(20, 26) for index in range(3)]
    builders.begin(wanted)
    pids = set()
    for each, index in reversed(wanted):
        plan = builders.plan(each, index)
        assert (plan is None) is (index == IMPOSSIBLE)
        if plan is not None:
            *what, pid = plan.name.split()
            assert what == ["a", "GPU", "90", str(each.filters), str(index)]
            pids.add(pid)
    assert 1 <= len(pids) <= PROCESSES
    for thread in builders._threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    builders.begin([(convolution(30), 0)])
    assert builders.plan(convolution(30), 0) is not None
    assert builders.plan(convolution(31), 0) is None


def test_a_process_that_ends_leaves_its_work_to_whoever_asks(builders: PlanBuilders) -> None:
    wanted = [(convolution(ENDS), index) for index in range(PROCESSES)] + [(convolution(20), 0)]
    builders.begin(wanted)
    assert [builders.plan(*each) for each in wanted] == [None] * len(wanted)


def test_what_can_not_be_started_builds_nothing(
    builders: PlanBuilders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_builders.sys, "executable", "/nowhere/python")
    builders.begin([(convolution(20), 0)])
    assert builders.plan(convolution(20), 0) is None


def test_what_is_forgotten_is_not_built(
    builders: PlanBuilders, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_start = threading.Event()
    start = builders._started

    def held() -> object:
        assert may_start.wait(timeout=60)
        return start()

    monkeypatch.setattr(builders, "_started", held)
    # Were they asked for, the processes would end.
    builders.begin([(convolution(ENDS), index) for index in range(5)] + [(convolution(20), 0)])
    builders.forget(convolution(ENDS))
    may_start.set()
    assert builders.plan(convolution(20), 0) is not None
    assert builders.plan(convolution(ENDS), 0) is None


def test_closing_leaves_what_is_left(builders: PlanBuilders) -> None:
    builders.begin([(convolution(filters), 0) for filters in range(20, 4000)])
    builders.close()
    assert builders.plan(convolution(20), 0) is None
