"""Programs of tools/ as modules, for tests of their parts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def load_tool(name: str) -> ModuleType:
    """Return tools/NAME.py as a module."""
    if name not in sys.modules:
        specification = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
        assert specification is not None
        assert specification.loader is not None
        # Where dataclasses look for what their annotations name.
        sys.modules[name] = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(sys.modules[name])
    return sys.modules[name]
