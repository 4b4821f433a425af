"""A package that another would take along is left out: for who imports it, and no longer."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegis_pipe.device.cuda.lean_import import left_out

HEAVY, LEAN, USING = "heavy_of_a_test", "lean_of_a_test", "using_of_a_test"


@pytest.fixture(autouse=True)
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One that takes another along if it is there, as cuDNN's does with torch."""
    (tmp_path / f"{HEAVY}.py").write_text("")
    (tmp_path / f"{LEAN}.py").write_text("")
    (tmp_path / f"{USING}.py").write_text(
        f"import {LEAN}\ntry:\n    import {HEAVY}\nexcept ImportError:\n    {HEAVY} = None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.meta_path)
    yield
    assert sys.meta_path == before
    for name in (HEAVY, LEAN, USING):
        sys.modules.pop(name, None)


def test_it_is_left_out_and_can_be_imported_afterwards() -> None:
    with left_out(HEAVY):
        using = importlib.import_module(USING)
    assert getattr(using, HEAVY) is None
    assert HEAVY not in sys.modules
    assert LEAN in sys.modules
    assert importlib.import_module(HEAVY)


def test_what_is_there_already_is_used() -> None:
    heavy = importlib.import_module(HEAVY)
    with left_out(HEAVY):
        using = importlib.import_module(USING)
    assert getattr(using, HEAVY) is heavy


def test_other_threads_import_it() -> None:
    found: list[object] = []
    with left_out(HEAVY):
        thread = threading.Thread(target=lambda: found.append(importlib.import_module(HEAVY)))
        thread.start()
        thread.join()
    assert found


def test_a_failure_leaves_nothing_behind() -> None:
    with pytest.raises(ModuleNotFoundError, match="left out"), left_out(HEAVY):
        importlib.import_module(HEAVY)
    assert importlib.import_module(HEAVY)
