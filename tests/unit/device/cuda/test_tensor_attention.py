"""Attention on tensor cores, every shape of block on the host, beside the formula in doubles."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.kernel import Attribute, KernelRequest
from aegis_pipe.tensor import TensorSpec

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.kernels import tensor_attention, tensor_attention_source
from aegis_pipe.device.cuda.kernels.attention import Attention, Heads
from aegis_pipe.device.cuda.kernels.tensor_attention_source import Block
from tests.unit.device.cuda import host_device

pytestmark = pytest.mark.skipif(host_device.COMPILER is None, reason="no g++")
HALF, BRAIN = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
TOLERANCE = {HALF: 4e-3, BRAIN: 3e-2}
HEADS = 2


def run(
    packed: np.ndarray, size: int, scale: float, mask: np.ndarray | None, shape: tuple[int, int]
) -> np.ndarray:
    """Attend within [batch, length, 3 heads size]: queries, keys, values of each row."""
    batch, length, width = packed.shape
    view = (batch, HEADS, length, size, length * width, size, width)
    attributes: dict[str, Attribute] = {
        **{f"{name}_view": (*view, HEADS * size * at) for at, name in enumerate("qkv")},
        "y_view": (*view[:4], length * HEADS * size, size, HEADS * size, 0),
        "scale": scale,
    }
    given = [packed, packed, packed, *([] if mask is None else [mask])]
    result = np.empty((batch, length, HEADS * size), packed.dtype)
    request = KernelRequest(
        tensor_attention.STRIDED,
        "node",
        attributes,
        tuple(TensorSpec(each.dtype, each.shape) for each in given),
        (TensorSpec(result.dtype, result.shape),),
    )
    with host_device.HostContext(SystemClock()) as context:
        choice = context.select(request)
        assert choice.kernel == "attention.tensor"
        regions = [context.allocate(each.nbytes) for each in (*given, result)]
        for region, array in zip(regions, given, strict=False):
            context.write(region, array)
        graph = context.record([context.bind(request, choice, regions[:-1], regions[-1:], None)])
        stream = context.create_stream(0)
        graph.launch(stream)
        stream.synchronise()
        context.read(regions[-1], result)
        for owner in (graph, stream, *regions):
            owner.close()
    return result


def expected(packed: np.ndarray, size: int, scale: float, mask: np.ndarray | None) -> np.ndarray:
    batch, length, _ = packed.shape
    split = packed.astype(np.float64).reshape(batch, length, 3, HEADS, size)
    q, k, v = split.transpose(2, 0, 3, 1, 4)
    scores = q @ k.swapaxes(-1, -2) * scale
    if mask is not None:
        scores = scores + mask.astype(np.float64)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    found = scores / scores.sum(-1, keepdims=True) @ v
    return np.asarray(found.swapaxes(1, 2).reshape(batch, length, HEADS * size))


def check(size: int, length: int, dtype: np.dtype, masked: bool, shape: tuple[int, int]) -> None:
    random = np.random.default_rng(length)
    packed = random.standard_normal((2, length, 3 * HEADS * size)).astype(dtype)
    mask = None
    if masked:
        hidden = np.where(random.random((2, 1, 1, length)) < 0.4, -1e4, 0)
        hidden[..., 0] = 0
        mask = hidden.astype(dtype)
    scale = size**-0.5
    found = run(packed, size, scale, mask, shape).astype(np.float64)
    wanted = expected(packed, size, scale, mask)
    assert np.abs(found - wanted).max() < TOLERANCE[dtype]


@pytest.mark.parametrize("shape", tensor_attention._SHAPES)
def test_every_shape_of_block(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]) -> None:
    monkeypatch.setattr(tensor_attention, "_SHAPES", (shape,))
    for size, length, masked in ((64, 1, False), (64, 70, False), (64, 33, True), (128, 21, True)):
        check(size, length, HALF, masked, shape)
    check(64, 17, BRAIN, True, shape)


@pytest.mark.parametrize("shape", [(2, 1), (1, 2)])
def test_more_keys_than_shared_memory_holds(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    monkeypatch.setattr(tensor_attention, "_SHAPES", (shape,))
    monkeypatch.setattr(tensor_attention_source, "_SHARED_BYTES_MAX", 13 << 10)
    assert Block(*shape, 64, 100).pages > 2
    check(64, 100, HALF, False, shape)
    check(64, 96, HALF, True, shape)


def test_blocks_fit_the_shared_memory_that_all_have() -> None:
    shapes = itertools.product(tensor_attention._SHAPES, (64, 128), (*range(1, 600), 5000))
    for shape, size, count in shapes:
        block = Block(*shape, size, count)
        assert block.shared_bytes <= 99 << 10
        assert block.page * block.pages >= count
        if block.pages > 1:
            assert block.page >= 64


@pytest.mark.parametrize(("length", "counter"), [(512, "u32"), (20_000, "u64")])
def test_places_in_a_mask_are_counted_as_far_as_they_go(length: int, counter: str) -> None:
    heads = Heads.of((1, 12, length, 64), 12)
    mask = TensorSpec(HALF, (1, 1, 1, length))
    attention = Attention(heads, heads, heads, heads, 0.125, False, 0.0, mask)
    source = tensor_attention_source.source_of(attention, HALF, Block(2, 4, 64, length, True))
    assert f"({counter})blockIdx.z * 12u + blockIdx.y" in source
