"""Expressions of the elementwise operators."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from aegis_pipe.device.cuda.kernels.operands import integer, number, operand, required, result, text
from aegis_pipe.device.cuda.kernels.pointwise import Define, Pointwise, pointwise_kernel
from aegis_pipe.device.cuda.kernels.registry import CudaKernel
from aegis_pipe.device.cuda.kernels.source import (
    ALL,
    BOOL,
    FLOAT64,
    FLOATS,
    HALF_FLOATS,
    INTEGERS,
    NUMBERS,
    SIGNED,
    UNSIGNED,
    Dtypes,
    computed,
    literal,
)
from aegis_pipe.kernel import KernelRequest

_BOOL: Dtypes = frozenset({BOOL})

FUNCTIONS = """
template <typename T> __device__ __forceinline__ T vmax(T a, T b) { return a > b ? a : b; }
template <typename T> __device__ __forceinline__ T vmin(T a, T b) { return a < b ? a : b; }
__device__ __forceinline__ float vmax(float a, float b) {
  return a != a ? a : b != b ? b : fmaxf(a, b); }
__device__ __forceinline__ float vmin(float a, float b) {
  return a != a ? a : b != b ? b : fminf(a, b); }
__device__ __forceinline__ double vmax(double a, double b) {
  return a != a ? a : b != b ? b : fmax(a, b); }
__device__ __forceinline__ double vmin(double a, double b) {
  return a != a ? a : b != b ? b : fmin(a, b); }
template <typename T> __device__ __forceinline__ T sigmoid(T x) {
  if (x >= 0) return (T)1 / ((T)1 + exp(-x));
  T e = exp(x); return e / ((T)1 + e); }
template <typename T> __device__ __forceinline__ T softplus(T x) {
  return (x > 0 ? x : (T)0) + log1p(exp(-(x > 0 ? x : -x))); }
template <typename T> __device__ __forceinline__ T ipow(T b, i64 e) {
  if (e < 0) return b == (T)1 ? (T)1 : (b == (T)-1 ? ((e & 1) ? b : (T)1) : (T)0);
  T r = 1; while (e) { if (e & 1) r *= b; b *= b; e >>= 1; } return r; }
template <typename T> __device__ __forceinline__ T imod(T a, T b) {
  if (b == 0) return 0;
  T r = a % b; return r != 0 && ((r < 0) != (b < 0)) ? r + b : r; }
template <typename T> __device__ __forceinline__ T fmodulo(T a, T b) {
  T r = fmod(a, b);
  if (r != 0) { if ((r < 0) != (b < 0)) r += b; } else r = copysign((T)0, b);
  return r; }
template <typename T> __device__ __forceinline__ T divide(T a, T b) {
  return b == 0 ? (T)0 : a / b; }
template <typename T> __device__ __forceinline__ T gelu(T x) {
  return (T)0.5 * x * ((T)1 + erf(x * (T)0.70710678118654752440)); }
