"""Attention spelled out becomes one operator, with the scale and the mask it had."""

import numpy as np
import pytest

from aegis_pipe.execution.passes import (
    ATTENTION_PASSES,
    dead_code,
    fuse_attention,
    merge_projections,
    reorder_rows,
    run_passes,
)
from tests.unit.pass_driver import check, count, graph_of, model_of

HEADS = (
    "q = Transpose<perm=[0,2,1,3]>(x) k = Transpose<perm=[0,2,3,1]>(z)"
    " v = Transpose<perm=[0,2,1,3]>(z) p = MatMul(q, k)"
)
END = "w = MatMul(s, v) y = Transpose<perm=[0,2,1,3]>(w)"
X = "(float[2,5,3,4] x, float[2,7,3,4] z) => (float[2,5,3,4] y)"
VALUES = {
    "eighth": np.array(0.125, np.float32),
    "eight": np.array(8, np.float32),
    "mask": np.random.default_rng(1).standard_normal((1, 1, 5, 7)).astype(np.float32),
    "zeros": np.zeros((5, 7), np.float32),
    "rows": np.ones((5, 1), np.float32),
}
FORMULAS = {
    "plain": f"{HEADS} s = Softmax<axis=-1>(p) {END}",
    "scaled": f"{HEADS} a = Mul(p, eighth) s = Softmax<axis=3>(a) {END}",
    "divided": f"{HEADS} a = Div(p, eight) s = Softmax<axis=-1>(a) {END}",
    "masked": f"{HEADS} a = Mul(eighth, p) m = Add(a, mask) s = Softmax<axis=-1>(m) {END}",
    "mask of zeros": f"{HEADS} m = Add(zeros, p) s = Softmax<axis=-1>(m) {END}",
}
OTHERS = {
    "another axis": f"{HEADS} s = Softmax<axis=1>(p) {END}",
    "one number added": f"{HEADS} m = Add(p, eighth) s = Softmax<axis=-1>(m) {END}",
    "a number a row added": f"{HEADS} m = Add(p, rows) s = Softmax<axis=-1>(m) {END}",
    "a quotient of the scale": f"{HEADS} a = Div(eight, p) s = Softmax<axis=-1>(a) {END}",
}


@pytest.mark.parametrize("name", FORMULAS)
def test_fused(name: str) -> None:
    model = model_of(f"{X} {{ {FORMULAS[name]} }}", VALUES, opset=21)
    check(model, (fuse_attention,), rtol=1e-5)
    graph, _ = run_passes(graph_of(model), ATTENTION_PASSES)
    operators = count(graph)
    assert operators["aegis.StridedAttention"] == 1
    assert not operators.keys() & {"MatMul", "Softmax", "Transpose", "Mul", "Div", "Add"}
    (node,) = (node for node in graph.operators if node.operator == "StridedAttention")
    assert len(node.inputs) == (4 if name == "masked" else 3)


@pytest.mark.parametrize("name", OTHERS)
def test_left_alone(name: str) -> None:
    model = model_of(f"{X} {{ {OTHERS[name]} }}", VALUES, opset=21)
    graph, _ = run_passes(graph_of(model), (fuse_attention,))
    assert "aegis.StridedAttention" not in count(graph)


def test_queries_keys_and_values_side_by_side() -> None:
    """As PyTorch's MultiheadAttention is exported: heads merged with the batch, scaled twice."""
    body = """
        p = Reshape(x, packed) t = Transpose<perm=[2,0,1,3]>(p)
        a = Gather<axis=0>(t, zero) b = Gather<axis=0>(t, one) c = Gather<axis=0>(t, two)
        d = Reshape(a, rows) e = Reshape(b, rows) f = Reshape(c, rows)
        g = Transpose<perm=[1,0,2]>(d) h = Transpose<perm=[1,0,2]>(e) i = Transpose<perm=[1,0,2]>(f)
        q = Reshape(g, heads) k = Reshape(h, heads) v = Reshape(i, heads)
        l = Transpose<perm=[0,1,3,2]>(k) n = Mul(q, eighth) r = Mul(l, eighth)
        m = MatMul(n, r) s = Softmax<axis=-1>(m) w = MatMul(s, v)
        o = Transpose<perm=[2,0,1,3]>(w) y = Reshape(o, joined)
    """
    values = {
        **VALUES,
        "packed": np.array([5, 2, 3, 16]),
        "rows": np.array([5, 8, 4]),
        "heads": np.array([2, 4, 5, 4]),
        "joined": np.array([10, 16]),
        **{name: np.array(index) for index, name in enumerate(("zero", "one", "two"))},
    }
    model = model_of(f"(float[5,2,48] x) => (float[10,16] y) {{ {body} }}", values, opset=21)
    graph = check(model, ATTENTION_PASSES, rtol=1e-5)
    operators = count(graph)
    assert operators == {"aegis.StridedAttention": 1, "Reshape": 1}
    (node,) = (node for node in graph.operators if node.operator == "StridedAttention")
    assert node.inputs == ("x", "x", "x")
    assert node.attributes["scale"] == 0.125**2


def test_heads_without_a_batch() -> None:
    body = """
        q = Transpose<perm=[1,0,2]>(x) k = Transpose<perm=[1,2,0]>(x)
        p = MatMul(q, k) s = Softmax<axis=-1>(p) v = Transpose<perm=[1,0,2]>(x) w = MatMul(s, v)
        y = Transpose<perm=[1,0,2]>(w)
    """
    model = model_of(f"(float[5,3,4] x) => (float[5,3,4] y) {{ {body} }}", {}, opset=21)
    assert count(check(model, ATTENTION_PASSES, rtol=1e-5)) == {"aegis.StridedAttention": 1}


