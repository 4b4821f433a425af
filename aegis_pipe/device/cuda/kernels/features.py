"""Feature preparation of ai.onnx.ml, and counts of n-grams."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from aegis_pipe.device.cuda.faults import INDEX_OUT_OF_RANGE
from aegis_pipe.device.cuda.kernels.each import each, given, results, simple_kernel
from aegis_pipe.device.cuda.kernels.operands import integer, number, required, result, text
from aegis_pipe.device.cuda.kernels.pointwise import (
    Mapping,
    Pointwise,
    Read,
    launch_mapping,
    pointwise_kernel,
)
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.device.cuda.kernels.source import (
    NUMBERS,
    computed,
    dense_strides,
    literal,
    stored,
    table,
)
from aegis_pipe.device.requests import array
from aegis_pipe.kernel import KernelRequest

_TABLE_MAX = 1 << 18


def _binarise(request: KernelRequest) -> Pointwise | None:
    dtype = required(request).dtype
    if dtype not in NUMBERS:
        return None
    return Pointwise(f"((double){{0}} > {number(request, 'threshold')!r} ? 1 : 0)")


def _bind_scaler(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    offset, scale = array(request, "offset"), array(request, "scale")
    width = required(request).shape[-1]

    def at(values: np.ndarray) -> str:
        return f"i % {width}" if values.size > 1 else "0"

    statements = f"y[i] = ((float)get(x[i]) - OFFSET[{at(offset)}]) * SCALE[{at(scale)}];"
    extra = table("OFFSET", offset, "float") + table("SCALE", scale, "float")
    parameters = [*given(binding, {"x": 0}), *results(binding, {"y": 0})]
    return each(binding, result(request).element_count, statements, parameters, extra=extra)


def _bind_imputer(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    spec, imputed = required(request), array(request, "imputed")
    kind, replaced = computed(spec.dtype), number(request, "replaced")
    missing = "v != v" if math.isnan(replaced) else f"v == {literal(replaced, kind)}"
    at = f"i % {spec.shape[-1]}" if imputed.size > 1 else "0"
    statements = f"""
  const {kind} v = get(x[i]);
  y[i] = To<{stored(spec.dtype)}>::of({missing} ? IMPUTED[{at}] : v);"""
    extra = table("IMPUTED", imputed, kind)
    parameters = [*given(binding, {"x": 0}), *results(binding, {"y": 0})]
    return each(binding, spec.element_count, statements, parameters, extra=extra)


def _accepts_rows(request: KernelRequest) -> bool:
    shape = required(request).shape
    return len(shape) > 0 and shape[-1] > 0


def _bind_normaliser(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    width, kind = required(request).shape[-1], text(request, "norm")
    start = "-INF()" if kind == "MAX" else "0"
    step = {"MAX": "fmaxf(a, v)", "L1": "a + fabsf(v)", "L2": "a + v * v"}[kind]
    root = "a = sqrtf(a);" if kind == "L2" else ""
    statements = f"""
  float a = {start};
  for (int c = 0; c < {width}; ++c) {{
    const float v = (float)get(x[i * {width} + c]); a = {step}; }}
  {root} if (a == 0) a = 1; // A row of zeros stays one.
  for (int c = 0; c < {width}; ++c) y[i * {width} + c] = (float)get(x[i * {width} + c]) / a;"""
    parameters = [*given(binding, {"x": 0}), *results(binding, {"y": 0})]
    count = required(request).element_count // width
    return each(binding, count, statements, parameters, threads=64)


def _bind_vectoriser(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    target = result(request)
    launches: list[Enqueue] = []
    column = 0
    for spec, address in zip(request.inputs, binding.inputs, strict=True):
        assert spec is not None
        assert address is not None
        shape = (1, *spec.shape) if len(spec.shape) == 1 else spec.shape
        reads = (Read(spec.dtype, dense_strides(shape)),)
        copy = Pointwise("{0}", in_place=False)
        mapping = Mapping(shape, reads, target.dtype, copy, dense_strides(target.shape), column)
        launches += launch_mapping(binding, mapping, [address], binding.outputs[0])
        column += shape[1]
    return launches


_FIND = """
template <typename K, typename T> __device__ int place_of(K keys, int n, T v) {
  int low = 0, high = n;
  while (low < high) { const int middle = (low + high) / 2;
    if (keys[middle] < v || (v != v && keys[middle] == keys[middle])) low = middle + 1;
    else high = middle; }
  return low < n && (keys[low] == v || (keys[low] != keys[low] && v != v)) ? low : -1; }
