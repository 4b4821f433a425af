"""Models that are one chain on the GPU, for tests with one and without."""

from __future__ import annotations

import numpy as np

CONSTANTS = {
    "one": np.array(1, np.float32),
    "two": np.array(2, np.float32),
    "three": np.array(3, np.float32),
    "six": np.array(6, np.float32),
    "zero": np.array(0, np.float32),
    "row": np.random.default_rng(0).standard_normal(40).astype(np.float32),
    "mean": np.array([0.5, 0.4, 0.3], np.float32).reshape(3, 1, 1),
    "deviation": np.array([0.2, 0.3, 0.1], np.float32).reshape(3, 1, 1),
}

MODELS = {
    "hard swish": "(float[2,3,401] x) => (float[2,3,401] y)"
    " { a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six) }",
    "preprocessing": "(uint8[2,3,30,30] x) => (float[2,3,30,30] y)"
    " { a = Cast <to=1> (x) b = Div(a, six) c = Sub(b, mean) d = Div(c, deviation)"
    " y = Clip(d, zero, six) }",
    # A product, then a sum, six times over: each a contraction that must not be.
    "products and sums": "(float[9,40] x, float[9,1] z) => (float[9,40] y)"
    " { a = Mul(x, row) b = Add(a, z) c = Mul(b, b) d = Sub(c, row) e = Pow(d, two)"
    " f = Add(e, x) g = Mul(f, z) y = Sub(x, g) }",
    # Functions that end with a product, before those that begin with a sum.
    "functions": "(float[9,40] x) => (float[9,40] y)"
    " { a = LeakyRelu(x) b = com.microsoft.FastGelu(a) c = com.microsoft.QuickGelu(b)"
    " d = com.microsoft.FastGelu(c) e = Exp(d) f = HardSigmoid(e) g = HardSwish(f) h = Mul(g, x)"
    " i = com.microsoft.FastGelu(h) j = Sigmoid(i) k = Tanh(j) y = Add(k, x) }",
    "mask": "(float[3,40] x, int64[3,1] n, int64[40] i) => (float[3,40] y)"
    " { l = Less(i, n) p = Greater(x, zero) b = And(l, p) o = Not(b) e = Log(x)"
    " y = Where(o, e, one) }",
    "result is a truth value": "(float[3,40] x) => (bool[3,40] y)"
    " { a = Mul(x, row) b = Abs(a) y = Less(b, one) }",
}
