"""One graph on one stream, run synchronously: for conformance tests and for verification.

Compiles, plans and binds exactly as a deployment does; only scheduling is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import numpy as np

from aegis_pipe.clock import Clock
from aegis_pipe.device.protocols import DeviceContext, DeviceStream
from aegis_pipe.events import EventHub, PhaseRecorder
from aegis_pipe.execution.collector import collector_paused
from aegis_pipe.execution.compiler import CompiledModel
from aegis_pipe.execution.deployment import Deployment, LoadedModel, compile_graph, plan_models
from aegis_pipe.execution.executor import Executor, check_inputs
from aegis_pipe.execution.graph import ExecutionGraph


class StandaloneGraph:
    """A graph bound to memory of its own on a context's stream; close it when done."""

    def __init__(
        self,
        graph: ExecutionGraph,
        context: DeviceContext,
        stream: DeviceStream,
        clock: Clock,
        precision: str = "fp32",
        *,
        watched: bool = False,
        change: Callable[[CompiledModel], CompiledModel] | None = None,
    ) -> None:
        """Compile it and bind what `change` makes of it: `as_chain`, for one."""
        hub = EventHub()
        phases = PhaseRecorder(hub, clock)
        with collector_paused():
            compiled = compile_graph(graph, context, phases, precision, watched=watched)
            if change is not None:
                compiled = change(compiled)
        loaded = LoadedModel(compiled, phases.begin("model.load"))
        self._stream = stream
        self._context = context
        self._deployment = Deployment(
            [loaded],
            plan_models([loaded], [None], context, stream_count=1, budget_bytes=None),
            context,
            [stream],
            hub=hub,
            clock=clock,
            phases=phases,
        )
        self.compiled = loaded.compiled
        self._bound = self._deployment.slots[0][loaded.compiled.name]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name; raises InvalidInputError or what a kernel raised."""
        bound = self._bound
        arrays = check_inputs(bound.name, bound.inputs, inputs)
        outputs = [np.empty(tensor.spec.shape, tensor.spec.dtype) for tensor in bound.outputs]
        self._stream.hold()
        try:
            # Nobody asks for its events.
            Executor.launch_segment(
                bound, 0, (self._stream,), arrays, outputs, stamped=False, timed=False
            )
        finally:
            self._stream.synchronise()
        return bound.named_results(outputs)

    def write_inputs(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Put the inputs where the operators read them, and wait."""
        bound = self._bound
        for array, tensor in zip(
            check_inputs(bound.name, bound.inputs, inputs), bound.inputs, strict=True
        ):
            self._context.write(tensor.region, array)

    def read_outputs(self) -> dict[str, np.ndarray]:
        """Return the outputs by name, as what ran last on the device left them."""
        arrays = [np.empty(tensor.spec.shape, tensor.spec.dtype) for tensor in self._bound.outputs]
        for tensor, array in zip(self._bound.outputs, arrays, strict=True):
            self._context.read(tensor.region, array)
        return self._bound.named_results(arrays)

    def enqueue_inputs(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Enqueue the inputs' copies as a request does, through the stream's staging memory."""
        bound = self._bound
        for array, tensor in zip(
            check_inputs(bound.name, bound.inputs, inputs), bound.inputs, strict=True
        ):
            self._stream.copy_in(array, tensor.region)

    def run_on_device(self) -> None:
        """Run the operators alone and wait, `write_inputs` before: inputs share memory."""
        self.launch()
        self.synchronise()

    def launch(self) -> None:
        """Enqueue the operators alone."""
        graph = self._bound.work[1].graph
        assert graph is not None
        graph.launch(self._stream)

    def synchronise(self) -> None:
        """Wait for what was enqueued."""
        self._stream.synchronise()

    def kernels(self) -> tuple[str, ...]:
        """Return `operator, kernel` of everything that is launched, in order."""
        steps = (step for step in self.compiled.steps if step.is_launched)
        return tuple(f"{step.operator}, {step.choice.kernel}" for step in steps)

    def kernel_times_ns(self) -> np.ndarray:
        """Run as `run_on_device`; return each kernel's start and end as int64[kernels, 2]."""
        graph = self._bound.work[1].graph
        assert graph is not None
        graph.launch(self._stream, stamped=True)
        self._stream.synchronise()
        return np.frombuffer(graph.kernel_times(), np.int64).reshape(-1, 2)

    def close(self) -> None:
        """Release the memory; idempotent."""
        self._deployment.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
