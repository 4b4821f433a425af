"""Transposes and reshapes that merge, cancel, move, or turn out to be views."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.passes import identity_elimination, run_passes, sink_transposes
from tests.unit.pass_driver import check, count, graph_of, model_of, operators_of

PASSES = (sink_transposes, identity_elimination)
CONSTANTS = {
    "single": np.array([2], np.float32),
    "column": np.arange(1, 4, dtype=np.float32).reshape(3, 1),
    "last": np.arange(1, 5, dtype=np.float32),
    "full": np.arange(1, 25, dtype=np.float32).reshape(2, 3, 4),
    "low": np.array(-1, np.float32),
    "high": np.array(1, np.float32),
    "flat": np.array([-1, 4]),
    "tall": np.array([4, 6]),
    "same": np.array([2, 3, 4]),
    "axis": np.array([1]),
    "pixels": np.array([2, 5, 12]),
    "image": np.array([2, 5, 3, 4]),
    "askew": np.array([2, 6, 10]),
}
TO, BACK = "Transpose <perm=[0,2,1]>", "Transpose <perm=[0,2,1]>"
X = "(float[2,3,4] x) => (float[2,3,4] y)"
TURNED = "(float[2,3,4] x) => (float[2,4,3] y)"


def sunk(text: str) -> ExecutionGraph:
    return check(model_of(text, CONSTANTS), PASSES, identical=True)


SIMPLER = {
    "a pair cancels": (f"{X} {{ a = {TO} (x) b = {BACK} (a) y = Relu(b) }}", ["Relu"]),
    "two merge": (
        "(float[2,3,4] x) => (float[4,2,3] y)"
        " { a = Transpose <perm=[1,2,0]> (x) y = Transpose <perm=[1,2,0]> (a) }",
        ["Transpose"],
    ),
    "three merge": (
        "(float[2,3,4] x) => (float[4,3,2] y) { a = Transpose <perm=[1,0,2]> (x)"
        " b = Transpose <perm=[2,1,0]> (a) y = Transpose <perm=[0,2,1]> (b) }",
        ["Transpose"],
    ),
    "default permutation": (f"{X} {{ a = Transpose(x) b = Transpose(a) y = Relu(b) }}", ["Relu"]),
    "through one": (f"{X} {{ a = {TO} (x) b = Relu(a) y = {BACK} (b) }}", ["Relu"]),
    "through several": (
        f"{X} {{ a = {TO} (x) b = Relu(a) c = Tanh(b) d = Neg(c) y = {BACK} (d) }}",
        ["Relu", "Tanh", "Neg"],
    ),
    "through a sum with a number": (
        f"{X} {{ a = {TO} (x) b = Add(single, a) y = {BACK} (b) }}",
        ["Add"],
    ),
    "through a sum with a constant of less dimensions": (
        "(float[2,4,3] x) => (float[2,4,3] y)"
        f" {{ a = {TO} (x) b = Add(a, last) c = Mul(b, column) y = {BACK} (c) }}",
        ["Add", "Mul"],
    ),
    "through a sum with a constant": (
        f"(float[2,4,3] x) => (float[2,4,3] y) {{ a = {TO} (x) b = Sub(full, a) y = {BACK} (b) }}",
        ["Sub"],
    ),
    "through a clip": (f"{X} {{ a = {TO} (x) b = Clip(a, low, high) y = {BACK} (b) }}", ["Clip"]),
    "a square": (f"{X} {{ a = {TO} (x) b = Mul(a, a) y = {BACK} (b) }}", ["Mul"]),
    "two of a sum": (
        "(float[2,3,4] x, float[2,3,4] z) => (float[2,4,3] y)"
        f" {{ a = {TO} (x) b = {TO} (z) y = Add(a, b) }}",
        ["Add", "Transpose"],
    ),
    "two of a sum, one behind a function": (
        "(float[2,3,4] x, float[2,3,4] z) => (float[2,4,3] y)"
        f" {{ a = {TO} (x) c = Exp(a) b = {TO} (z) y = Add(c, b) }}",
        ["Exp", "Add", "Transpose"],
    ),
    "a broadcast sum": (
        "(float[2,3,4] x, float[2,3,1] z) => (float[2,4,3] y)"
        f" {{ a = {TO} (x) b = {TO} (z) c = Relu(b) y = Add(a, c) }}",
        None,
    ),
    "of size 1": (
        "(float[2,1,4] x) => (float[1,2,4] y) { y = Transpose <perm=[1,0,2]> (x) }",
        ["Reshape"],
    ),
    "reshapes": (
        "(float[2,3,4] x) => (float[4,6] y) { a = Reshape(x, flat) y = Reshape(a, tall) }",
        ["Reshape"],
    ),
    "reshapes of all kinds": (
        "(float[2,3,4] x) => (float[2,12] y)"
        " { a = Unsqueeze(x, axis) b = Squeeze(a, axis) y = Flatten(b) }",
        ["Reshape"],
    ),
    "pixels as a row, and back": (
        "(float[2,3,4,5] x) => (float[2,12,5] y) { a = Transpose <perm=[0,3,1,2]> (x)"
        f" b = Reshape(a, pixels) c = {BACK} (b) y = Relu(c) }}",
        ["Reshape", "Relu"],
    ),
    "a row as pixels, and back": (
        f"(float[2,12,5] x) => (float[2,3,4,5] y) {{ a = {TO} (x) b = Reshape(a, image)"
        " c = Transpose <perm=[0,2,3,1]> (b) y = Relu(c) }",
        ["Reshape", "Relu"],
    ),
    "there and back": (
        f"{X} {{ a = Reshape(x, flat) b = Reshape(a, same) y = Relu(b) }}",
        ["Relu"],
    ),
    "reshape read twice": (
        "(float[2,3,4] x) => (float[4,6] y, float[6,4] z)"
        " { a = Reshape(x, flat) y = Reshape(a, tall) z = Relu(a) }",
        ["Reshape", "Relu", "Reshape"],
    ),
}


@pytest.mark.parametrize("case", SIMPLER)
def test_simpler(case: str) -> None:
    text, wanted = SIMPLER[case]
    graph = sunk(text)
    assert wanted is None or sorted(operators_of(graph)) == sorted(wanted)


def test_names_of_moved_nodes_stay() -> None:
    text = (
        "(float[2,3,4] x, float[2,3,4] z) => (float[2,4,3] y)"
        f" {{ [a] a = {TO} (x) [b] b = {TO} (z) [sum] y = Add(a, b) }}"
    )
    assert [node.name for node in sunk(text).operators] == ["sum", "a"]


KEPT = {
    "nothing below": f"{TURNED} {{ a = {TO} (x) y = Relu(a) }}",
    "an output in between": "(float[2,3,4] x) => (float[2,3,4] y, float[2,4,3] b)"
    f" {{ a = {TO} (x) b = Relu(a) y = {BACK} (b) }}",
    "the transpose is an output": "(float[2,3,4] x) => (float[2,3,4] y, float[2,4,3] a)"
    f" {{ a = {TO} (x) b = Relu(a) y = {BACK} (b) }}",
    "read twice": "(float[2,3,4] x) => (float[2,3,4] y, float[2,4,3] z)"
    f" {{ a = {TO} (x) b = Relu(a) y = {BACK} (b) z = Tanh(a) }}",
    "other operand not transposed": "(float[2,3,4] x, float[2,4,3] z) => (float[2,3,4] y)"
    f" {{ a = {TO} (x) b = Add(a, z) y = {BACK} (b) }}",
    "different transposes": "(float[2,3,3] x, float[3,2,3] z) => (float[2,3,3] y)"
    f" {{ a = {TO} (x) b = Transpose <perm=[1,0,2]> (z) y = Add(a, b) }}",
    "not elementwise": f"{X} {{ a = {TO} (x) b = Softmax(a) y = {BACK} (b) }}",
    "pixels as a row, and elsewhere": "(float[2,3,4,5] x) => (float[5,2,12] y)"
    " { a = Transpose <perm=[0,3,1,2]> (x) b = Reshape(a, pixels)"
    " y = Transpose <perm=[1,0,2]> (b) }",
    "pixels the other way round": "(float[2,3,4,5] x) => (float[2,12,5] y)"
    f" {{ a = Transpose <perm=[0,3,2,1]> (x) b = Reshape(a, pixels) y = {BACK} (b) }}",
    "pixels cut elsewhere": "(float[2,3,4,5] x) => (float[2,10,6] y)"
    f" {{ a = Transpose <perm=[0,3,1,2]> (x) b = Reshape(a, askew) y = {BACK} (b) }}",
    "reshape between": "(float[2,3,4] x) => (float[4,6] y)"
    f" {{ a = {TO} (x) b = Reshape(a, flat4) y = Transpose(b) }}",
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    model = model_of(KEPT[case], CONSTANTS | {"flat4": np.array([6, 4])})
    graph = graph_of(model)
    after, _ = run_passes(graph, PASSES)
    assert count(after) == count(graph)
    check(model, PASSES, identical=True)
