"""The models of ai.onnx.ml: trees, linear models, support vector machines; their tables are code.

A thread computes one score of one sample, and afterwards one thread finishes a sample's scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from aegis_pipe.device.cuda.kernels.each import each, given, results, simple_kernel
from aegis_pipe.device.cuda.kernels.operands import integer, number, required, text
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.device.cuda.kernels.source import NUMBERS, table
from aegis_pipe.device.requests import array
from aegis_pipe.kernel import KernelRequest

_TABLE_MAX = 1 << 18
"""Numbers in a source; more would take longer to compile than to be worth it."""
_COUPLING_STEPS_MAX = 100


def _rows_and_width(request: KernelRequest) -> tuple[int, int]:
    """Return the samples and the features of X; a vector is one sample."""
    shape = required(request).shape
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])


def _is_classifier(request: KernelRequest) -> bool:
    return request.operator.endswith("Classifier")


def _has_one_score(request: KernelRequest) -> bool:
    return _is_classifier(request) and bool(text(request, "second_class"))


def _fits(request: KernelRequest) -> bool:
    tables = [value for value in request.attributes.values() if isinstance(value, np.ndarray)]
    return sum(value.size for value in tables) <= _TABLE_MAX and required(request).dtype in NUMBERS


def _finishes(request: KernelRequest) -> bool:
    """Accept what is the same everywhere: quantiles of one score for two classes are not."""
    probit = text(request, "post_transform") == "PROBIT"
    return len(array(request, "classes")) > 0 and not (
        probit and request.attributes.get("second_class")
    )


# --- Finishing the scores of a sample ---------------------------------------------------------

_TRANSFORMS = """
__device__ __forceinline__ float logistic(float v) { return 1 / (1 + expf(-v)); }
__device__ void softmax(float* s, int n, bool zeros) {
  float m = s[0], total = 0;
  for (int c = 1; c < n; ++c) m = fmaxf(m, s[c]);
  for (int c = 0; c < n; ++c) {
    const bool takes_part = !zeros || fabsf(s[c]) > 1e-7f;
    s[c] = takes_part ? expf(s[c] - m) : 0; total += s[c]; }
  for (int c = 0; c < n; ++c) s[c] /= total; }
// Quantiles of the normal distribution, by Winitzki's inverse of erf (2008).
__device__ __forceinline__ float probit(float v) {
  const float x = 2 * v - 1, l = logf((1 - x) * (1 + x));
  const float half = 2 / (3.14159265358979f * 0.147f) + l / 2;
  const float root = sqrtf(sqrtf(half * half - l / 0.147f) - half);
  return copysignf(root, x) * 1.41421356237310f; }
"""


def _transform(request: KernelRequest, width: int) -> str:
    """Return statements that apply the post-transform to the row `s`."""
    loop = f"for (int c = 0; c < {width}; ++c) s[c] = "
    return {
        "NONE": "",
        "LOGISTIC": f"{loop}logistic(s[c]);",
        "SOFTMAX": f"softmax(s, {width}, false);",
        "SOFTMAX_ZERO": f"softmax(s, {width}, true);",
        "PROBIT": f"{loop}probit(s[c]);",
    }[text(request, "post_transform")]


def _second_class(request: KernelRequest) -> str:
    """Return statements that fill both scores from the one in column 1."""
    if text(request, "post_transform") == "LOGISTIC":
        return "s[0] = logistic(-s[1]); s[1] = logistic(s[1]);"
    return "s[0] = 1 - s[1];" if text(request, "second_class") == "complement" else "s[0] = -s[1];"


def _choice(request: KernelRequest, threshold: float | None) -> str:
    """Return a C expression of the label, from the raw scores `s`."""
    if threshold is not None:
        return f"CLASSES[s[1] > {float(np.float32(threshold))!r}f ? 1 : 0]"
    count = len(array(request, "classes"))
    return f"CLASSES[first_largest(s, {count})]"


_LARGEST = """
template <typename T> __device__ __forceinline__ int first_largest(const T* s, int n) {
  int best = 0;
  for (int c = 1; c < n; ++c) if (s[c] > s[best]) best = c;
  return best; }
