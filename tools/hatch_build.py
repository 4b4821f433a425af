"""Build hook: compiles the CPU kernels with the compiler that the `ziglang` wheel brings along.

Runs whenever pip builds a wheel or makes an editable install; no compiler is needed on the machine.
Where the kernels can not be built the install goes on without them, and the NumPy kernels do the
same work. `python tools/hatch_build.py` builds them in place.
"""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "aegis_pipe" / "device" / "cpu" / "kernels"
SOURCES = KERNELS / "c"
LIBRARIES = KERNELS / "lib"

GLIBC = "2.17"
"""Oldest C library the kernels run with: manylinux2014."""

TARGETS = {
    "x86_64": {f"x86_64_v{level}": f"x86_64_v{level}" for level in (2, 3, 4)},
    "aarch64": {"aarch64": "generic"},
}
"""By machine: library name and processor it is compiled for."""

FLAGS = (
    *("-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror"),
    # Bits may not depend on where the compiler sees fit to fuse; the sources say where.
    "-ffp-contract=off",
    "-fno-math-errno",
    # 512-bit vectors stay whole; the compiler would halve them for some processors.
    "-mprefer-vector-width=512",
    *("-fvisibility=hidden", "-fPIC", "-shared", "-s", "-g0"),
)


class KernelBuildHook(BuildHookInterface):
    """Puts the libraries into the wheel and names its platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; without a compiler the wheel stays pure Python."""
        problem = build()
        if problem:
            self.app.display_warning(f"CPU kernels are not compiled: {problem}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform_tag()}"
        build_data["artifacts"].append("aegis_pipe/device/cpu/kernels/lib/*.so")


def build() -> str:
    """Compile every library of this machine; return why that is impossible, or nothing."""
    targets = TARGETS.get(platform.machine())
    if platform.system() != "Linux" or targets is None:
        return f"there are none for {platform.system()} on {platform.machine()}"
    if importlib.util.find_spec("ziglang") is None:
        return "the package `ziglang` is not installed"
    LIBRARIES.mkdir(exist_ok=True)
    paths = {LIBRARIES / f"{name}.so": processor for name, processor in targets.items()}
    old = {path: processor for path, processor in paths.items() if not _is_newer(path)}
    # One compiler for each library, side by side.
    compilers = [
        subprocess.Popen(compile_command(path, platform.machine(), processor))
        for path, processor in old.items()
    ]
    if any(status != 0 for status in [compiler.wait() for compiler in compilers]):
        raise SystemExit("the CPU kernels do not compile; the compiler's messages are above")
    return ""


def compile_command(target: Path, machine: str, processor: str) -> list[str]:
    """Return the command that compiles all sources into one shared library."""
    return [
        *(sys.executable, "-m", "ziglang", "cc"),
        *FLAGS,
        *("-target", f"{machine}-linux-gnu.{GLIBC}", f"-mcpu={processor}"),
        *("-o", str(target), *map(str, sorted(SOURCES.glob("*.c")))),
    ]


def _is_newer(target: Path) -> bool:
    """Return whether the library is younger than its sources and this recipe."""
    made_from = [*SOURCES.iterdir(), Path(__file__)]
    return target.exists() and target.stat().st_mtime_ns >= max(
        source.stat().st_mtime_ns for source in made_from
    )


def _platform_tag() -> str:
    return f"manylinux_{GLIBC.replace('.', '_')}_{platform.machine()}"


if __name__ == "__main__":
    sys.exit(build() or None)
