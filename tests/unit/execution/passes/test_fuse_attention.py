"""Attention spelled out becomes one operator, with the scale and the mask it had."""

import numpy as np
import pytest

from aegis_pipe.execution.passes import ATTENTION_PASSES, fuse_attention, run_passes
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
    "a quotient of the scale": f"{HEADS} a = Div(eight, p) s = Softmax<axis=-1>(a) {END}",
}


@pytest.mark.parametrize("name", FORMULAS)
def test_fused(name: str) -> None:
    model = model_of(f"{X} {{ {FORMULAS[name]} }}", VALUES, opset=21)
    check(model, (fuse_attention,), rtol=1e-5)
    graph, _ = run_passes(graph_of(model), ATTENTION_PASSES)
    operators = count(graph)
    assert operators["Attention"] == 1
    assert not operators.keys() & {"MatMul", "Softmax", "Transpose", "Mul", "Div", "Add"}
    (node,) = (node for node in graph.operators if node.operator == "Attention")
    assert len(node.inputs) == (4 if name == "masked" else 3)


@pytest.mark.parametrize("name", OTHERS)
def test_left_alone(name: str) -> None:
    model = model_of(f"{X} {{ {OTHERS[name]} }}", VALUES, opset=21)
    graph, _ = run_passes(graph_of(model), (fuse_attention,))
    assert "Attention" not in count(graph)
