"""What would be taken along is left out: for who imports, and no longer."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis_pipe.device.cuda.lean_import import import_alone, left_out

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


OUTER = "outer_of_a_test"
LEAF = f"{OUTER}.inner.leaf"


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Make two packages, one in the other, whose `__init__`s need all that is in them.

    The names of those that ran are given.
    """
    names: list[str] = []
    monkeypatch.setattr(sys, "ran_of_a_test", names, raising=False)
    says = "import sys\nsys.ran_of_a_test.append(__name__)\n"
    files = {
        "__init__": f"{says}from {OUTER} import inner, other\nwhole = True\n",
        "other": says,
        "inner/__init__": f"{says}from {OUTER}.inner import leaf, second\nwhole = True\n",
        "inner/second": says,
        # Both ways in which extensions of one package import one another.
        "inner/leaf": (
            f"{says}import {OUTER}.inner.parts.one\nfrom .parts.two import TWO\n"
            f"import {OUTER} as package\n"
        ),
        "inner/parts/__init__": "",
        "inner/parts/one": says,
        "inner/parts/two": "TWO = 2\n",
    }
    for name, text in files.items():
        path = tmp_path / OUTER / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    yield names
    for name in _of_the_package():
        del sys.modules[name]


def _of_the_package() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == OUTER]


def test_only_the_module_and_what_it_needs_run(ran: list[str]) -> None:
    leaf = import_alone(LEAF)
    assert leaf.TWO == 2
    assert leaf.__name__ == LEAF
    assert ran == [LEAF, f"{OUTER}.inner.parts.one"]


def test_the_package_can_be_imported_afterwards(ran: list[str]) -> None:
    import_alone(LEAF)
    assert not _of_the_package()
    ran.clear()
    package = importlib.import_module(OUTER)
    assert package.whole
    assert package.inner.whole
    assert package.inner.leaf.TWO == 2
    assert package.inner.parts.one
    assert package.__spec__.submodule_search_locations == list(package.__path__)
    inner = [f"{OUTER}.inner{name}" for name in ("", ".leaf", ".parts.one", ".second")]
    assert sorted(ran) == [OUTER, *inner, f"{OUTER}.other"]


def test_who_kept_a_bare_package_has_the_whole_one(ran: list[str]) -> None:
    leaf = import_alone(LEAF)
    assert leaf.package.inner.whole
    assert leaf.package.__path__ == sys.modules[OUTER].__path__
    with pytest.raises(AttributeError, match="missing"):
        _ = leaf.package.missing


def test_a_package_that_another_finder_has_is_imported_ordinarily(
    ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = (tmp_path / OUTER).rename(tmp_path / "elsewhere")

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, fullname: str, path: object, target: object = None) -> object:
            if fullname != OUTER:
                return None
            return importlib.util.spec_from_file_location(fullname, folder / "__init__.py")

    with monkeypatch.context() as patch:
        patch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
        assert import_alone(LEAF) is sys.modules[OUTER].inner.leaf
    assert sys.modules[OUTER].whole
    assert ran.count(OUTER) == ran.count(LEAF) == 1


def test_of_a_package_that_is_there_the_module_is_taken(ran: list[str]) -> None:
    package = importlib.import_module(OUTER)
    before = {name: sys.modules[name] for name in _of_the_package()}
    ran.clear()
    assert import_alone(LEAF) is package.inner.leaf
    assert {name: sys.modules[name] for name in _of_the_package()} == before
    assert not ran


def test_without_the_package_the_error_is_the_ordinary_one() -> None:
    with pytest.raises(ModuleNotFoundError, match=f"^No module named '{OUTER}'$"):
        import_alone(LEAF)


def test_a_damaged_module_gives_its_own_error(ran: list[str], tmp_path: Path) -> None:
    (tmp_path / OUTER / "inner" / "leaf.py").write_text("raise ValueError('damaged')\n")
    with pytest.raises(ValueError, match="damaged"):
        import_alone(LEAF)
    assert ran == [OUTER, f"{OUTER}.inner"], "no ordinary import"
    assert not _of_the_package()


def test_a_module_that_needs_its_package_is_imported_ordinarily(
    ran: list[str], tmp_path: Path
) -> None:
    (tmp_path / OUTER / "inner" / "leaf.py").write_text(f"from {OUTER}.inner import missing\n")
    (tmp_path / OUTER / "inner" / "__init__.py").write_text("missing = 1\n")
    assert import_alone(LEAF).missing == 1
    assert sys.modules[OUTER].whole


@pytest.mark.parametrize(
    "statement",
    [
        f"import {OUTER} as it",
        f"from {OUTER} import inner as it",
        f"import {OUTER}.inner as it",
        f"import {OUTER}.inner.second; it = {OUTER}.inner",
    ],
)
def test_other_threads_wait_and_get_all_of_the_package(
    ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    begun, goes_on = threading.Event(), threading.Event()
    monkeypatch.setattr(sys, "events_of_a_test", (begun, goes_on), raising=False)
    with (tmp_path / OUTER / "inner" / "parts" / "two.py").open("a") as file:
        file.write("import sys\nbegun, goes_on = sys.events_of_a_test\n")
        file.write("begun.set()\nassert goes_on.wait(60)\n")
    found: dict[str, Any] = {}
    alone = threading.Thread(target=lambda: found.update(leaf=import_alone(LEAF)))
    other = threading.Thread(target=lambda: exec(statement, found))
    alone.start()
    assert begun.wait(60)
    assert sys.meta_path[0].find_spec(OUTER, None) is None, "bare ones are for one thread"
    other.start()
    other.join(0.1)
    assert other.is_alive()
    assert ran == [LEAF, f"{OUTER}.inner.parts.one"]
    goes_on.set()
    alone.join()
    other.join()
    assert found["it"].whole
    assert found["leaf"].TWO == 2
    assert sys.modules[OUTER].inner.whole
    assert ran.count(OUTER) == 1


def test_cublaslts_binding_comes_alone_and_its_package_whole_afterwards() -> None:
    if importlib.util.find_spec("nvmath") is None:
        pytest.skip("nvmath-python is not installed")
    program = """
import sys
from aegis_pipe.device.cuda.cublaslt import load_library

def there():
    return [name for name in sys.modules if name.partition(".")[0] == "nvmath"]

library = load_library()
assert not there(), there()
assert library.Epilogue["RELU_BIAS"] == 6
assert library.matmul_heuristic_result_dtype.itemsize
assert issubclass(library.cuBLASLtError, Exception)
assert load_library() is library

def outcome():
    try:
        return library.get_version()
    except Exception as error:  # without a driver
        return type(error)

before = outcome()
assert not there(), there()
import nvmath.bindings
assert nvmath.fft and nvmath.linalg and nvmath.bindings.cublas
assert nvmath.bindings.cublasLt is library
assert load_library() is library
assert outcome() is before or outcome() == before
# What the binding imports itself is imported by name.
import nvmath.bindings.cycublasLt, nvmath.bindings._internal.cublasLt
assert nvmath.bindings.cycublasLt and nvmath.bindings._internal.cublasLt
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
