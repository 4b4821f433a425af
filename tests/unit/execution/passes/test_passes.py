"""Every pass leaves the outputs as they are, bit for bit, and does what it is for."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from aegis_pipe.execution.evaluation import evaluate_graph
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.passes import (
    PASSES,
    Pass,
    common_subexpressions,
    constant_folding,
    dead_code,
    identity_elimination,
    run_passes,
)

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'

MODELS = {
    "identities": """
    agraph (float[2, 3] x) => (float[2, 3] y, float[2, 3] same, float[2, 3] z) {
        a = Identity (x)
        same = Identity (a)
        b = Dropout (a)
        c = Cast <to = 1> (b)
        d = Transpose <perm = [0, 1]> (c)
        e = Concat <axis = 0> (d)
        f = Relu (e)
        z = Identity (f)
        y = Neg (f)
    }
    """,
    "repetitions": """
    agraph (float[2, 3] x) => (float[2, 3] y, float[2, 3] z)
    <float[3] w = {1.0, 2.0, 3.0}, float[3] v = {1.0, 2.0, 3.0}> {
        a = Add (x, w)
        b = Add (x, v)
        c = Mul (a, b)
        d = LeakyRelu <alpha = 0.1> (c)
        e = LeakyRelu <alpha = 0.2> (c)
        f = LeakyRelu <alpha = 0.1> (c)
        g = Sub (d, f)
        y = Add (e, g)
        z = Add (e, g)
    }
    """,
    "quantised": """
    agraph (float[2] x) => (float[2] y) {
        q = Constant <value = int8[2] {3, -4}> ()
        scale = Constant <value = float {0.5}> ()
        w = DequantizeLinear (q, scale)
        u = Neg (w)
        y = Add (x, u)
    }
    """,
    "captures": """
    agraph (float[2] x, int64 count) => (float[2] y) {
        a = Identity (x)
        b = Relu (a)
        c = Relu (x)
        y = Loop (count, , x) <
            body = step (int64 i, bool going, float[2] s) => (bool on, float[2] t) {
                on = Identity (going)
                p = Add (a, b)
                q = Mul (c, s)
                t = Add (p, q)
            }
        >
    }
    """,
    "random": """
    agraph (float[2] x) => (float[2] y, float[1] n) {
        r = RandomUniform <shape = [2]> ()
        s = RandomUniform <shape = [2]> ()
        d = Sub (r, s)
        n = ReduceMax (d)
        y = Identity (x)
    }
    """,
}


def load(name: str) -> ExecutionGraph:
    return ModelLoader().load_proto(onnx.parser.parse_model(HEADER + MODELS[name]), LoadOptions())


def operators_of(graph: ExecutionGraph) -> list[str]:
    return [node.operator for node in graph.operators]


def inputs_of(graph: ExecutionGraph, count: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    values: dict[str, np.ndarray] = {"count": np.array(count)}
    return {
        tensor: values[tensor]
        if tensor in values
        else generator.standard_normal(graph.spec(tensor).shape).astype(np.float32)
        for tensor in graph.inputs
    }


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"random"}))
@pytest.mark.parametrize("passes", [*([one] for one in PASSES), PASSES, PASSES[::-1]])
@pytest.mark.parametrize("count", [0, 2])
def test_outputs_stay_as_they_are(name: str, passes: list[Pass], count: int) -> None:
    graph = load(name)
    rewritten, _ = run_passes(graph, passes)
    assert (rewritten.inputs, rewritten.outputs) == (graph.inputs, graph.outputs)
    inputs = inputs_of(graph, count)
    for before, after in zip(
        evaluate_graph(graph, inputs), evaluate_graph(rewritten, inputs), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_identities_go_but_outputs_keep_their_names() -> None:
    graph = identity_elimination.run(load("identities"))
    # `same` is an output that equals an input: nobody else can write it.
    assert operators_of(graph) == ["Identity", "Relu", "Neg"]
    assert graph.operators[1].outputs == ("z",)


def test_repetitions_are_computed_once() -> None:
    graph = dead_code.run(common_subexpressions.run(load("repetitions")))
    assert operators_of(graph) == ["Add", "Mul", "LeakyRelu", "LeakyRelu", "Sub", "Add", "Add"]
    assert len(graph.constants) == 1


def test_random_operators_are_never_the_same() -> None:
    graph, _ = run_passes(load("random"))
    assert operators_of(graph).count("RandomUniform") == 2


def test_dequantised_weights_fold() -> None:
    graph = constant_folding.run(load("quantised"))
    assert operators_of(graph) == ["Add"]
    assert [array.tolist() for array in graph.constants.values()] == [[-1.5, 2.0]]


def test_folding_stays_within_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constant_folding, "FOLDED_BYTES_MAX", 4)
    graph = constant_folding.run(load("quantised"))
    assert operators_of(graph) == ["DequantizeLinear", "Neg", "Add"]


def test_dead_operators_go() -> None:
    graph = load("repetitions")
    renamed = common_subexpressions.run(graph)
    assert set(dead_code.run(renamed).specs) <= set(renamed.specs)


def test_captured_tensors_follow_renamings() -> None:
    graph, _ = run_passes(load("captures"))
    assert operators_of(graph) == ["Relu", "Loop"]


def test_the_reports_add_up() -> None:
    graph = load("identities")
    rewritten, reports = run_passes(graph)
    assert [report.name for report in reports] == [one.name for one in PASSES]
    assert reports[0].nodes_before == len(graph.operators)
    assert reports[-1].nodes_after == len(rewritten.operators)
