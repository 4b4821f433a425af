"""Slices, splits and concatenations that lie in place: same bits, no kernel."""

import numpy as np
import pytest

from tests.unit.pass_driver import feeds_of, graph_of, model_of, on_cpu, run_onnxruntime

_INT64 = {
    name: np.array(value, dtype=np.int64)
    for name, value in {
        "zero": [0], "one": [1], "two": [2], "three": [3], "minus": [-1], "last": -1, "far": [99],
        "halves": [2, 2],
    }.items()
}  # fmt: skip

IN_PLACE = {
    "rows of a matrix": (
        "(float[4,16] x) => (float[2,16] y) { s = Slice(x, one, three, zero) y = Relu(s) }",
        ["relu"],
    ),
    "a row among rows of length 1": (
        "(float[1,4,16] x) => (float[1,1,16] y) { s = Slice(x, one, two, one) y = Relu(s) }",
        ["relu"],
    ),
    "both halves": (
        "(float[1,4,16] x) => (float[1,2,16] y){ a, b = Split<axis = 1>(x, halves) y = Sub(b, a) }",
        ["sub"],
    ),
    "the last row": (
        "(float[4,16] x) => (float[16] y) { s = Gather<axis = 0>(x, last) y = Relu(s) }",
        ["relu"],
    ),
    "joined rows": (
        "(float[1,2,16] x, float[1,3,16] z) => (float[1,5,16] y)"
        "{ a = Relu(x) b = Neg(z) c = Concat<axis = 1>(a, b) y = Exp(c) }",
        ["relu", "neg", "exp"],
    ),
    "joined and given out": (
        "(float[1,2,16] x, float[1,3,16] z) => (float[1,5,16] y)"
        "{ a = Relu(x) b = Neg(z) y = Concat<axis = 1>(a, b) }",
        ["relu", "neg"],
    ),
    "inputs joined": (
        "(float[2,16] x, float[3,16] z) => (float[5,16] y)"
        "{ c = Concat<axis = 0>(x, z) y = Exp(c) }",
        ["exp"],
    ),
    "joins of joins": (
        "(float[2,16] x) => (float[8,16] y)"
        "{ a = Relu(x) b = Neg(x) c = Concat<axis = 0>(a, b) d = Exp(c)"
        "  e = Concat<axis = 0>(c, d) y = Sin(e) }",
        ["relu", "neg", "exp", "sin"],
    ),
}

MOVED = {
    "columns": "(float[4,16] x) => (float[4,2] y) { s = Slice(x, one, three, one) y = Relu(s) }",
    "every other row": (
        "(float[4,16] x) => (float[2,16] y) { s = Slice(x, zero, far, zero, two) y = Relu(s) }"
    ),
    "columns joined": (
        "(float[4,16] x) => (float[4,32] y)"
        "{ a = Relu(x) b = Neg(x) c = Concat<axis = 1>(a, b) y = Exp(c) }"
    ),
    "the same twice": (
        "(float[4,16] x) => (float[8,16] y){ a = Relu(x) c = Concat<axis = 0>(a, a) y = Exp(c) }"
    ),
    "an offset that is not aligned": (
        "(float[4,3] x) => (float[1,3] y) { s = Slice(x, one, two, zero) y = Relu(s) }"
    ),
}


def compiled_kernels(text):
    """Run it beside ONNX Runtime; return what is launched, in order."""
    model = model_of(text, _used(text))
    feeds = feeds_of(model)
    with on_cpu(graph_of(model)) as device:
        for got, expected in zip(device.run(feeds), run_onnxruntime(model, feeds), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-6)
        return [step.operator.lower() for step in device.compiled.steps if step.is_launched]


def _used(text):
    return {name: array for name, array in _INT64.items() if name in text}


@pytest.mark.parametrize(("text", "kernels"), IN_PLACE.values(), ids=IN_PLACE)
def test_contiguous_stretches_stay_where_they_are(text, kernels):
    assert compiled_kernels(text) == kernels


@pytest.mark.parametrize("text", MOVED.values(), ids=MOVED)
def test_everything_else_is_moved_by_a_kernel(text):
    moving = {"slice", "concat", "split", "gather"}
    assert moving & set(compiled_kernels(text))
