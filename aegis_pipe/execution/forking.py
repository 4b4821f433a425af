"""Which branches of a model run side by side: on devices that can, where it was seen to pay."""

from __future__ import annotations

from aegis_pipe.device.protocols import Fork
from aegis_pipe.execution.branches import Work, find_forks
from aegis_pipe.execution.compiler import CompiledModel
from aegis_pipe.execution.segments import CostModel

_FORK_NS = 1_000
"""What a fork costs: kernels begin early neither where branches part nor where they meet."""


def possible_forks(compiled: CompiledModel, costs: CostModel) -> tuple[Fork, ...]:
    """Return the forks that may pay, by what the steps have to do."""
    return find_forks(
        [
            Work(
                tuple(filter(None, step.operands)),
                tuple(filter(None, step.results)),
                costs.launch_ns if step.is_launched else 0,
                costs.busy_ns(step) if step.is_launched else 0,
                apart=step.is_keep or step.choice.is_reference,
            )
            for step in compiled.steps
        ],
        _FORK_NS,
    )
