"""Sources are compiled once each, those that are asked for soon side by side."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings.nvrtc", reason="no CUDA bindings")
pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda import compiler, driver
from aegis_pipe.device.cuda.compiler import DiskCache, KernelCompiler
from aegis_pipe.errors import PermanentError

SOURCES = [f'extern "C" __global__ void k(int* y) {{ *y = {n}; }}' for n in range(4)]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was compiled, and by which thread; libraries are not loaded, as that needs a GPU."""
    done: list[tuple[str, str]] = []
    compile_cubin = driver.compile_cubin

    def noting(source: str, architecture: str) -> bytes:
        done.append((source, threading.current_thread().name))
        return compile_cubin(source, architecture)

    monkeypatch.setattr(driver, "compile_cubin", noting)
    monkeypatch.setattr(driver, "load_library", lambda image: len(image))
    monkeypatch.setattr(driver, "kernel_function", lambda library, entry: library)
    monkeypatch.setattr(driver, "unload_library", lambda library: None)
    return done


def test_what_was_prepared_is_not_compiled_again(
    tmp_path: Path, compiled: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler.os, "cpu_count", lambda: 4)
    # No folder can be made there: nothing is kept on disk.
    (tmp_path / "file").touch()
    kernels = KernelCompiler("sm_90", DiskCache(tmp_path / "file" / "cache"))
    kernels.function(SOURCES[0])
    kernels.prepare(SOURCES)
    functions = [kernels.function(source) for source in SOURCES]
    assert sorted(source for source, _ in compiled) == SOURCES
    assert len({thread for _, thread in compiled}) > 1
    kernels.prepare(SOURCES)
    assert len(compiled) == len(SOURCES)
    assert all(functions)
    kernels.close()


def test_preparing_does_not_wait(
    tmp_path: Path, compiled: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    may_compile = threading.Event()
    compile_cubin = driver.compile_cubin

    def held(source: str, architecture: str) -> bytes:
        assert may_compile.wait(timeout=60)
        return compile_cubin(source, architecture)

    monkeypatch.setattr(driver, "compile_cubin", held)
    kernels = KernelCompiler("sm_90", DiskCache(tmp_path))
    kernels.prepare(SOURCES)
    assert compiled == []
    may_compile.set()
    assert all(kernels.function(source) for source in SOURCES)
    kernels.close()


def test_what_nobody_asked_for_is_left_when_it_closes(
    tmp_path: Path, compiled: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler.os, "cpu_count", lambda: 1)
    is_compiling, may_go_on = threading.Event(), threading.Event()
    compile_cubin = driver.compile_cubin

    def held(source: str, architecture: str) -> bytes:
        is_compiling.set()
        assert may_go_on.wait(timeout=60)
        return compile_cubin(source, architecture)

    monkeypatch.setattr(driver, "compile_cubin", held)
    kernels = KernelCompiler("sm_90", DiskCache(tmp_path))
    kernels.prepare(SOURCES)
    assert is_compiling.wait(timeout=60)
    (thread,) = [each for each in threading.enumerate() if "kernel-compiler" in each.name]
    kernels.close()
    may_go_on.set()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert len(compiled) == 1


def test_another_start_finds_the_images(tmp_path: Path, compiled: list[tuple[str, str]]) -> None:
    for _ in range(2):
        kernels = KernelCompiler("sm_90", DiskCache(tmp_path))
        kernels.prepare(SOURCES)
        assert all(kernels.function(source) for source in SOURCES)
        kernels.close()
    assert len(compiled) == len(SOURCES)


def test_a_damaged_image_is_compiled_again(
    tmp_path: Path, compiled: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: what can not be loaded when it is new is an error."""

    def load(image: bytes) -> int:
        if not image.startswith(b"\x7fELF"):
            raise driver.DriverError("cuLibraryLoadData", 200, "INVALID_IMAGE", "").classified()
        return len(image)

    monkeypatch.setattr(driver, "load_library", load)
    KernelCompiler("sm_90", DiskCache(tmp_path)).function(SOURCES[0])
    (file,) = tmp_path.iterdir()
    image = file.read_bytes()
    for damaged in (b"", b"what a full disk left"):
        file.write_bytes(damaged)
        assert KernelCompiler("sm_90", DiskCache(tmp_path)).function(SOURCES[0])
        assert file.read_bytes() == image
    assert len(compiled) == 3
    monkeypatch.setattr(driver, "compile_cubin", lambda source, architecture: b"no image")
    with pytest.raises(PermanentError):
        KernelCompiler("sm_90", DiskCache(tmp_path)).function(SOURCES[1])


def test_a_full_disk_keeps_nothing(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    cache.write("kept", b"whole")
    # Its name is taken by a folder: what was written can not be put in its place.
    (tmp_path / "taken").mkdir()
    cache.write("taken", b"whole")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["kept", "taken"]
    assert (cache.read("kept"), cache.read("taken")) == (b"whole", None)


def test_a_source_that_does_not_compile_is_told(
    tmp_path: Path, compiled: list[tuple[str, str]]
) -> None:
    kernels = KernelCompiler("sm_90", DiskCache(tmp_path))
    kernels.prepare([*SOURCES, "not a kernel"])
    assert kernels.function(SOURCES[-1])
    with pytest.raises(AssertionError, match="does not compile"):
        kernels.function("not a kernel")
    kernels.close()
