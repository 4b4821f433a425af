"""Attention as exporters write it: projected or not, hidden by lengths, keys, pairs and flags."""

from __future__ import annotations

import numpy as np
import onnx

from tests.unit.pass_driver import model_of

BATCH, LENGTH, WIDTH, HEADS = 2, 6, 24, 3
RANDOM = np.random.default_rng(5)
VALUES = {
    "w": RANDOM.standard_normal((WIDTH, 3 * WIDTH)).astype(np.float32) / 3,
    "narrow": RANDOM.standard_normal((WIDTH, 2 * WIDTH + 12)).astype(np.float32) / 3,
    "b": RANDOM.standard_normal(3 * WIDTH).astype(np.float32),
    "lengths": np.array([4, 6], np.int32),
    "seen": np.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 1, 1, 1]], np.int32),
    "pairs": np.tril(np.ones((BATCH, LENGTH, LENGTH), np.int32)),
    "added": RANDOM.standard_normal((BATCH, HEADS, LENGTH, LENGTH)).astype(np.float32),
    "flags": np.tril(np.ones((LENGTH, LENGTH), np.bool_)),
    "nothing": np.array([[True] * 6, [False] * 6, *[[True, False] * 3] * 4]),
}
X = "(float[2,6,24] x) => (float[2,6,24] y)"
QKV = "(float[2,6,24] q, float[2,6,24] k, float[2,6,24] v) => (float[2,6,24] y)"
ONE = "y = com.microsoft.Attention <num_heads = 3{more}> (x, w, {rest})"
SEVERAL = "y = com.microsoft.MultiHeadAttention <num_heads = 3{more}> (q, k, v, {rest})"


def one(rest: str, more: str = "") -> str:
    return f"{X} {{ {ONE.format(rest=rest, more=more)} }}"


def several(rest: str, more: str = "") -> str:
    return f"{QKV} {{ {SEVERAL.format(rest=rest, more=more)} }}"


def ours(rest: str, more: str = "") -> str:
    return f"{QKV} {{ y = Attention <q_num_heads = 3, kv_num_heads = 3{more}> (q, k, v{rest}) }}"


EXPANDED = {
    "projected": one("b"),
    "projected without bias": one(""),
    "projected by lengths": one("b, lengths"),
    "projected by keys": one("b, seen"),
    "projected by pairs": one("b, pairs", ", mask_filter_value = -50000.0"),
    "projected and added": one("b, , , added"),
    "projected, hidden and added": one("b, seen, , added", ", scale = 0.3"),
    "several": several(""),
    "several with bias": several("b"),
    "several by keys": several("b, seen"),
    "several by lengths": several(", lengths"),
    "several and added": several(", , added"),
    "several, hidden and added": several("b, seen, added", ", scale = 0.3"),
    "attention": ours(""),
    "attention by flags": ours(", flags", ", scale = 0.3"),
    "attention of nothing": ours(", nothing"),
    "attention and added": ours(", added"),
}
KEPT_WHOLE = {
    "causal": one("b", ", unidirectional = 1"),
    "causal of several": several("b", ", unidirectional = 1"),
    "causal attention": ours("", ", is_causal = 1"),
}


def attention_model(text: str) -> onnx.ModelProto:
    """Return a model of one of these texts, with the constants that it names."""
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    # The newest of the operators; ONNX Runtime knows it.
    return model_of(text, {name: VALUES[name] for name in VALUES if name in words}, opset=23)
