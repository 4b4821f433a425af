"""Elementwise functions of one operand: mathematics, rounding, tests and activations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from aegis_pipe.device.cpu.kernels import error_function, operands
from aegis_pipe.device.cpu.kernels.pointwise import (
    BOOL,
    FLOATS,
    INTEGERS,
    NUMBERS,
    Define,
    Dtypes,
    Pointwise,
    as_mask,
    pointwise_kernel,
)
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelRequest

_UFUNCS: Mapping[str, tuple[np.ufunc, Dtypes]] = {
    "Abs": (np.absolute, NUMBERS),
    "Neg": (np.negative, NUMBERS),
    "Sign": (np.sign, NUMBERS),
    "Floor": (np.floor, FLOATS),
    "Ceil": (np.ceil, FLOATS),
    "Round": (np.rint, FLOATS),
    "Reciprocal": (np.reciprocal, FLOATS),
    "Sqrt": (np.sqrt, FLOATS),
    "Exp": (np.exp, FLOATS),
    "Log": (np.log, FLOATS),
    "Sin": (np.sin, FLOATS),
    "Cos": (np.cos, FLOATS),
    "Tan": (np.tan, FLOATS),
    "Asin": (np.arcsin, FLOATS),
    "Acos": (np.arccos, FLOATS),
    "Atan": (np.arctan, FLOATS),
    "Sinh": (np.sinh, FLOATS),
    "Cosh": (np.cosh, FLOATS),
    "Tanh": (np.tanh, FLOATS),
    "Asinh": (np.arcsinh, FLOATS),
    "Acosh": (np.arccosh, FLOATS),
    "Atanh": (np.arctanh, FLOATS),
    "IsNaN": (np.isnan, FLOATS),
    "Not": (np.logical_not, frozenset({BOOL})),
    "BitwiseNot": (np.invert, INTEGERS),
}


def _positive(x: np.ndarray, out: np.ndarray) -> None:
    # `clip` is several times as fast as `maximum` with a scalar.
    x.clip(0, np.inf, out=out)


def _negative(x: np.ndarray, out: np.ndarray) -> None:
    x.clip(-np.inf, 0, out=out)


def _define_relu(request: KernelRequest) -> Pointwise | None:
    dtype = operands.input_spec(request, 0).dtype
    if dtype in FLOATS:
        return Pointwise(_positive, whole=True)
    return Pointwise(lambda x, out: np.maximum(x, 0, out=out)) if dtype in INTEGERS else None


def _sigmoid(x: np.ndarray, out: np.ndarray) -> None:
    np.negative(x, out=out)
    np.exp(out, out=out)
    np.add(out, 1, out=out)
    np.divide(1, out, out=out)


def _softplus(x: np.ndarray, out: np.ndarray, s: np.ndarray) -> None:
    # log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), where nothing overflows.
    np.absolute(x, out=s)
    np.negative(s, out=s)
    np.exp(s, out=s)
    np.log1p(s, out=s)
    _positive(x, out)
    np.add(out, s, out=out)


def _softsign(x: np.ndarray, out: np.ndarray, s: np.ndarray) -> None:
    np.absolute(x, out=s)
    np.add(s, 1, out=s)
    np.divide(x, s, out=out)


def _hard_swish(x: np.ndarray, out: np.ndarray, s: np.ndarray) -> None:
    np.multiply(x, 1 / 6, out=s)
    np.add(s, 0.5, out=s)
    s.clip(0, 1, out=s)
    np.multiply(x, s, out=out)


def _mish(x: np.ndarray, out: np.ndarray, s: np.ndarray, t: np.ndarray) -> None:
    # With e = e^x: tanh(log(1 + e)) = e (e + 2) / (e (e + 2) + 2), which is 1 from x = 20 on.
    x.clip(-np.inf, 20, out=s)
    np.exp(s, out=s)
    np.add(s, 2, out=t)
    np.multiply(s, t, out=s)
    np.add(s, 2, out=t)
    np.divide(s, t, out=s)
    np.multiply(x, s, out=out)


_COMPOSED: Mapping[str, tuple[Pointwise, Dtypes]] = {
    "Sigmoid": (Pointwise(_sigmoid), FLOATS),
    "Softplus": (Pointwise(_softplus, scratch=1), FLOATS),
    "Softsign": (Pointwise(_softsign, scratch=1), FLOATS),
    "HardSwish": (Pointwise(_hard_swish, scratch=1), FLOATS),
    "Mish": (Pointwise(_mish, scratch=2), FLOATS),
    "Erf": (Pointwise(error_function.erf, scratch=error_function.SCRATCH), FLOATS),
}


def _positive_plus(x: np.ndarray, out: np.ndarray, negative: np.ndarray) -> None:
    """Write max(x, 0) + negative: how all the leaky rectifiers end."""
    _positive(x, out)
    np.add(out, negative, out=out)


def _leaky_relu(alpha: float, x: np.ndarray, out: np.ndarray, s: np.ndarray) -> None:
    if 0 <= alpha <= 1:
        np.multiply(x, alpha, out=s)
        np.maximum(x, s, out=out)
        return
    _negative(x, s)
    np.multiply(s, alpha, out=s)
    _positive_plus(x, out, s)


def _elu(alpha: float, x: np.ndarray, out: np.ndarray, s: np.ndarray) -> None:
    _negative(x, s)
    np.expm1(s, out=s)
    np.multiply(s, alpha, out=s)
    _positive_plus(x, out, s)


def _celu(alpha: float, x: np.ndarray, out: np.ndarray, s: np.ndarray) -> None:
    np.divide(x, alpha, out=s)
    _negative(s, s)
    np.expm1(s, out=s)
    np.multiply(s, alpha, out=s)
    _positive_plus(x, out, s)


def _selu(alpha: float, gamma: float, x: np.ndarray, out: np.ndarray, s: np.ndarray) -> None:
    _elu(alpha, x, out, s)
    np.multiply(out, gamma, out=out)


def _hard_sigmoid(alpha: float, beta: float, x: np.ndarray, out: np.ndarray) -> None:
    np.multiply(x, alpha, out=out)
    np.add(out, beta, out=out)
    out.clip(0, 1, out=out)


def _thresholded_relu(alpha: float, x: np.ndarray, out: np.ndarray, s: np.ndarray) -> None:
    below = np.greater(x, alpha, out=as_mask(s))
    np.logical_not(below, out=below)
    np.copyto(out, x)
    np.copyto(out, 0, where=below)


def _shrink(
    bias: float,
    lambd: float,
    x: np.ndarray,
    out: np.ndarray,
    s: np.ndarray,
    shifted: np.ndarray,
    result: np.ndarray,
) -> None:
    result.fill(0)
    np.subtract(x, bias, out=shifted)
    np.copyto(result, shifted, where=np.greater(x, lambd, out=as_mask(s)))
    np.add(x, bias, out=shifted)
    np.copyto(result, shifted, where=np.less(x, -lambd, out=as_mask(s)))
    np.copyto(out, result)


def _swish(alpha: float, x: np.ndarray, out: np.ndarray, s: np.ndarray) -> None:
    np.multiply(x, alpha, out=s)
    _sigmoid(s, s)
    np.multiply(x, s, out=out)


_PARAMETRIC: Mapping[str, tuple[Callable[..., None], tuple[str, ...], int]] = {
    "LeakyRelu": (_leaky_relu, ("alpha",), 1),
    "Elu": (_elu, ("alpha",), 1),
    "Celu": (_celu, ("alpha",), 1),
    "Selu": (_selu, ("alpha", "gamma"), 1),
    "HardSigmoid": (_hard_sigmoid, ("alpha", "beta"), 0),
    "ThresholdedRelu": (_thresholded_relu, ("alpha",), 1),
    "Shrink": (_shrink, ("bias", "lambd"), 3),
    "Swish": (_swish, ("alpha",), 1),
}
"""Function, the attributes it begins with, and how many scratch tiles it wants."""


def _one_pass(ufunc: np.ufunc, dtypes: Dtypes) -> Define:
    return _fixed(Pointwise(ufunc, whole=True), dtypes)


def _fixed(function: Pointwise, dtypes: Dtypes) -> Define:
    return lambda request: function if operands.input_spec(request, 0).dtype in dtypes else None


def _parametric(compute: Callable[..., None], names: tuple[str, ...], scratch: int) -> Define:
    def define(request: KernelRequest) -> Pointwise | None:
        if operands.input_spec(request, 0).dtype not in FLOATS:
            return None
        values = [operands.number(request, name) for name in names]
        return Pointwise(functools.partial(compute, *values), scratch)

    return define


def _define_is_inf(request: KernelRequest) -> Pointwise | None:
    if operands.input_spec(request, 0).dtype not in FLOATS:
        return None
    negative, positive = (
        operands.integer(request, f"detect_{sign}") for sign in ("negative", "positive")
    )
    if negative and positive:
        return Pointwise(np.isinf, whole=True)
    if not negative and not positive:
        return Pointwise(lambda _x, out: out.fill(False), whole=True)
    infinity = np.inf if positive else -np.inf
    return Pointwise(lambda x, out: np.equal(x, infinity, out=out), whole=True)


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    *(pointwise_kernel(name, _one_pass(*ufunc)) for name, ufunc in _UFUNCS.items()),
    *(pointwise_kernel(name, _fixed(*composed)) for name, composed in _COMPOSED.items()),
    *(pointwise_kernel(name, _parametric(*p)) for name, p in _PARAMETRIC.items()),
    pointwise_kernel("IsInf", _define_is_inf),
    pointwise_kernel("Relu", _define_relu),
)
