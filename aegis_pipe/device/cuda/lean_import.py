"""Imports that leave out what is taken along, needlessly, by what is needed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import itertools
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


@contextlib.contextmanager
def left_out(name: str) -> Iterator[None]:
    """Let what this thread imports do without a package, unless that is imported already."""
    with _asked_first(_Absent(name)):
        yield


def import_alone(name: str) -> ModuleType:
    """Import a module of a package without running the `__init__` of the packages that it is in.

    It is imported ordinarily if its package is imported already or the short way fails, so that
    errors are the ordinary ones.

    Nothing of the package stays in `sys.modules`, so that all of it can be imported afterwards.
    The module is loaded a second time then: right for Cython's extensions, which give the same
    object again and do not run twice. What such a one has imported of its package itself is then
    there for those who import it by name.

    The import system's locks of the packages are held meanwhile, so that other threads that import
    them wait. Those that waited for a bare package get the attributes of the real one from it; one
    that waited on the way to a module of it may run that module's code twice.
    """
    names = list(itertools.accumulate(name.split("."), "{}.{}".format))
    importer = _Alone(names)
    # Whatever goes wrong, the ordinary import does it or says what it is.
    with _asked_first(importer), contextlib.suppress(Exception):
        importlib.import_module(names[0])
    if importer.module is not None:
        return importer.module
    # As `from package import module` does: its locks first, which another thread may wait for.
    importlib.import_module(names[-2])
    return importlib.import_module(name)


@contextlib.contextmanager
def _asked_first(finder: importlib.abc.MetaPathFinder) -> Iterator[None]:
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Absent(importlib.abc.MetaPathFinder):
    """Finds that a package is not there, for one thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread = threading.get_ident()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raise ModuleNotFoundError for the package; leave all others to the next finder."""
        if fullname == self._name and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"`{fullname}` is left out", name=fullname)
        return None


class _Alone(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads each package around a module as a bare one, in which the next is imported.

    Each then fails to load: so the import system forgets it before it gives its lock back.
    """

    module: ModuleType | None = None
    """The innermost, once it is there."""

    def __init__(self, names: Sequence[str]) -> None:
        self._package = names[0]
        # Before that is locked: meanwhile another thread could lock what is in it, and deadlock.
        self._found = PathFinder.find_spec(names[0])
        self._inner = dict(itertools.pairwise(names))
        self._locations: dict[str, list[str]] = {}
        self._thread = threading.get_ident()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a package on the path, if this thread asks and the one around it is a bare one."""
        if fullname not in self._inner or threading.get_ident() != self._thread:
            return None
        outer = fullname.rpartition(".")[0]
        if outer and outer not in self._locations:
            return None
        found = PathFinder.find_spec(fullname, path) if outer else self._found
        if found is None or found.submodule_search_locations is None:
            return None
        self._locations[fullname] = list(found.submodule_search_locations)
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Make the bare package."""
        return _BarePackage(spec.name, self._locations[spec.name])

    def exec_module(self, module: ModuleType) -> None:
        """Import what it is there for, forget the whole package, and raise ImportError."""
        assert isinstance(module, _BarePackage)
        inner = self._inner[module.__name__]
        try:
            imported = importlib.import_module(inner)
            if inner not in self._inner:
                self.module = imported
        finally:
            # All while all locks are held, and packages before what is in them: no other thread may
            # find a bare one around what it has to import anew.
            for name in list(sys.modules):
                if name.partition(".")[0] == self._package:
                    del sys.modules[name]
            module.vanishes()
        raise ImportError(f"`{module.__name__}` was there for `{inner}` only")


class _BarePackage(ModuleType):
    """A package without what its `__init__` makes, for the thread that imports a module of it.

    Whoever else has got hold of it is given the package itself, once that can be imported.
    """

    def __init__(self, name: str, locations: list[str]) -> None:
        super().__init__(name)
        self._locations = locations
        self._thread: int | None = threading.get_ident()

    def vanishes(self) -> None:
        """From now on be the package itself to this thread, too."""
        self._thread = None

    def __getattr__(self, name: str) -> object:
        # Not an attribute, because others must wait before they import from there.
        if self._thread != threading.get_ident():
            return getattr(importlib.import_module(self.__name__), name)
        if name == "__path__":
            return self._locations
        raise AttributeError(f"`{self.__name__}` is bare and has no `{name}`", name=name, obj=self)
