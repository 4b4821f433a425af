"""The loaded library itself: what it imports, how steps run, which build is chosen."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from aegis_pipe.device.cpu.kernels import compiled_elementwise, native
from aegis_pipe.device.cpu.kernels.native import NativeBatch, NativeCall

ROOT = Path(__file__).parents[5]
LIBRARY = native.LIBRARY
pytestmark = pytest.mark.skipif(LIBRARY is None, reason=f"compiled kernels {native.STATUS}")


def _relu(x: np.ndarray, y: np.ndarray) -> NativeCall:
    arguments = compiled_elementwise._Map(x.ctypes.data, y.ctypes.data, x.size, 0, 0)
    return NativeCall(LIBRARY, "aegis_relu", arguments, (x, y))


def _negate(x: np.ndarray, y: np.ndarray) -> NativeCall:
    arguments = compiled_elementwise._Map(x.ctypes.data, y.ctypes.data, x.size, 0, 0)
    return NativeCall(LIBRARY, "aegis_negate", arguments, (x, y))


def test_status_names_the_build() -> None:
    assert f"compiled for {LIBRARY.name}" == native.STATUS
    assert LIBRARY.name in ("aarch64", f"x86_64_v{LIBRARY.isa_level}")


def test_no_build_of_the_library_knows_an_allocator() -> None:
    """Nothing is allocated at run time, because there is nothing to allocate with."""
    paths = sorted(native.FOLDER.glob("*.so"))
    assert paths
    for path in paths:
        allocators = re.findall(rb"\b(?:malloc|calloc|realloc|free|mmap)\b", path.read_bytes())
        assert not allocators, path.name


def test_arguments_of_another_size_assert() -> None:
    with pytest.raises(AssertionError, match="aegis_relu takes"):
        LIBRARY.step("aegis_relu", compiled_elementwise._PairArguments())


def test_batch_runs_in_order_like_single_calls() -> None:
    x, y, z = (
        np.linspace(-1, 1, 100, dtype=np.float32),
        np.empty(100, np.float32),
        np.empty(100, np.float32),
    )
    calls = [_negate(x, y), _relu(y, z)]
    for call in calls:
        call()
    single = z.tobytes()
    y[:], z[:] = 7, 7
    NativeBatch(LIBRARY, [calls[0], None, calls[1]])()
    assert z.tobytes() == single == np.maximum(-x, 0).tobytes()


def test_stamps_are_in_order_and_on_the_monotonic_clock() -> None:
    import time

    x, y = np.ones(10_000, np.float32), np.empty(10_000, np.float32)
    batch = NativeBatch(LIBRARY, [_relu(x, y), None, _negate(x, y)])
    stamps = np.zeros((len(batch), 2), np.int64)
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    batch.run_stamped(stamps.ctypes.data)
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    flat = stamps.reshape(-1)
    assert before <= flat[0]
    assert (np.diff(flat) >= 0).all()
    assert flat[-1] <= after
    assert (stamps[1:, 0] == stamps[:-1, 1]).all()


def test_runs_leave_no_python_objects_behind() -> None:
    x, y = np.ones(16, np.float32), np.empty(16, np.float32)
    batch = NativeBatch(LIBRARY, [_relu(x, y)] * 5)
    for _ in range(100):
        batch()
    before = sys.getallocatedblocks()
    for _ in range(100):
        batch()
    assert sys.getallocatedblocks() - before <= 1


def test_without_a_build_there_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    assert native.load() == (None, native.load()[1])
    assert native.load()[1].startswith("not built for Linux on ")
    name = "x86_64_v2.so" if LIBRARY.isa_level else "aarch64.so"
    (tmp_path / name).write_bytes(b"no library")
    library, status = native.load()
    assert library is None
    assert status.startswith("not loaded: ")
    assert status.endswith("NumPy kernels do the work")


@pytest.mark.parametrize("package", ["device/cpu", "memory", "execution"])
def test_a_library_is_reached_in_one_way(package: str) -> None:
    """Through its module: a name of one's own would stay what it was when another is loaded."""
    modules = sorted((ROOT / "aegis_pipe" / package).rglob("*.py"))
    own_names = [
        f"{module.name}:{node.lineno}"
        for module in modules
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and "LIBRARY" in {each.name for each in node.names}
    ]
    assert len(modules) > 5
    assert own_names == []
