"""Which faults are found when, and that graphs are looked at once a launch."""

from __future__ import annotations

import pytest

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.faults import INDEX_OUT_OF_RANGE, FaultWord, FaultWords


class Cell:
    """A word in the host's memory that counts who looks."""

    def __init__(self) -> None:
        self.value = 0
        self.looks = 0

    def __getitem__(self, place: int) -> int:
        self.looks += 1
        return self.value

    def __setitem__(self, place: int, value: int) -> None:
        self.value = value


def _word(name: str) -> tuple[Cell, FaultWord]:
    cell = Cell()
    return cell, FaultWord(64, cell, name, "gather")  # type: ignore[arg-type]


def test_a_fault_is_found_by_the_request_that_has_passed_it() -> None:
    faults = FaultWords()
    (early, first), (late, second) = _word("early"), _word("late")
    faults.launched(0, 1, (first,), 1)
    faults.launched(0, 2, (second,), 3)
    early.value = late.value = INDEX_OUT_OF_RANGE
    error = faults.take(0, 2)
    assert error is not None
    assert "`early`" in str(error)
    assert (early.value, late.value) == (0, INDEX_OUT_OF_RANGE)
    assert faults.take(0, 2) is None
    error = faults.take(0, 3)
    assert error is not None
    assert "`late`" in str(error)


def test_a_graph_is_looked_at_once_a_launch_however_many_there_are() -> None:
    faults = FaultWords()
    cells = []
    for graph in range(100):
        cell, word = _word(f"node {graph}")
        cells.append(cell)
        faults.launched(0, graph, (word,), graph + 1)
        assert faults.take(0, graph + 1) is None
    assert [cell.looks for cell in cells] == [1] * 100
    faults.launched(0, 7, (FaultWord(64, cells[7], "node 7", "gather"),), 200)  # type: ignore[arg-type]
    cells[7].value = INDEX_OUT_OF_RANGE
    assert faults.take(0, 200) is not None


def test_whoever_names_no_position_looks_at_all_again() -> None:
    """What is enqueued behind may not be through."""
    faults = FaultWords()
    cell, word = _word("node")
    faults.launched(0, 1, (word,), 1)
    assert faults.take(0) is None
    cell.value = INDEX_OUT_OF_RANGE
    assert faults.take(0) is not None
    assert faults.take(0) is None


def test_a_graph_that_is_gone_is_not_looked_at() -> None:
    faults = FaultWords()
    cell, word = _word("node")
    faults.launched(0, 1, (word,), 1)
    faults.forget(1)
    cell.value = INDEX_OUT_OF_RANGE
    assert faults.take(0, 1) is None
    faults.forget(1)
