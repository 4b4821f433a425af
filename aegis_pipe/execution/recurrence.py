"""State that a model keeps from one request to the next: an output that is an input of the next.

The input's bytes lie outside of the arenas, once for all streams; the model's operators read them
there. At the end of a request, when nobody reads them any more, the output is copied over them: a
request that fails or is given up before leaves the state as it was.

Caches that grow (the keys and values of attention) are too large for that. An output that is the
input with some of it replaced (`UPDATES`), or that is put together anew once the input has been
read, is written where the input lies, if the plan proves that nobody reads the old bytes later. Of
such a model, a request that does not reach its end leaves a state that is neither old nor new: the
next ones are refused until it is reset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.errors import InvalidModelError
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorId, TensorSpec

UPDATES = frozenset(
    (
        "ScatterND",
        "ScatterElements",
        "TensorScatter",
        "com.microsoft.GroupQueryAttention",
    )
)
"""Operators whose kernels replace some of an operand and may leave the rest where it is."""

KEEP = "Keep"
"""Stands for an operator: what brings an output to where the state lies."""

States = Mapping[TensorId, TensorId]
"""The output that becomes it, by input."""


def states_of(graph: ExecutionGraph, named: Mapping[str, str]) -> dict[TensorId, TensorId]:
    """Return a model's states; raises InvalidModelError for those that can not be one."""
    states = {TensorId(name): TensorId(output) for name, output in named.items()}
    for name, output in states.items():
        problem = _problem_with(graph, name, output)
        if problem:
            raise InvalidModelError(
                problem,
                context=f"`state`, input `{name}`",
                hint="name an input and the output with its next value, of the same shape and type",
            )
    return states


def _problem_with(graph: ExecutionGraph, name: TensorId, output: TensorId) -> str:
    if name not in graph.inputs:
        return f"the model has no input `{name}`"
    if output not in graph.results:
        return f"the model has no output `{output}`"
    if output in graph.constants or output in graph.inputs:
        return f"output `{output}` is never another one"
    if output in graph.lengths:
        return f"output `{output}` is as long as the data says"
    if graph.spec(name) != graph.spec(output):
        return f"it is {graph.spec(name)}, but output `{output}` is {graph.spec(output)}"
    return ""


def without(tensors: Iterable[TensorId], states: Iterable[TensorId]) -> tuple[TensorId, ...]:
    """Return the tensors that are no states, in their order."""
    kept = set(states)
    return tuple(tensor for tensor in tensors if tensor not in kept)


def keeping(
    graph: ExecutionGraph, output: TensorId, context: DeviceContext
) -> tuple[KernelRequest, KernelChoice]:
    """Return how a device copies an output to where the state lies."""
    spec = graph.spec(output)
    flat = TensorSpec(spec.dtype, (spec.element_count,))
    # A concatenation of one: every device has that as a kernel, and none as a view.
    request = KernelRequest("Concat", f"keep {output}", {"axis": 0}, (flat,), (flat,))
    choice = context.select(request)
    assert choice.view is None, f"{choice.kernel} copies nothing"
    return request, choice


def kept_name(name: TensorId) -> str:
    """Return what the plan calls a state's next value, once it lies where the state lies."""
    return f"`{name}` of the next request"


class Producer(NamedTuple):
    """What is known of the step that makes a tensor."""

    operator: str
    view_of: TensorId | None
    """The tensor that it is the same bytes as."""
    over: tuple[TensorId, ...]
    """Operands that it may be written over."""


def heirs_of(
    name: TensorId, output: TensorId, producers: Mapping[TensorId, Producer]
) -> frozenset[str]:
    """Return what may be written where a state lies, on the way from it to its next value.

    Nothing if its next value is neither an update of it nor a concatenation.
    """
    heirs = [str(output)]
    tensor, updates = output, 0
    while tensor != name:
        made = producers.get(tensor)
        if made is None:
            return frozenset()
        if made.view_of is not None:
            tensor = made.view_of
        elif made.operator in UPDATES and made.over:
            tensor, updates = made.over[0], updates + 1
        else:
            return frozenset(heirs) if made.operator == "Concat" else frozenset()
        heirs.append(str(tensor))
    return frozenset(heirs[:-1]) if updates else frozenset()
