"""Products by warpgroups in every tiling, and models that take them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.device.registry import open_device
from aegis_pipe.execution.compiler import CompiledModel, choose_anew
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.standalone import StandaloneGraph
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorSpec

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")

TOLERANCE = {"float16": 1e-3, "bfloat16": 6e-3}
SHAPES = {
    "one row": (1, 768, 1000),
    "rows beyond a tile": (197, 768, 768),
    "depth beyond a line": (70, 200, 136),
    "columns beyond a tile": (128, 512, 1160),
    "deep": (130, 3072, 768),
    "flat": (300, 64, 64),
    "more columns than threads": (512, 768, 3072),
    "less than a tile in every way": (1, 8, 8),
}
_erf = np.vectorize(math.erf)
ENDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda a: a,
    "Relu": lambda a: np.maximum(a, 0),
    "Gelu": lambda a: 0.5 * a * (1 + _erf(a / np.sqrt(2))),
    "FastGelu": lambda a: 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3))),
}
CASES = [
    *((name, "float16", "", "bias", False) for name in SHAPES),
    ("rows beyond a tile", "bfloat16", "Relu", "residual", True),
    ("depth beyond a line", "float16", "Gelu", "bias", True),
    ("columns beyond a tile", "float16", "FastGelu", "bias", False),
    ("deep", "bfloat16", "Gelu", "none", False),
]


@pytest.mark.parametrize(("name", "kind", "end", "added", "is_transposed"), CASES)
def test_every_alternative(
    context: DeviceContext, name: str, kind: str, end: str, added: str, is_transposed: bool
) -> None:
    m, k, n = SHAPES[name]
    dtype = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else np.float16)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((m, k)).astype(dtype)
    w = (rng.standard_normal((n, k) if is_transposed else (k, n)) / np.sqrt(k)).astype(dtype)
    c = rng.standard_normal((m, n) if added == "residual" else n).astype(dtype)
    arrays = [x, w, *([] if added == "none" else [c])]
    expected = x.astype(np.float64) @ (w.T if is_transposed else w).astype(np.float64)
    expected = ENDS[end](expected + (0 if added == "none" else c.astype(np.float64)))
    attributes: dict[str, Any] = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    attributes |= {"transB": int(is_transposed), "activation": end, "activation_alpha": 0.01}
    specs = tuple(TensorSpec(dtype, array.shape) for array in arrays)
    request = KernelRequest(
        "com.microsoft.FusedGemm",
        "node",
        attributes,
        specs,
        (TensorSpec(dtype, (m, n)),),
        {at: arrays[at] for at in range(1, len(arrays)) if at == 1 or added == "bias"},
    )
    offers = context.alternatives(request)
    if not offers:
        pytest.skip("another generation")
    context.prepare_to_bind([(request, offer) for offer in offers])
    packed = offers[0].packed[1].pack(w)
    contents = [x, packed, *arrays[2:]]
    found = np.empty((m, n), dtype)
    *regions, target = (context.allocate(each.nbytes) for each in (*contents, found))
    for region, each in zip(regions, contents, strict=True):
        context.write(region, each)
    stream = context.create_stream(0)
    for offer in offers:
        call = context.bind(request, offer, regions, [target], None)
        graph = context.record([call])
        results = set()
        for _ in range(4):
            context.write(target, np.full((m, n), np.nan, dtype))
            graph.launch(stream)
            stream.synchronise()
            context.read(target, found)
            results.add(found.tobytes())
        graph.close()
        assert len(results) == 1, offer.variant
        error = np.abs(found.astype(np.float64) - expected) / (1 + np.abs(expected))
        assert error.max() < TOLERANCE[kind], offer.variant
    stream.close()
    for region in (*regions, target):
        region.close()


def blocks(depth: int) -> onnx.ModelProto:
    """Return layers of a transformer without attention: two products, GELU, sums, norms."""
    rng = np.random.default_rng(5)
    constants = {"one": np.ones(96, np.float32), "none": np.zeros(96, np.float32)}
    lines = []
    for n in range(depth):
        constants |= {
            f"u{n}": rng.standard_normal((96, 320)).astype(np.float32) / 10,
            f"v{n}": rng.standard_normal((320, 96)).astype(np.float32) / 18,
            f"b{n}": rng.standard_normal(320).astype(np.float32),
            f"c{n}": rng.standard_normal(96).astype(np.float32),
        }
        lines.append(f"n{n} = LayerNormalization(x{n}, one, none) p{n} = MatMul(n{n}, u{n})")
        lines.append(f"q{n} = Add(p{n}, b{n}) g{n} = Gelu(q{n}) r{n} = MatMul(g{n}, v{n})")
        lines.append(f"s{n} = Add(r{n}, c{n}) x{n + 1} = Add(s{n}, x{n})")
    lines.append(f"y = Identity(x{depth})")
    text = f"(float[100,96] x0) => (float[100,96] y) {{ {' '.join(lines)} }}"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 20]> graph {text}')
    model.graph.initializer.extend(numpy_helper.from_array(w, n) for n, w in constants.items())
    return model


@pytest.mark.parametrize("seed", range(6))
def test_models_give_the_same_bits_every_time(context: DeviceContext, seed: int) -> None:
    """Whatever alternative stands where, begins early, and lets the next begin when it may."""
    graph = ModelLoader().load_proto(blocks(4), LoadOptions())
    x = np.random.default_rng(1).standard_normal((100, 96)).astype(np.float32)
    rng = np.random.default_rng(seed)
    taken: list[KernelChoice] = []

    def change(model: CompiledModel) -> CompiledModel:
        model = replace(model, forks=())
        chosen = {}
        for at, step in enumerate(model.steps):
            offers = context.alternatives(step.request)
            if offers:
                chosen[at] = offers[rng.integers(len(offers))]
        taken.extend(chosen.values())
        return choose_anew(model, chosen, context.description.alignment_bytes)

    clock = SystemClock()
    stream = context.create_stream(0)
    with StandaloneGraph(graph, context, stream, clock, "fp16", change=change) as ours:
        results = {ours.run({"x0": x})["y"].tobytes() for _ in range(200)}
    stream.close()
    if not taken:
        pytest.skip("another generation")
    assert len(taken) == 8
    with open_device("cpu", clock=clock).context as cpu:
        other = cpu.create_stream(0)
        with StandaloneGraph(graph, cpu, other, clock) as reference:
            expected = reference.run({"x0": x})["y"]
        other.close()
    assert len(results) == 1
    found = np.frombuffer(results.pop(), np.float32).reshape(expected.shape)
    assert np.abs(found - expected).max() < 2e-2 * expected.std()


def test_a_model_takes_what_is_faster_and_remembers(
    context: DeviceContext, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not context.alternatives(_some_request()):
        pytest.skip("another generation")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    graph = ModelLoader().load_proto(blocks(4), LoadOptions())
    variants = []
    with open_device("cuda", clock=SystemClock()).context as fresh:
        for _ in range(2):
            stream = fresh.create_stream(0)
            with StandaloneGraph(graph, fresh, stream, SystemClock(), "fp16") as ours:
                variants.append([step.choice.variant for step in ours.compiled.steps])
            stream.close()
    assert variants[0] == variants[1]
    assert any(variants[0]), "ours begin early, and have GELU at their end"


def _some_request() -> KernelRequest:
    half = np.dtype(np.float16)
    specs = [TensorSpec(half, shape) for shape in ((8, 64), (64, 64), (8, 64))]
    attributes: dict[str, Any] = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    weights = {1: np.zeros((64, 64), np.float16)}
    return KernelRequest("Gemm", "node", attributes, tuple(specs[:2]), (specs[2],), weights)
