"""A package that another would take along is left out: for who imports it, and no longer."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegis_pipe.device.cuda.lean_import import alone, left_out

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


@pytest.fixture
def nested(tmp_path: Path) -> Iterator[str]:
    """A module in two packages, the outer of which imports another, as that of cuBLASLt."""
    inner = tmp_path / "outer_of_a_test" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_text(f"import {HEAVY}\nis_whole = True\n")
    (inner / "__init__.py").write_text("from outer_of_a_test.inner import module\n")
    (inner / "helper.py").write_text("value = 3\n")
    (inner / "module.py").write_text("from outer_of_a_test.inner.helper import value\n")
    yield "outer_of_a_test.inner.module"
    for name in [each for each in sys.modules if each.startswith("outer_of_a_test")]:
        del sys.modules[name]


def test_a_module_is_imported_without_its_packages(nested: str) -> None:
    module = alone(nested)
    assert module.value == 3
    assert HEAVY not in sys.modules
    assert "outer_of_a_test" not in sys.modules
    assert alone(nested) is module
    whole = importlib.import_module("outer_of_a_test")
    assert whole.is_whole
    assert importlib.import_module("outer_of_a_test.inner").module is module


def test_of_packages_that_are_there_already_the_module_is_taken(nested: str) -> None:
    whole = importlib.import_module("outer_of_a_test")
    module = alone(nested)
    assert sys.modules["outer_of_a_test"] is whole
    assert module.value == 3


@pytest.mark.parametrize("name", ["no_such_of_a_test.module", "outer_of_a_test.inner.no_such"])
def test_a_module_that_is_not_there(nested: str, name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        alone(name)
    assert "outer_of_a_test" not in sys.modules