__device__ __forceinline__ float power_of_two(float x) {
  float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
// For results in half precision: what |x| loses is |x| times the tail of the normal distribution
// beyond it, whose logarithm is a polynomial (3.3e-6 of the tail); from 5.75 on no half has any.
__device__ __forceinline__ float gelu_of_half(float x) {
  const float a = fminf(fabsf(x), 5.75f);
  float p = -1.8254773967877914e-06f;
  p = fmaf(p, a, 6.143979408079758e-05f);
  p = fmaf(p, a, -0.000929487228859216f);
  p = fmaf(p, a, 0.008504597470164299f);
  p = fmaf(p, a, -0.053954847157001495f);
  p = fmaf(p, a, -0.4584681987762451f);
  p = fmaf(p, a, -1.1512500047683716f);
  p = fmaf(p, a, -0.9999953508377075f);
  return fmaf(-a, power_of_two(p), x < 0 ? 0.0f : x); }
template <typename T> __device__ __forceinline__ T gelu_tanh(T x) {
  return (T)0.5 * x
    * ((T)1 + tanh((T)0.79788456080286535588 * (x + (T)0.044715 * x * x * x))); }
"""

_UNARY: Mapping[str, tuple[str, Dtypes]] = {
    "Neg": ("-{0}", NUMBERS),
    "Sign": ("({0} != {0} ? {0} : ({0} > 0) - ({0} < 0))", NUMBERS),
    "Floor": ("floor({0})", FLOATS),
    "Ceil": ("ceil({0})", FLOATS),
    "Round": ("rint({0})", FLOATS),
    "Reciprocal": ("1 / {0}", FLOATS),
    **{
        name: (f"{function}({{0}})", FLOATS)
        for name, function in {
            "Sqrt": "sqrt",
            "Exp": "exp",
            "Log": "log",
            "Erf": "erf",
            "Sin": "sin",
            "Cos": "cos",
            "Tan": "tan",
            "Asin": "asin",
            "Acos": "acos",
            "Atan": "atan",
            "Sinh": "sinh",
            "Cosh": "cosh",
            "Tanh": "tanh",
            "Asinh": "asinh",
            "Acosh": "acosh",
            "Atanh": "atanh",
            "Sigmoid": "sigmoid",
            "Softplus": "softplus",
        }.items()
    },
    "Softsign": ("{0} / (1 + ({0} < 0 ? -{0} : {0}))", FLOATS),
    "Mish": ("{0} * tanh(softplus({0}))", FLOATS),
    "IsNaN": ("{0} != {0}", FLOATS),
    "Not": ("!{0}", _BOOL),
    "BitwiseNot": ("~{0}", INTEGERS),
    "Relu": ("({0} < 0 ? 0 : {0})", NUMBERS),
}

_BINARY: Mapping[str, tuple[str, Dtypes]] = {
    "Add": ("{0} + {1}", NUMBERS),
    "Sub": ("{0} - {1}", NUMBERS),
    "Mul": ("{0} * {1}", NUMBERS),
    "And": ("{0} && {1}", _BOOL),
    "Or": ("{0} || {1}", _BOOL),
    "Xor": ("{0} != {1}", _BOOL),
    "Equal": ("{0} == {1}", ALL),
    "Greater": ("{0} > {1}", NUMBERS),
    "Less": ("{0} < {1}", NUMBERS),
    "GreaterOrEqual": ("{0} >= {1}", NUMBERS),
    "LessOrEqual": ("{0} <= {1}", NUMBERS),
    "BitwiseAnd": ("{0} & {1}", INTEGERS),
    "BitwiseOr": ("{0} | {1}", INTEGERS),
    "BitwiseXor": ("{0} ^ {1}", INTEGERS),
}


def _simple(expression: str, dtypes: Dtypes) -> Define:
    function = Pointwise(expression, extra=FUNCTIONS)
    return lambda request: function if required(request).dtype in dtypes else None


def _abs(request: KernelRequest) -> Pointwise | None:
    dtype = required(request).dtype
    if dtype in FLOATS:
        return Pointwise("fabs({0})")
    return Pointwise("({0} < 0 ? -{0} : {0})") if dtype in INTEGERS else None


def _with_numbers(template: str, *names: str) -> Define:
    def define(request: KernelRequest) -> Pointwise | None:
        dtype = required(request).dtype
        if dtype not in FLOATS:
            return None
        kind = computed(dtype)
        values = {name: literal(number(request, name), kind) for name in names}
        expression = template
        for name, value in values.items():
            expression = expression.replace(f"<{name}>", value)
        return Pointwise(expression, extra=FUNCTIONS)

    return define


_PARAMETRIC: Mapping[str, Define] = {
    "LeakyRelu": _with_numbers("({0} < 0 ? {0} * <alpha> : {0})", "alpha"),
    "Elu": _with_numbers("({0} < 0 ? <alpha> * expm1({0}) : {0})", "alpha"),
    "Celu": _with_numbers("({0} < 0 ? <alpha> * expm1({0} / <alpha>) : {0})", "alpha"),
    "Selu": _with_numbers("<gamma> * ({0} < 0 ? <alpha> * expm1({0}) : {0})", "alpha", "gamma"),
    "HardSigmoid": _with_numbers(
        "vmin((decltype(get({0})))1, vmax((decltype(get({0})))0, {0} * <alpha> + <beta>))",
        "alpha",
        "beta",
    ),
    "ThresholdedRelu": _with_numbers("({0} > <alpha> ? {0} : 0)", "alpha"),
    "Shrink": _with_numbers(
        "({0} < -<lambd> ? {0} + <bias> : {0} > <lambd> ? {0} - <bias> : 0)", "bias", "lambd"
    ),
    "Swish": _with_numbers("{0} * sigmoid({0} * <alpha>)", "alpha"),
    "HardSwish": _with_numbers(
        "{0} * vmin((decltype(get({0})))1, vmax((decltype(get({0})))0, "
        "{0} / 6 + (decltype(get({0})))0.5))"
    ),
}


def _div(request: KernelRequest) -> Pointwise | None:
    dtype = required(request).dtype
    if dtype in FLOATS:
        return Pointwise("{0} / {1}")
    return Pointwise("divide({0}, {1})", extra=FUNCTIONS) if dtype in INTEGERS else None


def _mod(request: KernelRequest) -> Pointwise | None:
    dtype = required(request).dtype
    if dtype in FLOATS:
        function = "fmod" if integer(request, "fmod") else "fmodulo"
        return Pointwise(f"{function}({{0}}, {{1}})", extra=FUNCTIONS)
    if dtype in UNSIGNED or (dtype in SIGNED and integer(request, "fmod")):
        return Pointwise("({1} == 0 ? 0 : {0} % {1})")
    return Pointwise("imod({0}, {1})", extra=FUNCTIONS) if dtype in SIGNED else None


def _pow(request: KernelRequest) -> Pointwise | None:
    base, exponent = required(request).dtype, required(request, 1).dtype
    if base not in NUMBERS or exponent not in NUMBERS:
        return None
    if base in FLOATS or exponent in FLOATS:
        wide = base not in FLOATS or FLOAT64 in (base, exponent)
        kind = "double" if wide else "float"
        constant = request.constants.get(1)
        squares = constant is not None and constant.size == 1 and float(constant.reshape(())) == 2
        expression = "{0} * {0} + 0 * ({1} - {1})" if squares else "pow({0}, {1})"
        if squares:
            expression = "{0} * {0}"
        return Pointwise(expression, (kind, kind), in_place=base.itemsize == exponent.itemsize)
    kind = "u64" if base in UNSIGNED and base.itemsize == 8 else "i64"
    return Pointwise("ipow({0}, (i64){1})", (kind, "i64"), in_place=False, extra=FUNCTIONS)


def _shift(request: KernelRequest) -> Pointwise | None:
    dtype = required(request).dtype
    if dtype not in INTEGERS:
        return None
    bits = 8 * dtype.itemsize
    is_left = text(request, "direction") == "LEFT"
    # Shifted by too much, or by a negative amount: only sign bits are left.
    beyond = "({0} < 0 ? -1 : 0)" if dtype in SIGNED and not is_left else "0"
    operator = "<<" if is_left else ">>"
    return Pointwise(f"((u64){{1}} >= {bits} ? {beyond} : {{0}} {operator} {{1}})")


def _variadic(combine: str, dtypes: Dtypes, scale: bool = False) -> Define:
    def define(request: KernelRequest) -> Pointwise | None:
        if required(request).dtype not in dtypes:
            return None
        expression = "{0}"
        for position in range(1, len(request.inputs)):
            expression = combine.replace("<a>", expression).replace("<b>", f"{{{position}}}")
        if scale:
            expression = f"({expression}) / {len(request.inputs)}"
        return Pointwise(expression, extra=FUNCTIONS)

    return define


def _clip(request: KernelRequest) -> Pointwise | None:
    dtype = required(request).dtype
    if dtype not in NUMBERS:
        return None
    kind = computed(dtype)
    expression, position = "{0}", 1
    for name, function in (("min", "vmax"), ("max", "vmin")):
        value = request.attributes[name]
        if operand(request, 1 if name == "min" else 2) is not None:
            expression = f"{function}(({kind})({expression}), {{{position}}})"
            position += 1
        elif value is not None:
            bound = _clamped(float(number(request, name)), dtype)
            expression = f"{function}(({kind})({expression}), {literal(bound, kind)})"
    return Pointwise(expression, extra=FUNCTIONS)


def _clamped(value: float, dtype: np.dtype) -> float:
    if dtype in FLOATS:
        return value
    limits = np.iinfo(dtype)
    return max(
        limits.min,
        min(
            limits.max,
            int(value) if np.isfinite(value) else (limits.max if value > 0 else limits.min),
        ),
    )


def _prelu(request: KernelRequest) -> Pointwise | None:
    known = required(request).dtype in NUMBERS
    return Pointwise("({0} < 0 ? {0} * {1} : {0})") if known else None


def _where(request: KernelRequest) -> Pointwise | None:
    return Pointwise("({0} ? {1} : {2})") if result(request).dtype in ALL else None


def _is_inf(request: KernelRequest) -> Pointwise | None:
    if required(request).dtype not in FLOATS:
        return None
    tests = [
        f"{{0}} == {sign}INF()"
        for sign, name in (("-", "detect_negative"), ("", "detect_positive"))
        if integer(request, name)
    ]
    return Pointwise(" || ".join(tests) or "(false && {0} != 0)")


def _bias_gelu(request: KernelRequest) -> Pointwise | None:
    if required(request).dtype not in FLOATS:
        return None
    argument = "{0} + {1}" if operand(request, 1) is not None else "{0}"
    function = "gelu_of_half" if required(request).dtype in HALF_FLOATS else "gelu"
    if text(request, "approximate") == "tanh":
        function = "gelu_tanh"
    return Pointwise(f"{function}({argument})", extra=FUNCTIONS)


DEFINES: Mapping[str, Define] = {
    **{name: _simple(*each) for name, each in (*_UNARY.items(), *_BINARY.items())},
    **_PARAMETRIC,
    "Abs": _abs,
    "Div": _div,
    "Mod": _mod,
    "Pow": _pow,
    "BitShift": _shift,
    "Max": _variadic("vmax(<a>, <b>)", NUMBERS),
    "Min": _variadic("vmin(<a>, <b>)", NUMBERS),
    "Sum": _variadic("<a> + <b>", FLOATS),
    "Mean": _variadic("<a> + <b>", FLOATS, scale=True),
    "Clip": _clip,
    "PRelu": _prelu,
    "Where": _where,
    "IsInf": _is_inf,
    "com.microsoft.BiasGelu": _bias_gelu,
}
"""What picks an operator's expression."""

KERNEL_FAMILY: tuple[CudaKernel, ...] = tuple(
    pointwise_kernel(name, define) for name, define in DEFINES.items()
)
