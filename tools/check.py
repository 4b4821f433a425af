#!/usr/bin/env python3
"""Run every check of the project in a virtual environment of its own.

Needs nothing but Python >= 3.11 and pip. The environment is made once in `.venv-check` and made
anew when `pyproject.toml` changes. `python3 tools/check.py --help` lists the checks.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv-check"
PYTHON = ENVIRONMENT / "bin" / "python"

CHECKS: dict[str, list[str]] = {
    "format": ["-m", "ruff", "format", "--check", "."],
    "lint": ["-m", "ruff", "check", "."],
    "types": ["-m", "mypy"],
    "imports": ["-c", "from importlinter.cli import lint_imports_command as c; c()"],
    "reference": ["tools/generate_manifest_reference.py", "--check"],
    "conformance": ["tools/generate_conformance.py", "--check"],
    "kernels": ["tools/hatch_build.py"],
    "tests": ["-m", "pytest", "-q", "-n", "2"],
}


def main() -> int:
    """Run the checks named on the command line, or all; return the worst exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(CHECKS)}")
    chosen = parser.parse_args().checks or list(CHECKS)
    unknown = [name for name in chosen if name not in CHECKS]
    if unknown:
        parser.error(f"no check is called {unknown[0]!r}; there are {', '.join(CHECKS)}")
    make_environment()
    failed = [name for name in chosen if not passes(name)]
    print(f"failed: {', '.join(failed)}" if failed else f"all passed: {', '.join(chosen)}")
    return 1 if failed else 0


def passes(name: str) -> bool:
    """Run one check, its output going straight to the terminal."""
    print(f"== {name}", flush=True)
    return subprocess.run([PYTHON, *CHECKS[name]], cwd=ROOT, check=False).returncode == 0


def make_environment() -> None:
    """Install the project in editable form with its `dev` extra, unless that is done already."""
    if sys.version_info < (3, 11):  # noqa: UP036 - an older Python has to get the message
        sys.exit(f"AegisPipe needs Python 3.11 or newer; this is {sys.version.split()[0]}")
    stamp = ENVIRONMENT / "pyproject.sha256"
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    print(f"== making {ENVIRONMENT.name}", flush=True)
    if ENVIRONMENT.exists():
        shutil.rmtree(ENVIRONMENT)
    venv.create(ENVIRONMENT, with_pip=True)
    install = [PYTHON, "-m", "pip", "install", "--quiet", "--editable", ".[dev]"]
    subprocess.run(install, cwd=ROOT, check=True)
    stamp.write_text(digest)


if __name__ == "__main__":
    sys.exit(main())
