"""Operators without a kernel, evaluated by the reference function that came with the request.

Slow and allocating, but right; `KernelChoice.is_reference` makes the plan say where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.errors import KernelError
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorSpec


def choose_reference(request: KernelRequest) -> KernelChoice | None:
    """Offer to call the reference function, if there is one."""
    if request.reference is None:
        return None
    specs = filter(None, (*request.inputs, *request.outputs))
    return KernelChoice(
        kernel=f"reference.{request.operator}",
        is_reference=True,
        cost=float(sum(spec.element_count for spec in specs)),
    )


def bind_reference(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
) -> Callable[[], None]:
    """Return a call that evaluates, checks what came out, and copies it into `outputs`."""
    reference = request.reference
    assert reference is not None, f"{request.operator} has no reference function"
    operands = [None if array is None else _read_only(array) for array in inputs]

    def call() -> None:
        results = reference(operands)
        if len(results) < len(outputs):
            raise KernelError(
                f"the reference function of `{request.operator}` returned {len(results)} "
                f"of {len(outputs)} results"
            )
        for position, target in enumerate(outputs):
            if target is not None:
                _store(results[position], target, position)

    return call


def _read_only(array: np.ndarray) -> np.ndarray:
    """Protect planned memory from functions that write to their operands."""
    view = array.view()
    view.flags.writeable = False
    return view


def _store(result: np.ndarray, target: np.ndarray, position: int) -> None:
    if result.dtype != target.dtype or result.shape != target.shape:
        planned = TensorSpec(target.dtype, target.shape)
        found = TensorSpec(result.dtype, result.shape)
        raise KernelError(
            f"output {position} came out as {found} but {planned} was planned",
            hint="the shape of this output depends on data, which can not be planned; "
            "cut the model before this node, or replace the node"
            if found.shape != planned.shape
            else "the model declares another dtype than the operator computes",
        )
    np.copyto(target, result)
