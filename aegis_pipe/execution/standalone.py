"""One graph on one stream, run synchronously: for conformance tests and for verification.

Compiles, plans and binds exactly as a deployment does; only scheduling is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np

from aegis_pipe.clock import Clock
from aegis_pipe.device.protocols import DeviceContext, DeviceStream
from aegis_pipe.events import EventHub, PhaseRecorder
from aegis_pipe.execution.deployment import Deployment, LoadedModel, compile_graph, plan_models
from aegis_pipe.execution.executor import Executor, check_inputs
from aegis_pipe.execution.graph import ExecutionGraph


class StandaloneGraph:
    """A graph bound to memory of its own on a context's stream; close it when done."""

    def __init__(
        self, graph: ExecutionGraph, context: DeviceContext, stream: DeviceStream, clock: Clock
    ) -> None:
        hub = EventHub()
        phases = PhaseRecorder(hub, clock)
        loaded = LoadedModel(compile_graph(graph, context, phases), phases.begin("model.load"))
        self._stream = stream
        self._deployment = Deployment(
            [loaded],
            plan_models([loaded], [None], context, stream_count=1, budget_bytes=None),
            context,
            [stream],
            max_block_ns=None,
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
        Executor.launch_segment(bound, 0, [self._stream], arrays, outputs, stamped=False)
        self._stream.synchronise()
        return bound.named_results(outputs)

    def close(self) -> None:
        """Release the memory; idempotent."""
        self._deployment.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
