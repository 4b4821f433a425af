"""Stamps beside the device's own profiler: what is compared, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from aegis_pipe.cli import main
from aegis_pipe.errors import PermanentError
from aegis_pipe.stamp_validation import MEDIAN_LIMIT_NS, compare
from tests.unit.pass_driver import model_of

KERNELS = ("Conv, a", "Reshape, view", "Add, b", "Gemm, c")
# Runs by calls: the second runs nothing.
STAMPED = np.array([[5000, 0, 3000, 9000], [5200, 0, 3100, 9000], [5100, 0, 9999, 9000]])


def test_calls_of_one_kernel_are_compared_by_their_medians() -> None:
    traced = [[[4000], [1000], [3000, 3000]], [[4100], [1200], [3000, 3000]], [[9999], [1100], [3]]]
    found = compare("net", KERNELS, STAMPED, traced)
    assert found.kernels == ("Conv, a", "Add, b")
    assert found.left_out == 1
    assert found.stamped_ns == (5100, 3100)
    assert found.traced_ns == (4100, 1100)
    assert found.differences_ns.tolist() == [1000, 2000]
    assert (found.median_ns, found.worst, found.passed) == (1500, 1, True)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_median_beyond_the_limit_does_not_pass(sign: int) -> None:
    stamped = np.array([[50_000, 50_000, 50_000]])
    apart = 50_000 - sign * (MEDIAN_LIMIT_NS + 1)
    found = compare("net", ("a", "b", "c"), stamped, [[[apart], [apart], [50_000]]])
    assert not found.passed


def test_calls_that_do_not_match_are_refused() -> None:
    with pytest.raises(PermanentError, match="saw \\[2\\] calls in its runs, of 3 with stamps"):
        compare("net", KERNELS, STAMPED, [[[4000], [1000]]])
    with pytest.raises(PermanentError, match="no call of the model is a single kernel"):
        compare("net", KERNELS, STAMPED, [[[1, 2], [], [3, 4]]])


def test_kernels_are_told_apart_by_the_stamps_between() -> None:
    tracing = pytest.importorskip("aegis_pipe.device.cuda.tracing", reason="no CUDA bindings")
    record = tracing.KernelRecord
    stamps = [record(at, at + 1, tracing.STAMP) for at in (10, 20, 40, 50)]
    kernels = [record(5, 9, "k"), record(12, 18, "k"), record(31, 39, "k"), record(22, 30, "k")]
    incomplete = record(15, 0, "k")
    assert tracing.between_stamps([*stamps, *kernels, incomplete]) == [[6], [8, 8], []]
    assert tracing.between_stamps([]) == []


def test_without_the_package_the_hint_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tracing = pytest.importorskip("aegis_pipe.device.cuda.tracing", reason="no CUDA bindings")
    monkeypatch.setitem(sys.modules, "cupti", None)
    with pytest.raises(PermanentError) as caught:
        tracing.KernelTracer("cuda:0")
    assert "cuda:0" in str(caught.value)
    assert "pip install 'cupti-python>=13,<14'" in str(caught.value)


def test_the_cpu_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(model_of("(float[4] x) => (float[4] y) { y = Relu(x) }", {}), tmp_path / "net.onnx")
    path = tmp_path / "m.toml"
    path.write_text(
        'manifest_version = 1\nname = "m"\n[device]\nkind = "cpu"\n'
        '[[models]]\nname = "net"\npath = "net.onnx"\n'
    )
    assert main(["profile", str(path), "--validate-stamps"]) != 0
    said = capsys.readouterr().err
    assert "the cpu has no profiler of its own" in said
    assert 'write `kind = "cuda"`' in said
    assert not list(tmp_path.glob("*.profile.json"))
