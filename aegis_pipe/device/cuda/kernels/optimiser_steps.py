"""Adagrad (Duchi, Hazan, Singer 2011), Adam (Kingma, Ba 2015) and momentum, one step each."""

from __future__ import annotations

from collections.abc import Sequence

from aegis_pipe.device.cuda.kernels.each import each, given, results, simple_kernel
from aegis_pipe.device.cuda.kernels.operands import integer, number, required
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.device.cuda.kernels.source import FLOAT32, FLOAT64, computed, stored
from aegis_pipe.kernel import KernelRequest

_GROUPS = {"Adagrad": 3, "Adam": 4, "Momentum": 3}
"""Tensors of each parameter: itself, its gradient, its states."""


def _accepts(request: KernelRequest) -> bool:
    specs = (*request.inputs[2:], *request.outputs)
    return all(spec is not None and spec.dtype in {FLOAT32, FLOAT64} for spec in specs)


def _step(request: KernelRequest) -> tuple[str, tuple[str, ...]]:
    """Return statements, and the expressions of the new parameter and its states.

    Of `x`, the gradient `g`, states `s0` and `s1`, the rate and the count of steps `done`.
    """
    start = f"g += (A){number(request, 'norm_coefficient')!r} * x;"
    name = request.operator.rpartition(".")[2]
    if name == "Adagrad":
        decay, epsilon = number(request, "decay_factor"), number(request, "epsilon")
        return (
            f"{start} rate = rate / (1 + (double)done * {decay!r}); s0 += g * g;",
            (f"x - (A)rate * g / (sqrt(s0) + (A){epsilon!r})", "s0"),
        )
    alpha, beta = number(request, "alpha"), number(request, "beta")
    if name == "Momentum":
        direction = f"g + (A){alpha!r} * s0" if integer(request, "nesterov") else "s0"
        return (
            f"{start} s0 = (A){alpha!r} * s0 + (done > 0 ? (A){beta!r} : (A)1) * g;",
            (f"x - (A)rate * ({direction})", "s0"),
        )
    epsilon, after = number(request, "epsilon"), number(request, "norm_coefficient_post")
    return (
        f"{start} s0 = (A){alpha!r} * s0 + (A){1 - alpha!r} * g; "
        f"s1 = (A){beta!r} * s1 + (A){1 - beta!r} * g * g; "
        f"if (done > 0) rate *= sqrt(1 - pow({beta!r}, (double)done)) "
        f"/ (1 - pow({alpha!r}, (double)done));",
        (
            f"(A){1 - after!r} * (x - (A)rate * s0 / (sqrt(s1) + (A){epsilon!r}))",
            "s0",
            "s1",
        ),
    )


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    groups = _GROUPS[request.operator.rpartition(".")[2]]
    count = (len(request.inputs) - 2) // groups
    statements, values = _step(request)
    names = ("x", "g", "s0", "s1")[:groups]
    launches: list[Enqueue] = []
    for parameter in range(count):
        spec = required(request, 2 + parameter)
        positions = {f"{n}_in": 2 + at * count + parameter for at, n in enumerate(names)}
        targets = {f"{n}_out": at * count + parameter for at, n in enumerate(("x", *names[2:]))}
        loads = " ".join(f"A {n} = get({n}_in[i]);" for n in names)
        writes = " ".join(
            f"{n}_out[i] = To<{stored(spec.dtype)}>::of({value});"
            for n, value in zip(("x", *names[2:]), values, strict=True)
        )
        text = f"""
  typedef {computed(spec.dtype)} A;
  double rate = (double)get(*r_in); const long long done = (long long)*t_in; (void)done;
  {loads} {statements} {writes}"""
        given_here = given(binding, {"r_in": 0, "t_in": 1, **positions})
        parameters = [*given_here, *results(binding, targets)]
        launches += each(binding, spec.element_count, text, parameters)
    return launches


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    simple_kernel(
        "optimiser_step",
        tuple(f"ai.onnx.preview.training.{name}" for name in _GROUPS),
        _bind,
        accepts=_accepts,
    ),
)