def test_split_side_by_side() -> None:
    body = """
        a, b, c = Split<axis=-1>(x, widths)
        d = Reshape(a, heads) e = Reshape(b, heads) f = Reshape(c, heads)
        q = Transpose<perm=[0,2,1,3]>(d) k = Transpose<perm=[0,2,3,1]>(e)
        v = Transpose<perm=[0,2,1,3]>(f)
        m = MatMul(q, k) s = Softmax<axis=-1>(m) w = MatMul(s, v)
        y = Transpose<perm=[0,2,1,3]>(w)
    """
    values = {"widths": np.array([8, 8, 8]), "heads": np.array([2, 5, 2, 4])}
    model = model_of(f"(float[2,5,24] x) => (float[2,5,2,4] y) {{ {body} }}", values, opset=21)
    graph = check(model, ATTENTION_PASSES, rtol=1e-5)
    assert count(graph) == {"aegis.StridedAttention": 1}


def _projected(weights: str) -> str:
    first, second, third = weights
    return f"""
        a = Gemm(x, {first}, bias) b = Gemm(x, {second}, bias) c = Gemm(x, {third}, bias)
        d = Reshape(a, heads) e = Reshape(b, heads) f = Reshape(c, heads)
        q = Transpose<perm=[0,2,1,3]>(d) k = Transpose<perm=[0,2,3,1]>(e)
        v = Transpose<perm=[0,2,1,3]>(f)
        m = MatMul(q, k) s = Softmax<axis=-1>(m) w = MatMul(s, v)
        y = Transpose<perm=[0,2,1,3]>(w)
    """


def _projections() -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    return {
        "heads": np.array([2, 5, 2, 4]),
        "bias": random.standard_normal(8).astype(np.float32),
        **{name: random.standard_normal((6, 8)).astype(np.float32) for name in "hij"},
    }


def test_three_projections_are_one() -> None:
    head = "(float[10,6] x) => (float[2,5,2,4] y)"
    model = model_of(f"{head} {{ {_projected('hij')} }}", _projections(), opset=21)
    graph = check(model, ATTENTION_PASSES, rtol=1e-4)
    assert count(graph) == {"Gemm": 1, "aegis.StridedAttention": 1}
    apart, _ = run_passes(graph_of(model), (fuse_attention, dead_code))
    together, _ = run_passes(apart, (merge_projections,))
    assert (count(apart)["Gemm"], count(together)["Gemm"]) == (3, 1)


def test_a_projection_that_somebody_else_reads_stays() -> None:
    head = "(float[10,6] x) => (float[2,5,2,4] y, float[10,8] a)"
    model = model_of(f"{head} {{ {_projected('hij')} }}", _projections(), opset=21)
    graph = check(model, ATTENTION_PASSES, rtol=1e-4)
    assert count(graph) == {"Gemm": 2, "aegis.StridedAttention": 1}


def test_sequence_first_needs_no_transposes() -> None:
    """As PyTorch's MultiheadAttention is exported for a batch: [length, batch, width] within."""
    body = """
        t = Transpose<perm=[1,0,2]>(x) r = Reshape(t, wide) g = Gemm(r, weights, bias)
        p = Reshape(g, packed) u = Transpose<perm=[2,0,1,3]>(p)
        a = Gather<axis=0>(u, zero) b = Gather<axis=0>(u, one) c = Gather<axis=0>(u, two)
        d = Reshape(a, rows) e = Reshape(b, rows) f = Reshape(c, rows)
        h = Transpose<perm=[1,0,2]>(d) i = Transpose<perm=[1,0,2]>(e) j = Transpose<perm=[1,0,2]>(f)
        q = Reshape(h, heads) k = Reshape(i, heads) v = Reshape(j, heads)
        l = Transpose<perm=[0,1,3,2]>(k)
        m = MatMul(q, l) s = Softmax<axis=-1>(m) w = MatMul(s, v)
        o = Transpose<perm=[2,0,1,3]>(w) n = Reshape(o, wide) z = Gemm(n, last, bias16)
        aa = Reshape(z, first) y = Transpose<perm=[1,0,2]>(aa)
    """
    random = np.random.default_rng(6)
    values = {
        "wide": np.array([15, 16]),
        "weights": random.standard_normal((16, 48)).astype(np.float32) / 4,
        "last": random.standard_normal((16, 16)).astype(np.float32) / 4,
        "bias": random.standard_normal(48).astype(np.float32),
        "bias16": random.standard_normal(16).astype(np.float32),
        "packed": np.array([5, 3, 3, 16]),
        "rows": np.array([5, 12, 4]),
        "heads": np.array([3, 4, 5, 4]),
        "first": np.array([5, 3, 16]),
        **{name: np.array(index) for index, name in enumerate(("zero", "one", "two"))},
    }
    model = model_of(f"(float[3,5,16] x) => (float[3,5,16] y) {{ {body} }}", values, opset=21)
    operators = count(check(model, ATTENTION_PASSES, rtol=1e-4))
    assert operators["aegis.StridedAttention"] == 1
    assert operators["Transpose"] == 0
    assert operators["Gemm"] == 2


def test_rows_stay_where_moving_them_saves_nothing() -> None:
    body = "t = Transpose<perm=[1,0,2]>(x) r = Reshape(t, rows) g = Gemm(r, w) y = Softmax(g)"
    values = {"rows": np.array([15, 6]), "w": _projections()["h"]}
    model = model_of(f"(float[3,5,6] x) => (float[15,8] y) {{ {body} }}", values, opset=21)
    before = graph_of(model)
    assert reorder_rows.run(before) is before
