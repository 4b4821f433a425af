"""Kernels that keep their sums in registers do keep them there, in every shape of block."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc", reason="no CUDA bindings")
pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.kernels import (
    pipelined_bytes,
    pipelined_bytes_source,
    planar_convolutions,
    tensor_attention,
    tensor_attention_source,
    tensor_tilings,
)
from aegis_pipe.device.cuda.kernels.attention import attention_of
from aegis_pipe.device.cuda.kernels.byte_products import product_of
from aegis_pipe.device.cuda.kernels.tensor_convolution_source import source_of
from aegis_pipe.device.cuda.kernels.tensor_tilings import Tiling
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec
from tests.unit.device.cuda import host_device, quantised_models, test_planar_convolutions
from tests.unit.device.cuda.assembler import spilled_bytes
from tests.unit.device.cuda.byte_models import integers
from tests.unit.device.cuda.test_kernel_sources import sources_of
from tests.unit.device.cuda.test_pipelined_bytes import asked
from tests.unit.device.cuda.test_quantised_models import load, request_of
from tests.unit.device.cuda.test_tensor_convolutions import DEEP, MULTIPROCESSORS, WIDE

_FEW_BYTES = 32
"""Some of what is needed only behind a loop may wait in memory meanwhile."""


def _attention(length: int, size: int, *, mask: bool) -> KernelRequest:
    half = np.dtype(np.float16)
    view = (1, 2, length, size, 0, size, 6 * size)
    attributes = {
        **{f"{name}_view": (*view, 2 * size * place) for place, name in enumerate("qkv")},
        "y_view": (1, 2, length, size, 0, size, 2 * size, 0),
        "scale": 0.125,
    }
    operands = [TensorSpec(half, (length, 6 * size))] * 3
    operands += [TensorSpec(half, (1, 1, 1, length))] * mask
    result = TensorSpec(half, (length, 2 * size))
    return KernelRequest(tensor_attention.STRIDED, "node", attributes, tuple(operands), (result,))


def _attentions() -> Iterator[tuple[str, str]]:
    """Scores are in registers, of all keys but in long sequences."""
    for (length, size), mask in itertools.product(
        ((40, 64), (197, 64), (1000, 64), (197, 128)), (False, True)
    ):
        request = _attention(length, size, mask=mask)
        attention = attention_of(request)
        assert attention is not None
        blocks = tensor_attention._blocks(attention)
        half = np.dtype(np.float16)
        sources = [tensor_attention_source.source_of(attention, half, each) for each in blocks]
        assert sources_of(request) == sources[:1]
        for block, source in zip(blocks, sources, strict=True):
            yield f"attention of {length} x {size}, mask {mask}, {block}", source


def _convolutions() -> Iterator[tuple[str, str]]:
    asked = replace(WIDE, activation="(a < 0 ? 0 : a)")
    every = {Tiling(*tile, 1) for tile in tensor_tilings.WARPS}
    for convolution, tilings in (
        (DEEP, every),
        (DEEP, tensor_tilings.tilings(DEEP, MULTIPROCESSORS)),
        (asked, tensor_tilings.tilings(asked, MULTIPROCESSORS)),
    ):
        for tiling in sorted(tilings, key=str):
            if tiling.shared_bytes(convolution) <= tensor_tilings.SHARED_BYTES_MAX:
                yield f"{convolution}, {tiling}", source_of(convolution, tiling)


def _planes() -> Iterator[tuple[str, str]]:
    stem = ((1, 3, 224, 224), (7, 7), (2, 2), (3, 3, 3, 3))
    request = test_planar_convolutions.request(*stem, filters=64)
    planar = planar_convolutions._planar_of(request)
    yield "ResNet's first convolution", planar_convolutions._source(request, planar)


def _bytes() -> Iterator[tuple[str, str]]:
    if host_device.COMPILER is None:
        pytest.skip("no g++")
    x, w = integers(np.uint8, 1, 3, 8, 8), integers(np.int8, 8, 3, 3, 3)
    scale, zero = np.array(0.02, np.float32), np.array(120, np.uint8)
    operands = [scale, zero, w, scale, np.array(0, np.int8), scale, zero]
    model = quantised_models.layer("QLinearConv", x, operands, (np.uint8, (1, 8, 6, 6)))
    for source in sources_of(request_of(load(model), "com.microsoft.QLinearConv")):
        assert "mma.sync" in source
        yield "a convolution of bytes", source


def _pipelined_bytes() -> Iterator[tuple[str, str]]:
    if host_device.COMPILER is None:
        pytest.skip("no g++")
    for name in ("window", "residual", "integers"):
        request = asked(name)
        p = product_of(request)
        assert p is not None
        given = pipelined_bytes._operands(request, p)
        # Blocks of clusters have less to write.
        for tiling in (Tiling(*tile, 1) for tile in tensor_tilings.WARPS):
            yield f"{name}, {tiling}", pipelined_bytes_source.source_of(p, tiling, given)


@pytest.mark.parametrize(
    ("sources", "architectures"),
    [
        (_attentions, ("sm_80", "sm_90", "sm_100")),
        (_convolutions, ("sm_90", "sm_100")),
        (_planes, ("sm_80", "sm_90")),
        (_bytes, ("sm_80", "sm_90")),
        (_pipelined_bytes, ("sm_80", "sm_90")),
    ],
)
def test_registers_are_enough(sources, architectures: tuple[str, ...]) -> None:
    jobs = [(name, source, each) for name, source in sources() for each in architectures]
    # The compiler lets go of Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        spilled = list(pool.map(lambda job: spilled_bytes(job[1], job[2]), jobs))
    found = {(name, each): count for (name, _, each), count in zip(jobs, spilled, strict=True)}
    assert {job: count for job, count in found.items() if count > _FEW_BYTES} == {}


def test_a_kernel_with_too_few_registers_is_seen() -> None:
    convolution = WIDE
    tiling = tensor_tilings.tilings(convolution, MULTIPROCESSORS)[0]
    source = source_of(convolution, tiling)
    bounds = f"__launch_bounds__({tiling.threads})"
    assert bounds in source
    crowded = source.replace(bounds, f"__launch_bounds__({tiling.threads}, {2048 // 128})")
    assert spilled_bytes(crowded, "sm_90") > _FEW_BYTES
