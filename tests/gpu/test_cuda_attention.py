"""Attention on tensor cores, every shape of block, beside the formula in double precision."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.execution.passes import ATTENTION_PASSES, PASSES, run_passes
from aegis_pipe.execution.passes.precision import convert
from aegis_pipe.kernel import Attribute, KernelRequest
from aegis_pipe.tensor import TensorSpec
from tests.unit.execution.passes.attention_models import EXPANDED, KEPT_WHOLE, attention_model
from tests.unit.pass_driver import feeds_of, graph_of, on_device, run_on_cpu

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.kernels import tensor_attention
from aegis_pipe.device.cuda.kernels.tensor_attention_source import Block

TOLERANCE = {"float16": 2e-3, "bfloat16": 2e-2}


def _expected(
    packed: np.ndarray, heads: int, size: int, scale: float, mask: np.ndarray | None
) -> np.ndarray:
    batch, length, _ = packed.shape
    q, k, v = (
        packed.astype(np.float64).reshape(batch, length, 3, heads, size).transpose(2, 0, 3, 1, 4)
    )
    scores = q @ k.swapaxes(-1, -2) * scale
    if mask is not None:
        scores = scores + mask.astype(np.float64)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    weighted = scores / scores.sum(-1, keepdims=True) @ v
    weighted = np.asarray(weighted)
    return weighted.swapaxes(1, 2).reshape(batch, length, heads * size)


def _run(
    context: DeviceContext,
    packed: np.ndarray,
    heads: int,
    size: int,
    scale: float,
    mask: np.ndarray | None,
) -> np.ndarray:
    batch, length, width = packed.shape
    view = (batch, heads, length, size, length * width, size, width)
    attributes: dict[str, Attribute] = {
        **{f"{name}_view": (*view, heads * size * at) for at, name in enumerate("qkv")},
        "y_view": (*view[:4], length * heads * size, size, heads * size, 0),
        "scale": scale,
    }
    spec = TensorSpec(packed.dtype, packed.shape)
    masks = () if mask is None else (TensorSpec(mask.dtype, mask.shape),)
    result = TensorSpec(packed.dtype, (batch, length, heads * size))
    request = KernelRequest(
        "aegis.StridedAttention", "node", attributes, (spec,) * 3 + masks, (result,)
    )
    choice = context.select(request)
    assert choice.kernel == "attention.tensor"
    given = [packed] if mask is None else [packed, mask]
    regions = [context.allocate(array.nbytes) for array in given]
    for region, array in zip(regions, given, strict=True):
        context.write(region, array)
    target = context.allocate(result.size_bytes)
    inputs = [regions[0]] * 2 + regions[:1] + regions[1:]
    graph = context.record([context.bind(request, choice, inputs, [target], None)])
    stream = context.create_stream(0)
    found = []
    for _ in range(2):
        graph.launch(stream)
        stream.synchronise()
        found.append(np.empty(result.shape, packed.dtype))
        context.read(target, found[-1])
    for owner in (graph, stream, target, *regions):
        owner.close()
    assert found[0].tobytes() == found[1].tobytes()
    return found[0]


@pytest.mark.parametrize("shape", tensor_attention._SHAPES)
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("length", [1, 17, 128, 197, 600])
@pytest.mark.parametrize("masked", [False, True])
def test_every_block(
    context: DeviceContext,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int],
    size: int,
    length: int,
    masked: bool,
) -> None:
    block = Block(*shape, size, length, masked)
    monkeypatch.setattr(tensor_attention, "_measured", lambda *_: block)
    random = np.random.default_rng(length)
    for dtype in (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)):
        packed = random.standard_normal((2, length, 3 * 3 * size)).astype(dtype)
        mask = None
        if masked:
            hidden = np.where(random.random((2, 1, 1, length)) < 0.4, -1e4, 0)
            hidden[..., 0] = 0
            mask = hidden.astype(dtype)
        scale = size**-0.5
        got = _run(context, packed, 3, size, scale, mask)
        wanted = _expected(packed, 3, size, scale, mask)
        assert np.abs(got.astype(np.float64) - wanted).max() < TOLERANCE[dtype.name] * 2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("case", EXPANDED | KEPT_WHOLE)
def test_masks_as_exporters_write_them(context: DeviceContext, case: str, precision: str) -> None:
    """Lengths, keys, pairs, flags and sums, beside the CPU, whose tests have ONNX Runtime's.

    Not beside ONNX Runtime itself: some of its versions crash at these.
    """
    model = attention_model((EXPANDED | KEPT_WHOLE)[case])
    whole, _ = run_passes(graph_of(model), (*PASSES, *ATTENTION_PASSES))
    graph = whole if precision == "fp32" else convert(whole, precision)
    feeds = feeds_of(model)
    bound = on_device(graph, context)
    results = bound.run(feeds)
    assert [each.tobytes() for each in results] == [each.tobytes() for each in bound.run(feeds)]
    bound.close()
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    for found, wanted in zip(results, run_on_cpu(whole, feeds), strict=True):
        largest = np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance * largest)
