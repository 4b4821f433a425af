"""`Loop` and `Scan` for ONNX's reference evaluator, as the specification has them.

The evaluator's own `Loop` does not start when the condition is left out and stacks scalar scan
outputs wrongly; its own `Scan` knows neither other axes than the first nor reverse directions.
Imported by `reference_operators` only, when a reference operator is first called.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun


class Loop(OpRun):  # type: ignore[misc]  # onnx is untyped
    """Repeat a body while a condition holds, at most a number of times."""

    op_domain = ""

    def need_context(self) -> bool:
        """Bodies read tensors around them."""
        return True

    def _run(
        self,
        trip_count: Any = None,
        condition: Any = None,
        *carried: Any,
        context: Any = None,
        body: Any = None,
        **_: Any,
    ) -> tuple[Any, ...]:
        body = self.body
        names = body.input_names
        states = list(carried)
        stacks: list[list[Any]] = [[] for _ in range(len(body.output_names) - 1 - len(states))]
        going = True if condition is None else bool(np.asarray(condition).item())
        limit = None if trip_count is None else int(np.asarray(trip_count).item())
        iteration = 0
        while going and (limit is None or iteration < limit):
            feeds = dict(context)
            feeds[names[0]] = np.array(iteration, np.int64)
            feeds[names[1]] = np.array(True)
            feeds.update(zip(names[2:], states, strict=True))
            going_on, *results = body.run(None, feeds)
            going = bool(np.asarray(going_on).item())
            states = results[: len(states)]
            for stack, value in zip(stacks, results[len(states) :], strict=True):
                stack.append(value)
            iteration += 1
        return (*states, *map(_stacked, stacks))


class Scan(OpRun):  # type: ignore[misc]  # onnx is untyped
    """Run a body over slices of its inputs, carrying states and stacking outputs."""

    op_domain = ""

    def need_context(self) -> bool:
        """Bodies read tensors around them."""
        return True

    def _run(self, *operands: Any, context: Any = None, **_: Any) -> tuple[Any, ...]:
        body = self.body
        state_count = len(operands) - self.num_scan_inputs
        states, scanned = list(operands[:state_count]), operands[state_count:]
        output_count = len(body.output_names) - state_count
        in_axes = self.scan_input_axes or [0] * len(scanned)
        out_axes = self.scan_output_axes or [0] * output_count
        backward = self.scan_input_directions or [0] * len(scanned)
        prepend = self.scan_output_directions or [0] * output_count
        slices = [
            list(np.moveaxis(array, axis, 0))[:: -1 if reverse else 1]
            for array, axis, reverse in zip(scanned, in_axes, backward, strict=True)
        ]
        stacks: list[list[Any]] = [[] for _ in range(output_count)]
        for step in zip(*slices, strict=True):
            feeds = {**context, **dict(zip(body.input_names, (*states, *step), strict=True))}
            results = body.run(None, feeds)
            states = results[:state_count]
            for stack, value in zip(stacks, results[state_count:], strict=True):
                stack.append(value)
        stacked = (
            np.moveaxis(_stacked(stack[:: -1 if reverse else 1]), 0, axis)
            for stack, axis, reverse in zip(stacks, out_axes, prepend, strict=True)
        )
        return (*states, *stacked)


def _stacked(values: list[Any]) -> Any:
    # Without iterations neither dtype nor shape of the elements is known here.
    return np.stack(values) if values else np.empty((0,), np.float32)


CONTROL_FLOW = (Loop, Scan)
