"""Where a model is cut into segments before anybody has measured it: by what its steps have to do.

The cuts decide what runs when, so they must not depend on how fast a machine happened to be while
it loaded: the same manifest is cut the same way in every process. Times come from what each step
reads, writes and multiplies, with fixed constants for a class of device. They are rough, and err
on the long side. A profile (`aegis-pipe profile`) replaces them by what was measured, once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import ml_dtypes
import numpy as np

from aegis_pipe.device.protocols import DeviceDescription
from aegis_pipe.execution.capture import cut_into_segments
from aegis_pipe.execution.compiler import CompiledModel
from aegis_pipe.execution.memory_planning import CompiledStep

_HALF_DTYPES: Final = frozenset({np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)})


@dataclass(frozen=True, slots=True)
class CostModel:
    """What one thread of a CPU, or one multiprocessor of a GPU, gets done."""

    launch_ns: float
    """Of every step, whatever it does."""
    bytes_per_ns: float
    """Reading and writing."""
    work_per_ns: float
    """Multiply-adds, or elements where a step has none (`KernelChoice.cost`)."""
    half_work_per_ns: float
    """The same on operands of half precision, which a GPU's tensor cores take."""
    reference_bytes_per_ns: float
    """Of steps that run as reference kernels, on the host."""

    def step_ns(self, step: CompiledStep) -> int:
        """Return how long a step is taken to last."""
        return math.ceil(self.launch_ns + self.busy_ns(step))

    def busy_ns(self, step: CompiledStep) -> float:
        """Return how much of that is work, beside which no other would fit."""
        moved_bytes = sum(
            spec.size_bytes for spec in (*step.request.inputs, *step.request.outputs) if spec
        )
        if step.choice.is_reference:
            return moved_bytes / self.reference_bytes_per_ns
        first = next((spec for spec in step.request.inputs if spec), None)
        is_half = first is not None and first.dtype in _HALF_DTYPES
        work_per_ns = self.half_work_per_ns if is_half else self.work_per_ns
        return max(moved_bytes / self.bytes_per_ns, step.choice.cost / work_per_ns)

    def cuts(self, compiled: CompiledModel, max_block_ns: int) -> tuple[int, ...]:
        """Return the launched steps at which segments begin, but for the first."""
        return cut_into_segments(self.durations_ns(compiled), max_block_ns)

    def durations_ns(self, compiled: CompiledModel) -> Sequence[int]:
        """Return how long each launched step is taken to last."""
        return [self.step_ns(step) for step in compiled.steps if step.is_launched]


# The GPU's are those of a multiprocessor. Bytes and half precision come from BERT-base in batches
# of 64 on an H100, whose segments they take to be longer than they were; float32 is not measured.
_COST_MODELS: Final = {
    "cpu": CostModel(
        launch_ns=1_000,
        bytes_per_ns=12.0,
        work_per_ns=50.0,
        half_work_per_ns=50.0,
        reference_bytes_per_ns=0.1,
    ),
    "cuda": CostModel(
        launch_ns=2_000,
        bytes_per_ns=17.0,
        work_per_ns=150.0,
        half_work_per_ns=2_200.0,
        reference_bytes_per_ns=0.1,
    ),
}


def cost_model(device: DeviceDescription) -> CostModel:
    """Return the cost model of a device by its kind and size; of a CPU's thread if unknown."""
    kind = device.name.partition(":")[0]
    costs = _COST_MODELS.get(kind, _COST_MODELS["cpu"])
    if kind != "cuda":
        return costs
    return replace(
        costs,
        bytes_per_ns=costs.bytes_per_ns * device.compute_units,
        work_per_ns=costs.work_per_ns * device.compute_units,
        half_work_per_ns=costs.half_work_per_ns * device.compute_units,
    )