"""


def _accepts_categories(request: KernelRequest) -> bool:
    return 0 < len(array(request, "categories")) <= _TABLE_MAX


def _bind_one_hot(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    categories = array(request, "categories")
    count = len(categories)
    order = np.argsort(categories, kind="stable")
    refuse = ""
    if integer(request, "zeros") == 0:
        refuse = f"if (at < 0) *fault = {INDEX_OUT_OF_RANGE};"
    statements = f"""
  const int at = place_of(KEYS, {count}, (i64)get(x[i / {count}])); {refuse}
  y[i] = at >= 0 && ORDER[at] == i % {count} ? 1.0f : 0.0f; (void)fault;"""
    extra = table("KEYS", categories[order], "i64") + table("ORDER", order, "i32") + _FIND
    parameters = [*given(binding, {"x": 0}), *results(binding, {"y": 0})]
    target = result(request)
    return each(binding, target.element_count, statements, parameters, extra=extra, faults=True)


def _accepts_labels(request: KernelRequest) -> bool:
    return bool(request.attributes) and 0 < len(array(request, "keys")) <= _TABLE_MAX


def _bind_labels(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    keys, values, default = (array(request, name) for name in ("keys", "values", "default"))
    kind = "double" if keys.dtype.kind == "f" else "i64"
    target = result(request)
    value = computed(target.dtype)
    statements = f"""
  const int at = place_of(KEYS, {len(keys)}, ({kind})get(x[i]));
  y[i] = To<{stored(target.dtype)}>::of(at < 0 ? {literal(default.item(), value)} : VALUES[at]);"""
    extra = table("KEYS", keys, kind) + table("VALUES", values, value) + _FIND
    parameters = [*given(binding, {"x": 0}), *results(binding, {"y": 0})]
    return each(binding, target.element_count, statements, parameters, extra=extra)


# --- TfIdfVectorizer --------------------------------------------------------------------------


def _accepts_words(request: KernelRequest) -> bool:
    integers_only = required(request).dtype in (np.int32, np.int64)
    return integers_only and array(request, "grams").size <= _TABLE_MAX


def _bind_words(binding: Binding) -> Sequence[Enqueue]:
    """Every thread counts what belongs to one column of one row."""
    request = binding.request
    words, width = required(request).shape[-1], result(request).shape[-1]
    grams, columns = array(request, "grams"), array(request, "columns")
    shortest, longest = integer(request, "shortest"), integer(request, "longest")
    limit = "if (many > 1) many = 1;" if integer(request, "binary") else ""
    statements = f"""
  const long long row = i / {width}, column = i % {width};
  float many = 0;
  for (int gram = 0; gram < {len(grams)}; ++gram) if (COLUMNS[gram] == column) {{
    const i64* g = GRAMS + gram * {longest + 1}; const int n = (int)g[0];
    if (n < {shortest} || n > {longest}) continue;
    for (int gap = 1; gap <= (n > 1 ? {integer(request, "skips") + 1} : 1); ++gap)
      for (int start = 0; start + (n - 1) * gap < {words}; ++start) {{
        bool same = true;
        for (int w = 0; w < n; ++w) same &= (i64)x[row * {words} + start + w * gap] == g[1 + w];
        many += same; }} }}
  {limit} y[i] = many * WEIGHTS[column];"""
    extra = (
        table("GRAMS", grams, "i64")
        + table("COLUMNS", columns, "i64")
        + table("WEIGHTS", array(request, "weights"), "float")
    )
    parameters = [*given(binding, {"x": 0}), *results(binding, {"y": 0})]
    return each(binding, result(request).element_count, statements, parameters, extra=extra)


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    pointwise_kernel("ai.onnx.ml.Binarizer", _binarise),
    simple_kernel("scaler", ("ai.onnx.ml.Scaler",), _bind_scaler, dtypes=NUMBERS),
    simple_kernel("imputer", ("ai.onnx.ml.Imputer",), _bind_imputer, dtypes=NUMBERS),
    simple_kernel(
        "normaliser",
        ("ai.onnx.ml.Normalizer",),
        _bind_normaliser,
        accepts=_accepts_rows,
        dtypes=NUMBERS,
    ),
    simple_kernel(
        "feature_vectoriser", ("ai.onnx.ml.FeatureVectorizer",), _bind_vectoriser, dtypes=NUMBERS
    ),
    simple_kernel(
        "one_hot_encoder",
        ("ai.onnx.ml.OneHotEncoder",),
        _bind_one_hot,
        accepts=_accepts_categories,
        dtypes=NUMBERS,
    ),
    simple_kernel(
        "label_encoder",
        ("ai.onnx.ml.LabelEncoder",),
        _bind_labels,
        accepts=_accepts_labels,
        dtypes=NUMBERS,
    ),
    simple_kernel("word_counts", ("TfIdfVectorizer",), _bind_words, accepts=_accepts_words),
)
