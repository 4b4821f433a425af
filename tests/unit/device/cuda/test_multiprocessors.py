"""How a GPU's multiprocessors are handed out in parts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda import driver


def _part(count: int) -> SimpleNamespace:
    return SimpleNamespace(sm=SimpleNamespace(smCount=count))


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Have a GPU of 132 multiprocessors; return what each green context is made of."""
    made: list[list[int]] = []

    def checked(function, *arguments):
        if function.__name__ == "cuDevSmResourceSplitByCount":
            count, _, _, size = arguments
            return [_part(size)] * count, count, _part(132 - count * size)
        if function.__name__ == "cuDevResourceGenerateDesc":
            made.append([each.sm.smCount for each in arguments[0]])
        return _part(132) if function.__name__ == "cuDeviceGetDevResource" else 1

    monkeypatch.setattr(driver, "checked", checked)
    return made


def test_the_rest_goes_with_a_group_and_never_alone(parts: list[list[int]]) -> None:
    """A cluster of eight blocks fits a group, and need not fit what is left of a split."""
    whole = driver.Multiprocessors(0)
    assert whole.left == 132
    whole.partition(120)
    assert whole.left == 12
    whole.partition(12)
    assert parts == [[8] * 15, [8, 4]]
    assert whole.left == 0

    whole = driver.Multiprocessors(0)
    whole.partition(128)
    assert whole.left == 0
