"""State that a model keeps from one request to the next: an output that is an input of the next.

The input's bytes lie outside of the arenas, once for all streams; the model's operators read them
there. At the end of a request, when nobody reads them any more, the output is copied over them: a
request that fails or is given up before leaves the state as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.errors import InvalidModelError
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorId, TensorSpec

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
