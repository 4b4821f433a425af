"""Imports that leave out what is not needed: it takes longer than all the rest."""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


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


@contextlib.contextmanager
def left_out(name: str) -> Iterator[None]:
    """Let what this thread imports do without a package, unless that is imported already."""
    finder = _Absent(name)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def alone(name: str) -> ModuleType:
    """Import a module without running the `__init__` of the packages that it is in.

    Whoever imports those packages afterwards gets them whole. ImportError if there is no such
    module; what it imports itself is imported as ever.
    """
    if name in sys.modules:
        return sys.modules[name]
    names = name.split(".")
    standing_in: list[str] = []
    path: Sequence[str] | None = None
    try:
        for end in range(1, len(names)):
            package = ".".join(names[:end])
            if package not in sys.modules:
                spec = PathFinder.find_spec(package, path)
                if spec is None or spec.submodule_search_locations is None:
                    raise ModuleNotFoundError(f"no package named `{package}`", name=package)
                bare = ModuleType(package)
                bare.__path__ = list(spec.submodule_search_locations)
                bare.__spec__ = spec
                sys.modules[package] = bare
                standing_in.append(package)
            path = sys.modules[package].__path__
        return importlib.import_module(name)
    finally:
        for package in standing_in:
            del sys.modules[package]
