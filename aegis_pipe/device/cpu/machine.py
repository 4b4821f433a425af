"""Facts about the machine, and the number of threads its BLAS uses.

Everything here is read from Linux's files; where one is missing, less is known and nothing fails.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import threadpoolctl

from aegis_pipe.device.cpu.kernels import native
from aegis_pipe.parallel import cores


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine as its kernel describes it; the folders can be replaced in tests."""

    proc: Path = Path("/proc")
    cgroups: Path = Path("/sys/fs/cgroup")

    @property
    def processor(self) -> str:
        """What the maker calls the processor; the architecture if it does not say."""
        names = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", _text(self.proc / "cpuinfo"), re.M)
        return names[1].strip() if names else platform.machine()

    @property
    def core_count(self) -> int:
        """Logical cores this process may use."""
        return cores()

    @property
    def memory_bytes(self) -> int:
        """Memory this process can ever have."""
        return min([self._physical_bytes("MemTotal"), *(limit for limit, _ in self._limits())])

    @property
    def available_bytes(self) -> int:
        """Memory this process can have now without swapping."""
        free = [limit - used for limit, used in self._limits()]
        return max(0, min([self._physical_bytes("MemAvailable"), *free]))

    def _physical_bytes(self, key: str) -> int:
        line = re.search(rf"^{key}:\s*(\d+) kB$", _text(self.proc / "meminfo"), re.M)
        if line:
            return int(line[1]) * 1024
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def _limits(self) -> Iterator[tuple[int, int]]:
        """Yield (limit, used) in bytes for this process's control groups (version 2)."""
        own = re.search(r"^0::/(.*)$", _text(self.proc / "self" / "cgroup"), re.M)
        folder = self.cgroups / own[1] if own else self.cgroups
        for group in (folder, *folder.parents):
            limit = _text(group / "memory.max").strip()
            if limit.isdigit():
                # Cached file pages count as used but are given up on demand.
                cached = re.search(r"^inactive_file (\d+)$", _text(group / "memory.stat"), re.M)
                used = int(_text(group / "memory.current").strip() or 0)
                yield int(limit), used - (int(cached[1]) if cached else 0)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


class BlasThreads:
    """Limits the BLAS libraries of this process to a number of threads until closed.

    The limit is the process's, because BLAS libraries have no other; of contexts that overlap,
    the last one opened decides. Environment variables would have no effect here: NumPy's library
    reads them when it is loaded.
    """

    def __init__(self, threads: int) -> None:
        controller = threadpoolctl.ThreadpoolController().select(user_api="blas")
        self._limit = controller.limit(limits=threads)
        self.libraries = tuple(
            (library["internal_api"], _summary(library)) for library in controller.info()
        )
        """(name, version and build) of each library, with the number of threads now in force."""

    def close(self) -> None:
        """Restore the numbers from before."""
        self._limit.restore_original_limits()


def _summary(library: dict[str, object]) -> str:
    known = (str(library[key]) for key in ("version", "architecture") if library.get(key))
    return ", ".join((*known, f"threads={library['num_threads']}"))


def library_versions(blas: BlasThreads) -> tuple[tuple[str, str], ...]:
    """Return the libraries that decide speed and bits, with their versions."""
    return (("kernels", native.STATUS), ("numpy", np.__version__), *blas.libraries)