"""


def _score_columns(request: KernelRequest) -> int:
    return 2 if _has_one_score(request) else len(array(request, "classes"))


def _spared_scores(request: KernelRequest) -> int:
    """Return room for the scores of a classifier of which only the labels are wanted."""
    wanted = len(request.outputs) > 1 and request.outputs[1] is not None
    rows, _ = _rows_and_width(request)
    return 0 if wanted else max(4, 4 * rows * _score_columns(request))


def _scores(binding: Binding, free: int) -> tuple[str, int]:
    """Return the declaration and the address of the scores."""
    target = results(binding, {"scores": 1})
    return target[0] if target else ("float* scores", free)


def _finish_classes(
    binding: Binding, scores: tuple[str, int], threshold: float | None
) -> list[Enqueue]:
    """Launch what writes labels and finishes the scores."""
    request = binding.request
    rows, width = _rows_and_width(request)[0], _score_columns(request)
    labels = results(binding, {"labels": 0})
    finish = _second_class(request) if _has_one_score(request) else _transform(request, width)
    chosen = f"labels[i] = {_choice(request, threshold)};" if labels else ""
    statements = f"float* s = scores + i * {width}; {chosen} {finish}"
    extra = table("CLASSES", array(request, "classes"), "i64") + _LARGEST + _TRANSFORMS
    return each(binding, rows, statements, [scores, *labels], extra=extra)


# --- Trees ------------------------------------------------------------------------------------


def _trees(binding: Binding, scores: tuple[str, int], columns: int, first: int) -> list[Enqueue]:
    """Launch the walk through all trees, for each sample and target."""
    request = binding.request
    rows, width = _rows_and_width(request)
    thresholds, weights = array(request, "thresholds"), array(request, "weights")
    kind = "double" if thresholds.dtype == np.float64 else "float"
    targets, inner = weights.shape[1], len(array(request, "features"))
    roots, aggregate = array(request, "roots"), text(request, "aggregate")
    combine = {"MIN": "w < a ? w : a", "MAX": "w > a ? w : a"}.get(aggregate, "a + w")
    start = {"MIN": "INF()", "MAX": "-INF()"}.get(aggregate, "0")
    end = "a"
    if aggregate == "AVERAGE":
        end = f"a / {len(roots)}"
    elif aggregate in ("MIN", "MAX"):
        # No tree has a weight for this target.
        end = "(a - a == 0 ? a : (A)0)"
    goes_on = array(request, "missing_goes_on")
    missing = " || (GOES_ON[node] && v != v)" if goes_on.any() else ""
    statements = f"""
  typedef {kind} A;
  const long long n = i / {targets}; const int target = (int)(i % {targets});
  A a = {start};
  for (int tree = 0; tree < {len(roots)}; ++tree) {{
    int node = ROOTS[tree];
    while (node < {inner}) {{
      const A v = (A)get(x[n * {width} + FEATURES[node]]);
      node = CHILDREN[2 * node + (v <= THRESHOLDS[node]{missing} ? 1 : 0)]; }}
    const A w = WEIGHTS[(node - {inner}) * {targets} + target];
    a = {combine}; }}
  {scores[0].rpartition(" ")[2]}[n * {columns} + {first} + target] = {end} + BASE[target];"""
    extra = (
        table("ROOTS", roots, "i32")
        + table("FEATURES", array(request, "features"), "i32")
        + table("THRESHOLDS", thresholds, kind)
        + table("CHILDREN", array(request, "children"), "i32")
        + table("WEIGHTS", weights, kind)
        + table("BASE", array(request, "base_values"), kind)
        + (table("GOES_ON", goes_on.astype(np.int32), "u8") if missing else "")
    )
    parameters = [*given(binding, {"x": 0}), scores]
    return each(binding, rows * targets, statements, parameters, extra=extra)


def _accepts_trees(request: KernelRequest) -> bool:
    if not _fits(request) or not len(array(request, "roots")):
        return False
    if not _is_classifier(request):
        return True
    return integer(request, "is_clear") == 1 and _finishes(request)


def _bind_trees(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    if _is_classifier(request):
        scores = _scores(binding, binding.workspace)
        columns, first = _score_columns(request), int(_has_one_score(request))
        threshold = number(request, "threshold")
        return [
            *_trees(binding, scores, columns, first),
            *_finish_classes(binding, scores, None if math.isnan(threshold) else threshold),
        ]
    (target,) = results(binding, {"y": 0})
    columns = array(request, "weights").shape[1]
    return [*_trees(binding, target, columns, 0), *_finish_rows(binding, target, columns)]


def _finish_rows(binding: Binding, target: tuple[str, int], columns: int) -> list[Enqueue]:
    """Launch the post-transform of a regression, if there is one."""
    request = binding.request
    finish = _transform(request, columns)
    if not finish:
        return []
    rows, _ = _rows_and_width(request)
    statements = f"float* s = y + i * {columns}; {finish}"
    return each(binding, rows, statements, [target], extra=_TRANSFORMS)


def _spared_of_classifier(request: KernelRequest) -> int:
    return _spared_scores(request) if _is_classifier(request) else 0


# --- Linear models ----------------------------------------------------------------------------


def _accepts_linear(request: KernelRequest) -> bool:
    return _fits(request) and (not _is_classifier(request) or _finishes(request))


def _bind_linear(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    rows, width = _rows_and_width(request)
    coefficients = array(request, "coefficients")
    targets = len(array(request, "intercepts"))
    if _is_classifier(request):
        scores = _scores(binding, binding.workspace)
        columns, first = _score_columns(request), int(_has_one_score(request))
    else:
        (scores,) = results(binding, {"y": 0})
        columns, first = targets, 0
    name = scores[0].rpartition(" ")[2]
    statements = f"""
  const long long n = i / {targets}; const int target = (int)(i % {targets});
  float a = 0;
  for (int f = 0; f < {width}; ++f)
    a += (float)get(x[n * {width} + f]) * COEFFICIENTS[target * {width} + f];
  {name}[n * {columns} + {first} + target] = a + INTERCEPTS[target];"""
    extra = table("COEFFICIENTS", coefficients, "float") + table(
        "INTERCEPTS", array(request, "intercepts"), "float"
    )
    parameters = [*given(binding, {"x": 0}), scores]
    launches = each(binding, rows * targets, statements, parameters, extra=extra)
    if not _is_classifier(request):
        return launches + _finish_rows(binding, scores, columns)
    threshold = 0.0 if _has_one_score(request) else None
    return launches + _finish_classes(binding, scores, threshold)


# --- Support vector machines ------------------------------------------------------------------


def _accepts_machine(request: KernelRequest) -> bool:
    """Accept all but a linear machine of two classes, whose labels runtimes disagree about."""
    if not _is_classifier(request):
        return _fits(request)
    pairs = bool(integer(request, "by_pairs"))
    return _fits(request) and _finishes(request) and (pairs or len(array(request, "classes")) > 2)


def _machine_columns(request: KernelRequest) -> int:
    """Return how many scores a sample has: those of classes, or of pairs."""
    if _has_one_score(request):
        return 2
    if len(request.outputs) > 1 and (scores := request.outputs[1]) is not None:
        return scores.shape[1]
    is_calibrated = len(array(request, "prob_a")) > 0
    return (
        len(array(request, "classes"))
        if is_calibrated
        else (array(request, "coefficients").shape[1])
    )


def _machine_doubles(request: KernelRequest) -> tuple[int, int, int]:
    """Return room for similarities, decisions, and what votes and probabilities need."""
    rows, _ = _rows_and_width(request)
    vectors, decisions = array(request, "coefficients").shape
    classes = len(array(request, "classes")) if _is_classifier(request) else 0
    return rows * vectors, rows * decisions, rows * (2 * classes * classes + 3 * classes)


def _machine_workspace(request: KernelRequest) -> int:
    size = 8 * sum(_machine_doubles(request))
    if _is_classifier(request):
        size += 4 * _rows_and_width(request)[0] * _machine_columns(request)
    return size


def _decide(binding: Binding) -> list[Enqueue]:
    """Launch what writes K(X, vectors) coefficients + rho."""
    request = binding.request
    rows, width = _rows_and_width(request)
    coefficients, vectors = array(request, "coefficients"), array(request, "support_vectors")
    count, decisions = coefficients.shape
    kernel = text(request, "kernel")
    gamma, coef0, degree = (number(request, name) for name in ("gamma", "coef0", "degree"))
    term = "{ const double d = u - v; a += d * d; }" if kernel == "RBF" else "a += u * v;"
    value = {
        "LINEAR": "a",
        "RBF": f"exp(-({gamma!r}) * a)",
        "POLY": f"pow({gamma!r} * a + ({coef0!r}), (double){degree!r})",
        "SIGMOID": f"tanh({gamma!r} * a + ({coef0!r}))",
    }[kernel]
    similarity = f"""
  const long long n = i / {count}; const int vector = (int)(i % {count});
  double a = 0;
  for (int f = 0; f < {width}; ++f) {{
    const double u = (double)get(x[n * {width} + f]), v = VECTORS[vector * {width} + f]; {term} }}
  k[i] = {value};"""
    decision = f"""
  const long long n = i / {decisions}; const int pair = (int)(i % {decisions});
  double a = 0;
  for (int v = 0; v < {count}; ++v) a += k[n * {count} + v] * COEFFICIENTS[v * {decisions} + pair];
  d[i] = a + RHO[pair];"""
    first, _, _ = _machine_doubles(request)
    similarities = ("double* k", binding.workspace)
    decided = ("double* d", binding.workspace + 8 * first)
    return [
        *each(
            binding,
            rows * count,
            similarity,
            [*given(binding, {"x": 0}), similarities],
            extra=table("VECTORS", vectors, "double"),
        ),
        *each(
            binding,
            rows * decisions,
            decision,
            [similarities, decided],
            extra=table("COEFFICIENTS", coefficients, "double")
            + table("RHO", array(request, "rho"), "double"),
        ),
    ]


def _bind_regressor(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    rows, _ = _rows_and_width(request)
    first, _, _ = _machine_doubles(request)
    value = "(d[i] > 0 ? 1.0f : -1.0f)" if integer(request, "one_class") else "(float)d[i]"
    (target,) = results(binding, {"y": 0})
    decided = ("const double* d", binding.workspace + 8 * first)
    return [
        *_decide(binding),
        *each(binding, rows, f"y[i] = {value};", [decided, target]),
        *_finish_rows(binding, target, 1),
    ]


def _coupling(classes: int) -> str:
    """Return statements that write class probabilities to `p` from pairwise ones `r`.

    The second method of Wu, Lin and Weng, "Probability estimates for multi-class classification
    by pairwise coupling" (2004), with the stopping rule of LIBSVM.
    """
    return f"""
  for (int a = 0; a < {classes}; ++a) {{
    p[a] = 1.0 / {classes};
    double diagonal = 0;
    for (int b = 0; b < {classes}; ++b) if (b != a) {{
      diagonal += r[b * {classes} + a] * r[b * {classes} + a];
      q[a * {classes} + b] = -r[b * {classes} + a] * r[a * {classes} + b]; }}
    q[a * {classes} + a] = diagonal; }}
  for (int step = 0; step < {_COUPLING_STEPS_MAX}; ++step) {{
    double value = 0, worst = 0;
    for (int a = 0; a < {classes}; ++a) {{
      double g = 0;
      for (int b = 0; b < {classes}; ++b) g += q[a * {classes} + b] * p[b];
      gradient[a] = g; value += p[a] * g; }}
    for (int a = 0; a < {classes}; ++a) worst = fmax(worst, fabs(gradient[a] - value));
    if (worst < 0.005 / {classes}) break;
    for (int t = 0; t < {classes}; ++t) {{
      const double own = q[t * {classes} + t];
      const double change = (value - gradient[t]) / own, grown = 1 + change;
      value = (value + change * (change * own + 2 * gradient[t])) / (grown * grown);
      for (int a = 0; a < {classes}; ++a)
        gradient[a] = (gradient[a] + change * q[t * {classes} + a]) / grown;
      p[t] += change;
      for (int a = 0; a < {classes}; ++a) p[a] /= grown; }} }}"""


def _bind_machine(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    rows, _ = _rows_and_width(request)
    similarities, decided, spare = _machine_doubles(request)
    decisions, classes = array(request, "coefficients").shape[1], len(array(request, "classes"))
    columns = _machine_columns(request)
    work = binding.workspace + 8 * (similarities + decided)
    scores, labels = _scores(binding, work + 8 * spare), results(binding, {"labels": 0})
    by_pairs = bool(integer(request, "by_pairs"))
    is_calibrated = len(array(request, "prob_a")) > 0
    vote = f"""
  for (int c = 0; c < {classes}; ++c) votes[c] = 0;
  {{ int pair = 0;
    for (int a = 0; a < {classes}; ++a) for (int b = a + 1; b < {classes}; ++b, ++pair)
      votes[d[pair] > 0 ? a : b] += 1; }}"""
    ranking = "votes" if by_pairs else "d"
    chosen = f"labels[i] = CLASSES[first_largest({ranking}, {classes})];" if labels else ""
    if is_calibrated:
        write = f"""
  {{ int pair = 0;
    for (int a = 0; a < {classes}; ++a) for (int b = a + 1; b < {classes}; ++b, ++pair) {{
      double chance = (1 - tanh((d[pair] * PROB_A[pair] + PROB_B[pair]) / 2)) / 2;
      chance = fmin(fmax(chance, 1e-7), 1 - 1e-7);
      r[a * {classes} + b] = chance; r[b * {classes} + a] = 1 - chance; }} }}
  {_coupling(classes)}
  for (int c = 0; c < {classes}; ++c) s[c] = (float)p[c];"""
    else:
        first = int(_has_one_score(request))
        write = f"for (int c = 0; c < {decisions}; ++c) s[c + {first}] = (float)d[c];"
    finish = _second_class(request) if _has_one_score(request) else _transform(request, columns)
    statements = f"""
  const double* d = decided + i * {decisions};
  double* r = work + i * {2 * classes * classes + 3 * classes};
  double* q = r + {classes * classes}; double* p = q + {classes * classes};
  double* gradient = p + {classes}; double* votes = gradient + {classes};
  float* s = scores + i * {columns};
  (void)q; (void)p; (void)gradient; (void)votes;
  {vote if by_pairs else ""} {chosen} {write} {finish}"""
    extra = (
        table("CLASSES", array(request, "classes"), "i64")
        + table("PROB_A", array(request, "prob_a"), "double")
        + table("PROB_B", array(request, "prob_b"), "double")
        + _LARGEST
        + _TRANSFORMS
    )
    parameters = [
        ("const double* decided", binding.workspace + 8 * similarities),
        ("double* work", work),
        scores,
        *labels,
    ]
    return [*_decide(binding), *each(binding, rows, statements, parameters, extra=extra)]


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    simple_kernel(
        "tree_ensemble",
        ("ai.onnx.ml.TreeEnsemble", "ai.onnx.ml.TreeEnsembleClassifier"),
        _bind_trees,
        accepts=_accepts_trees,
        workspace=_spared_of_classifier,
    ),
    simple_kernel(
        "linear_model",
        ("ai.onnx.ml.LinearRegressor", "ai.onnx.ml.LinearClassifier"),
        _bind_linear,
        accepts=_accepts_linear,
        workspace=_spared_of_classifier,
    ),
    simple_kernel(
        "svm_regressor",
        ("ai.onnx.ml.SVMRegressor",),
        _bind_regressor,
        accepts=_accepts_machine,
        workspace=_machine_workspace,
    ),
    simple_kernel(
        "svm_classifier",
        ("ai.onnx.ml.SVMClassifier",),
        _bind_machine,
        accepts=_accepts_machine,
        workspace=_machine_workspace,
    ),
)
