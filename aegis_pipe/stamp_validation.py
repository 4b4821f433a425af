"""Holds the stamps of a manifest's models against the device's own profiler.

Stamps are taken first, with no profiler near: they are what traces and profiles are made of. Then
the same models run anew under the profiler, which slows them down, but times each kernel alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from aegis_pipe.clock import Clock
from aegis_pipe.deployment_builder import model_orders, open_manifest_device
from aegis_pipe.device.protocols import DeviceContext, KernelTracer
from aegis_pipe.errors import PermanentError
from aegis_pipe.execution.deployment import ModelOrder
from aegis_pipe.execution.forking import as_chain
from aegis_pipe.execution.input_generation import generate_inputs
from aegis_pipe.execution.model_loader import ModelLoader
from aegis_pipe.execution.standalone import StandaloneGraph
from aegis_pipe.manifest.model import Manifest

WARM_UP = 5
RUNS = 21
MEDIAN_LIMIT_NS = 2_000
"""How much longer or shorter a model's kernels may be by their stamps, in the median."""


@dataclass(frozen=True, slots=True)
class StampComparison:
    """A model's kernels by their stamps and by the profiler; times in nanoseconds."""

    model: str
    kernels: tuple[str, ...]
    """Those compared, in order: calls that are one kernel."""
    left_out: int
    """Calls of several kernels or none, between which stamps see gaps, too."""
    stamped_ns: tuple[int, ...]
    """Medians of the runs."""
    traced_ns: tuple[int, ...]

    @property
    def differences_ns(self) -> np.ndarray:
        """Return int64[kernels]: how much longer each is by its stamps."""
        return np.array(self.stamped_ns, np.int64) - np.array(self.traced_ns, np.int64)

    @property
    def median_ns(self) -> int:
        """Return the median difference."""
        return round(float(np.median(self.differences_ns)))

    @property
    def worst(self) -> int:
        """Return which kernel differs most."""
        return int(np.abs(self.differences_ns).argmax())

    @property
    def passed(self) -> bool:
        """Whether the stamps may be believed."""
        return abs(self.median_ns) <= MEDIAN_LIMIT_NS


def validate_stamps(
    manifest: Manifest, clock: Clock, say: Callable[[str], None]
) -> list[StampComparison]:
    """Run every model alone, and compare.

    Raises PermanentError where the device has no profiler, or it can not be reached.
    """
    orders = model_orders(manifest)
    with open_manifest_device(manifest, clock).context as context:
        tracer = context.trace_kernels()
        stamped = []
        for order in orders:
            say(f"{order.name}: stamps alone")
            stamped.append(_stamped(order, context, clock))
        comparisons = []
        with tracer:
            for order, (kernels, times) in zip(orders, stamped, strict=True):
                say(f"{order.name}: under the device's profiler")
                traced = _traced(order, context, clock, tracer)
                comparisons.append(compare(order.name, kernels, times, traced))
    return comparisons


def compare(
    model: str,
    kernels: Sequence[str],
    stamped_ns: np.ndarray,
    traced: Sequence[Sequence[Sequence[int]]],
) -> StampComparison:
    """Compare int64[runs, calls] of stamps with the profiler's kernels by run and call.

    Calls that run nothing have no time between their stamps, and are unknown to the profiler.
    """
    medians = np.median(stamped_ns, axis=0)
    busy = [row for row, median in enumerate(medians) if median > 0]
    counts = {len(run) for run in traced}
    if counts != {len(busy)}:
        raise PermanentError(
            f"the profiler saw {sorted(counts)} calls in its runs, of {len(busy)} with stamps",
            context=f"model `{model}`",
            hint="end whatever else profiles this process or runs kernels in it, and try again",
        )
    found = []
    for position, row in enumerate(busy):
        runs = [run[position] for run in traced]
        if all(len(each) == 1 for each in runs):
            found.append((kernels[row], int(medians[row]), int(np.median(runs))))
    if not found:
        raise PermanentError(
            "no call of the model is a single kernel, which could be compared",
            context=f"model `{model}`",
            hint="validate with a larger model",
        )
    names, by_stamps, by_tracer = zip(*found, strict=True)
    return StampComparison(model, names, len(busy) - len(found), by_stamps, by_tracer)


def _stamped(
    order: ModelOrder, context: DeviceContext, clock: Clock
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of a model's kernels, and int64[runs, kernels] of their durations."""
    runs: list[np.ndarray] = []

    def run(standalone: StandaloneGraph) -> None:
        times = standalone.kernel_times_ns()
        runs.append(times[:, 1] - times[:, 0])

    kernels = _repeat(order, context, clock, run)
    return kernels, np.stack(runs[WARM_UP:])


def _traced(
    order: ModelOrder, context: DeviceContext, clock: Clock, tracer: KernelTracer
) -> list[list[list[int]]]:
    """Return the durations of kernels by run and call."""
    runs: list[list[list[int]]] = []

    def run(standalone: StandaloneGraph) -> None:
        tracer.take()
        standalone.kernel_times_ns()
        runs.append(tracer.take())

    _repeat(order, context, clock, run)
    return runs[WARM_UP:]


def _repeat(
    order: ModelOrder,
    context: DeviceContext,
    clock: Clock,
    run: Callable[[StandaloneGraph], None],
) -> tuple[str, ...]:
    graph = ModelLoader().load(order.path, order.options)
    inputs = generate_inputs(graph, 0)
    stream = context.create_stream(0)
    try:
        # The profiler tells kernels apart by the stamps between them, which branches' are not.
        with StandaloneGraph(
            graph, context, stream, clock, order.precision, change=as_chain
        ) as standalone:
            for _ in range(WARM_UP + RUNS):
                # What they lie in holds something else after a run.
                standalone.write_inputs(inputs)
                run(standalone)
            return standalone.kernels()
    finally:
        stream.close()
