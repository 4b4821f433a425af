"""Builds small graphs, runs them on the CPU device, and compares them with ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper, parser

from aegis_pipe.clock import SystemClock
from aegis_pipe.device import open_device
from aegis_pipe.device.protocols import DeviceContext, Region
from aegis_pipe.events import EventHub, PhaseRecorder
from aegis_pipe.execution.compiler import CompiledModel, ModelBinder, compile_model
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.operators import OPERATORS
from aegis_pipe.execution.operators.table import OperatorContext
from aegis_pipe.execution.passes import Pass, run_passes
from aegis_pipe.execution.reference_operators import reference_function
from aegis_pipe.tensor import TensorSpec


def model_of(
    text: str, constants: Mapping[str, np.ndarray] | None = None, *, opset: int = 17
) -> onnx.ModelProto:
    """Return a model given as ONNX text, `(inputs) => (outputs) { nodes }`, and its constants."""
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]> graph {text}'
    )
    for name, array in (constants or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def graph_of(model: onnx.ModelProto) -> ExecutionGraph:
    return ModelLoader().load_proto(model, LoadOptions())


def operators_of(graph: ExecutionGraph) -> list[str]:
    return [node.qualified_operator for node in graph.operators]


def count(graph: ExecutionGraph) -> Counter[str]:
    return Counter(operators_of(graph))


def feeds_of(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs; integers from 0 to 3."""
    generator = np.random.default_rng(seed)
    graph = graph_of(model)
    return {
        name: (
            generator.integers(0, 4, graph.spec(name).shape)
            if graph.spec(name).dtype.kind in "iub"
            else generator.standard_normal(graph.spec(name).shape) * 2
        ).astype(graph.spec(name).dtype)
        for name in graph.inputs
    }


def run_onnxruntime(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run a model as it stands, without ONNX Runtime's own rewrites."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(feeds)))


@contextmanager
def on_cpu(graph: ExecutionGraph) -> Iterator[_OnDevice]:
    """Compile and bind a graph to the CPU device."""
    with open_device("cpu", clock=SystemClock()).context as context:
        yield on_device(graph, context)


def on_device(graph: ExecutionGraph, context: DeviceContext) -> _OnDevice:
    """Compile and bind a graph as it is, without any passes."""
    phases = PhaseRecorder(EventHub(), SystemClock())
    compiled = compile_model(graph, context, OPERATORS, reference_function, phases)
    return _OnDevice(compiled, context)


class _OnDevice:
    """A graph in memory of its own, every storage a region of its own."""

    def __init__(self, compiled: CompiledModel, context: DeviceContext) -> None:
        self.compiled = compiled
        self._context = context
        weights: dict[str, Region] = {}
        for key, weight in compiled.weights.items():
            weights[key] = context.allocate(weight.size_bytes)
            context.write(weights[key], weight.content())
        storages = {
            one.tensor_id: context.allocate(one.size_bytes) for one in compiled.analysis.lifetimes
        }
        binder = ModelBinder(compiled, context, weights, storages)
        self._inputs, self._outputs = binder.inputs(), binder.outputs()
        # The context closes its regions, but does not keep them.
        self._regions = [weights, storages]
        self._graph = context.record(binder.calls())
        self._stream = context.create_stream(0)

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        for bound in self._inputs:
            self._context.write(bound.region, np.ascontiguousarray(feeds[bound.name]))
        self._graph.launch(self._stream)
        self._stream.synchronise()
        results = [np.empty(bound.spec.shape, bound.spec.dtype) for bound in self._outputs]
        for bound, result in zip(self._outputs, results, strict=True):
            self._context.read(bound.region, result)
        return results

    def close(self) -> None:
        regions = [region for kept in self._regions for region in kept.values()]
        for each in (self._graph, self._stream, *regions):
            each.close()


def run_on_cpu(graph: ExecutionGraph, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    with on_cpu(graph) as bound:
        return bound.run(feeds)


def assert_inferred(graph: ExecutionGraph) -> None:
    """The operator table, or ONNX, infers of every operator what the graph says of it."""
    for node in graph.operators:
        entry = OPERATORS.get(node.qualified_operator)
        if entry is None:
            assert not node.domain, f"{node.qualified_operator} has no entry"
            continue
        specs = tuple(graph.spec(tensor) if tensor else None for tensor in node.inputs)
        known = {i: graph.constants[t] for i, t in enumerate(node.inputs) if t in graph.constants}
        inferred = entry.infer(OperatorContext(node, specs, known))
        for tensor, spec in zip(node.outputs, inferred, strict=False):
            assert not tensor or graph.spec(tensor) == spec


def check(
    model: onnx.ModelProto,
    passes: Sequence[Pass],
    *,
    identical: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    against_onnxruntime: bool = True,
) -> ExecutionGraph:
    """Run passes and assert that every output stays; `atol` is relative to the largest value.

    Compared with the graph as loaded, both on the CPU device, and with ONNX Runtime.
    """
    before = graph_of(model)
    after, _ = run_passes(before, passes)
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    assert len({node.name for node in after.operators}) == len(after.operators)
    assert_inferred(after)
    feeds = feeds_of(model)
    results, plain = run_on_cpu(after, feeds), run_on_cpu(before, feeds)
    for actual, wanted in zip(results, plain, strict=True):
        assert TensorSpec(actual.dtype, actual.shape) == TensorSpec(wanted.dtype, wanted.shape)
        if identical:
            assert actual.tobytes() == wanted.tobytes()
        _assert_close(actual, wanted, rtol, atol)
    if against_onnxruntime:
        for actual, wanted in zip(results, run_onnxruntime(model, feeds), strict=True):
            _assert_close(actual, wanted, rtol, atol)
    return after


def _assert_close(actual: np.ndarray, wanted: np.ndarray, rtol: float, atol: float) -> None:
    wanted = wanted.astype(np.float64)
    largest = float(np.abs(wanted).max(initial=0))
    np.testing.assert_allclose(actual.astype(np.float64), wanted, rtol=rtol, atol=atol * largest)
