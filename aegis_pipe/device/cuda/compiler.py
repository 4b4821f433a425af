"""CUDA C++ to loaded kernels, each source once, and once per machine: images are kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from aegis_pipe.device.cuda import driver
from aegis_pipe.errors import PermanentError

ENTRY = "k"
"""The name of the kernel in a source, unless it says another."""


def cache_folder() -> Path:
    """Return where compiled kernels and measured choices are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "aegis-pipe" / "cuda"


class DiskCache:
    """Bytes by key, written whole or not at all; a folder that can not be written keeps nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, key: str) -> bytes | None:
        """Return what was kept, if anything."""
        try:
            return (self._folder / key).read_bytes()
        except OSError:
            return None

    def write(self, key: str, content: bytes) -> None:
        """Keep bytes under a key."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            file, name = tempfile.mkstemp(dir=self._folder)
            try:
                with os.fdopen(file, "wb") as target:
                    target.write(content)
                os.replace(name, self._folder / key)
            except OSError:
                os.unlink(name)


def _key(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


class KernelCompiler:
    """Compiles and loads sources; every image is unloaded at `close`."""

    def __init__(self, architecture: str, cache: DiskCache) -> None:
        self._architecture = architecture
        self._cache = cache
        self._images: dict[str, Future[bytes]] = {}
        """What is being compiled, or was and is not asked for yet."""
        self._functions: dict[str, int] = {}
        self._libraries: list[int] = []

    def function(self, source: str, shared_bytes: int = 0, entry: str = ENTRY) -> int:
        """Return the loaded kernel of a source, where it is called `entry`."""
        key = _key(source)
        if key not in self._functions:
            prepared = self._images.pop(key, None)
            image = self._image(source, key) if prepared is None else prepared.result()
            try:
                library = driver.load_library(image)
            except PermanentError:
                # What was kept on disk may be damaged: what is compiled now is not.
                library = driver.load_library(self._compiled(source, key))
            self._libraries.append(library)
            self._functions[key] = driver.kernel_function(library, entry)
            if shared_bytes:
                # What a kernel itself declares counts, too, towards the 48 KiB that need no asking.
                driver.allow_shared_memory(self._functions[key], shared_bytes)
        return self._functions[key]

    def prepare(self, sources: Sequence[str]) -> None:
        """Begin to compile sources that will be asked for, side by side on the machine's cores.

        Whoever asks for one of them waits for it, and is told what is wrong with it. The threads
        end with the last source.
        """
        missing = {_key(source): source for source in sources}
        for key in missing.keys() & (self._functions.keys() | self._images.keys()):
            del missing[key]
        if not missing:
            return
        threads = min(len(missing), os.cpu_count() or 1)
        with_threads = ThreadPoolExecutor(threads, thread_name_prefix="kernel-compiler")
        for key, source in missing.items():
            self._images[key] = with_threads.submit(self._image, source, key)
        with_threads.shutdown(wait=False)

    def close(self) -> None:
        """Unload everything; idempotent."""
        for image in self._images.values():
            image.cancel()
        self._images.clear()
        self._functions.clear()
        while self._libraries:
            driver.unload_library(self._libraries.pop())

    def _image(self, source: str, key: str) -> bytes:
        image = self._cache.read(self._name(key))
        return self._compiled(source, key) if image is None else image

    def _compiled(self, source: str, key: str) -> bytes:
        image = driver.compile_cubin(source, self._architecture)
        self._cache.write(self._name(key), image)
        return image

    def _name(self, key: str) -> str:
        return f"{key}.{self._architecture}.{driver.compiler_version()}.cubin"
