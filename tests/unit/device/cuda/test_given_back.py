"""Device memory is given back when what it was reserved for fails."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda import driver, region, tuning
from aegis_pipe.device.cuda.compiler import DiskCache
from aegis_pipe.errors import PermanentError


class Memory:
    """Hands out addresses, up to a number of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.held: set[int] = set()
        self._most = most
        monkeypatch.setattr(driver, "allocate", self.allocate)
        monkeypatch.setattr(driver, "free", self.held.remove)

    def allocate(self, size_bytes: int) -> int:
        if len(self.held) == self._most:
            raise PermanentError("no memory is left", context="cuda", hint="make room")
        self.held.add(256 * (1 + len(self.held)))
        return max(self.held)


def test_of_a_measurement_that_finds_no_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory = Memory(monkeypatch, 2)
    monkeypatch.setattr(driver, "create_stream", lambda priority: 1)
    monkeypatch.setattr(driver, "create_event", lambda: 1)
    monkeypatch.setattr(driver, "synchronise_stream", lambda stream: None)
    monkeypatch.setattr(driver, "copy_to_device", lambda *_: None)
    tuner = tuning.Tuner(DiskCache(tmp_path), "some GPU", 1 << 20, lambda graph: None)
    with pytest.raises(PermanentError, match="no memory is left"):
        tuner.fastest([lambda stream, addresses: None], [64, 64, 64], result=2)
    assert not memory.held


def test_of_a_region_that_can_not_be_zeroed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermanentError("the fill failed", context="cuda", hint="none")

    memory = Memory(monkeypatch, 1)
    monkeypatch.setattr(region, "run", fail)
    with pytest.raises(PermanentError, match="the fill failed"):
        region.CudaRegion.reserve(64, 0)
    assert not memory.held
