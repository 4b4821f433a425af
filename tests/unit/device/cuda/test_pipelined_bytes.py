"""Products of bytes whose tiles are loaded ahead: the CPU's bits in every tiling, on the host."""

from __future__ import annotations

import ctypes
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aegis_pipe.clock import SystemClock

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.kernels import byte_products, pipelined_bytes, tensor_tilings
from aegis_pipe.device.cuda.kernels.byte_products import product_of
from aegis_pipe.device.cuda.kernels.pipelined_bytes_source import shared_bytes, source_of
from aegis_pipe.device.cuda.kernels.registry import Machine
from aegis_pipe.execution.standalone import StandaloneGraph
from aegis_pipe.kernel import KernelRequest
from tests.unit.device.cuda import byte_models, host_clusters, host_device
from tests.unit.device.cuda.test_quantised_models import load, on_both

needs_compiler = pytest.mark.skipif(host_device.COMPILER is None, reason="no g++")
MULTIPROCESSORS = 132
THREADS_MAX = 1024
"""Of a cluster that the host runs."""


def asked(name: str) -> KernelRequest:
    graph = load(byte_models.CASES[name]()[0])
    with host_device.HostContext(SystemClock()) as context:
        stream = context.create_stream(0)
        with StandaloneGraph(graph, context, stream, SystemClock()) as standalone:
            steps = [s for s in standalone.compiled.steps if "pipelined_bytes" in s.choice.kernel]
        stream.close()
    (step,) = steps
    return step.request


@needs_compiler
@pytest.mark.parametrize("name", byte_models.CASES)
def test_every_tiling(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model, x = byte_models.CASES[name]()
    p = product_of(asked(name))
    assert p is not None
    graph = load(model)
    monkeypatch.setattr(host_device, "HostBinding", host_clusters.ClusterBinding)
    tried = 0
    for tiling in byte_models.tilings(p.steps):
        if tiling.threads * tiling.splits > THREADS_MAX:
            continue
        monkeypatch.setattr(pipelined_bytes, "_tiling", lambda *_, chosen=tiling: chosen)
        (_,) = [each for each in on_both(graph, {"x": x}) if "pipelined_bytes" in each]
        tried += 1
    assert tried >= len(tensor_tilings.WARPS)


@needs_compiler
def test_scales_that_are_not_known_are_divided_by(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = byte_models.CASES["residual"]()
    monkeypatch.setattr(byte_products, "_are_moderate", lambda *_: False)
    assert not any("quotient" in text for text in ending_of_residual())
    on_both(load(model), {"x": x})


def ending_of_residual() -> tuple[str, str]:
    request = asked("residual")
    p = product_of(request)
    assert p is not None
    ending, _ = byte_products.ending_of(request, p)
    return ending.statement, ending.functions


_DIVISIONS = r"""
#include <math.h>
#define __device__
#define __forceinline__ static inline
FUNCTIONS
extern "C" long different(const float* steps, long count, const float* shares, long many) {
  long found = 0;
  for (long i = 0; i < count; ++i) {
    const float inverse = 1 / steps[i];
    for (long k = 0; k < many; ++k)
      // About halves: there a rounding chooses between two levels.
      for (int away = -2; away <= 2; ++away) {
        float x = shares[k] * steps[i];
        for (int n = 0; n < abs(away); ++n) x = nextafterf(x, away < 0 ? -INFINITY : INFINITY);
        found += quotient(x, steps[i], inverse) != x / steps[i]; } }
  return found; }
"""


@needs_compiler
def test_a_quotient_by_products_is_a_division(tmp_path: Path) -> None:
    source, library = tmp_path / "quotient.cpp", tmp_path / "quotient.so"
    source.write_text(_DIVISIONS.replace("FUNCTIONS", byte_products._QUOTIENT))
    assert host_device.COMPILER is not None
    command = [host_device.COMPILER, "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-include"]
    subprocess.run([*command, "stdlib.h", str(source), "-o", str(library)], check=True)
    rng = np.random.default_rng(1)
    # All bits set, or nearly: there an inverse is farthest from what it stands for.
    full = np.arange(1, 65).astype(np.float32) * np.float32(2**-24)
    steps = np.concatenate([rng.uniform(1e-4, 1, 1000), 1 - full, 1 + full]).astype(np.float32)
    halves = np.arange(-300, 300) + 0.5
    shares = np.concatenate([halves, rng.uniform(-600, 600, 200)]).astype(np.float32)
    different = ctypes.CDLL(str(library)).different
    assert (
        different(
            *(steps.ctypes, ctypes.c_long(len(steps)), shares.ctypes, ctypes.c_long(len(shares)))
        )
        == 0
    )


@needs_compiler
@pytest.mark.parametrize("name", byte_models.CASES)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_sources_compile(name: str, architecture: str) -> None:
    request = asked(name)
    p = product_of(request)
    assert p is not None
    machine = Machine(None, None, "none", int(architecture[3:]), MULTIPROCESSORS, tuner=object())
    given = pipelined_bytes._operands(request, p)
    found = pipelined_bytes._tilings(p, machine)
    assert 0 < len(found) <= tensor_tilings.TRIED_MAX
    assert architecture != "sm_80" or {tiling.splits for tiling in found} == {1}
    for tiling in found:
        assert driver.compile_cubin(source_of(p, tiling, given), architecture)


@needs_compiler
def test_the_depth_of_few_tiles_is_split() -> None:
    request = asked("integers")
    p = product_of(request)
    assert p is not None
    machine = Machine(None, None, "none", 90, MULTIPROCESSORS, tuner=object())
    assert pipelined_bytes._tilings(p, machine)[0].splits > 1
    small = Machine(None, None, "none", 90, MULTIPROCESSORS, 16 << 10, tuner=object())
    for tiling in pipelined_bytes._tilings(p, small):
        assert shared_bytes(p, tiling) <= 16 << 10


def test_grids_are_what_a_gpu_can_have() -> None:
    machine = Machine(None, None, "none", 90, MULTIPROCESSORS, tuner=object())
    images = byte_products.ByteProduct(64, (224, 224), 64, 64, (224, 224))
    found = pipelined_bytes._tilings(images, machine)
    assert found
    assert all(tiling.grid(images)[2] <= 65_535 for tiling in found)
    # More than 128 rows for each of the most blocks: another kernel has them.
    assert pipelined_bytes._tilings(replace(images, batch=256), machine) == []


@needs_compiler
def test_weights_lie_by_filter_behind_their_sums() -> None:
    request = asked("window")
    p = product_of(request)
    assert p is not None
    packed = pipelined_bytes._packed(request, p)
    weights = np.asarray(request.constants[3])
    found = packed.pack(weights)
    assert found.nbytes == packed.size_bytes
    sums, taps = found[: 4 * 68].view(np.int32), found[4 * 68 :].view(np.int8)
    np.testing.assert_array_equal(sums, weights.sum(axis=(1, 2, 3), dtype=np.int32))
    np.testing.assert_array_equal(taps.reshape(68, 3, 3, 16), weights.transpose(0, 2, 3, 1))
