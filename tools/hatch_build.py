"""Build hook: compiles CPU kernels and the loops of loader, planner and exporter with `ziglang`.

Runs whenever pip builds a wheel or makes an editable install; no other compiler is needed.
Where they can not be built the install goes on without them, and NumPy and Python do the same
work. `python tools/hatch_build.py` builds them in place.
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
KERNELS = "aegis_pipe/device/cpu/kernels"
LOADER = "aegis_pipe/execution/native"
SEARCH = "aegis_pipe/memory/native"
EXPORTER = "aegis_pipe/telemetry/native"
ALL_FOLDERS = (KERNELS, LOADER, SEARCH, EXPORTER)

GLIBC = "2.17"
"""Oldest C library they run with: manylinux2014."""

TARGETS = {
    "x86_64": {
        **{f"{KERNELS}/lib/x86_64_v{level}.so": f"x86_64_v{level}" for level in (2, 3, 4)},
        **{f"{folder}/lib/x86_64.so": "x86_64_v2" for folder in (LOADER, SEARCH, EXPORTER)},
    },
    "aarch64": {f"{folder}/lib/aarch64.so": "generic" for folder in ALL_FOLDERS},
}
"""By machine: each library, compiled from `../c`, and the processor it is compiled for."""

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
            self.app.display_warning(
                f"CPU kernels, loader, planner and exporter are not compiled: {problem}"
            )
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform_tag()}"
        build_data["artifacts"] += [f"{folder}/lib/*.so" for folder in ALL_FOLDERS]


def build() -> str:
    """Compile every library of this machine; return why that is impossible, or nothing."""
    targets = TARGETS.get(platform.machine())
    if platform.system() != "Linux" or targets is None:
        return f"there are none for {platform.system()} on {platform.machine()}"
    if importlib.util.find_spec("ziglang") is None:
        return "the package `ziglang` is not installed"
    paths = {ROOT / path: processor for path, processor in targets.items()}
    old = {path: processor for path, processor in paths.items() if not _is_newer(path)}
    for path in old:
        path.parent.mkdir(exist_ok=True)
    # One compiler for each library, side by side.
    compilers = [
        subprocess.Popen(compile_command(path, platform.machine(), processor, _sources_of(path)))
        for path, processor in old.items()
    ]
    if any(status != 0 for status in [compiler.wait() for compiler in compilers]):
        raise SystemExit("the C sources do not compile; the compiler's messages are above")
    return ""


def _sources_of(library: Path) -> Path:
    return library.parent.parent / "c"


def compile_command(
    target: Path, machine: str, processor: str, sources: Path = ROOT / KERNELS / "c"
) -> list[str]:
    """Return the command that compiles all of a folder's sources into one shared library."""
    return [
        *(sys.executable, "-m", "ziglang", "cc"),
        *FLAGS,
        *("-target", f"{machine}-linux-gnu.{GLIBC}", f"-mcpu={processor}"),
        *("-o", str(target), *map(str, sorted(sources.glob("*.c")))),
    ]


def _is_newer(target: Path) -> bool:
    """Return whether the library is younger than its sources and this recipe."""
    made_from = [*_sources_of(target).iterdir(), Path(__file__)]
    return target.exists() and target.stat().st_mtime_ns >= max(
        source.stat().st_mtime_ns for source in made_from
    )


def _platform_tag() -> str:
    return f"manylinux_{GLIBC.replace('.', '_')}_{platform.machine()}"


if __name__ == "__main__":
    sys.exit(build() or None)
