"""Operators where ONNX's reference evaluator departs from the specification.

    BatchNormalization  before opset 14, its own normalises by a mixture with the batch's moments
    DequantizeLinear    its own is missing before opset 19, which extends the earlier ones
    GlobalMaxPool       its own is right for two spatial axes only
    Loop                its own does not start without a condition, and stacks scalars wrongly
    Scan                its own knows neither other axes than the first nor reverse directions
    Scatter             its own is missing (replaced by ScatterElements in opset 11)
    Softmax, LogSoftmax, Hardmax
                        before opset 13 they work on the operand flattened to a matrix

Imported by `reference_operators` only, when a reference operator is first called.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops import load_op


class BatchNormalization(OpRun):
    """Normalise each channel by given moments, or by the batch's own in training mode."""

    op_domain = ""
    momentum: float
    epsilon: float

    def _run(
        self, x: Any, scale: Any, bias: Any, mean: Any, variance: Any, **_: Any
    ) -> tuple[Any, ...]:
        shape = (1, -1, *[1] * (x.ndim - 2))
        running: tuple[Any, ...] = ()
        if getattr(self, "training_mode", 0):
            axes = (0, *range(2, x.ndim))
            kept, batch_mean, batch_variance = self.momentum, x.mean(axes), x.var(axes)
            running = (
                mean * kept + batch_mean * (1 - kept),
                variance * kept + batch_variance * (1 - kept),
            )
            mean, variance = batch_mean, batch_variance
        factor = scale / np.sqrt(variance + np.asarray(self.epsilon, variance.dtype))
        shifted = (x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)
        return (shifted.astype(x.dtype), *running)


class DequantizeLinear(OpRun):
    """The evaluator's own, of opset 19 at least."""

    op_domain = ""

    def __new__(cls, onnx_node: Any, run_params: dict[str, Any]) -> Any:
        """Return an instance of the evaluator's own class."""
        version = max(19, run_params["opsets"][""])
        return load_op("", "DequantizeLinear", version)(onnx_node, run_params)


class GlobalMaxPool(OpRun):
    """The largest value of each channel."""

    op_domain = ""

    def _run(self, x: Any, **_: Any) -> tuple[Any, ...]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class Loop(OpRun):
    """Repeat a body while a condition holds, at most a number of times."""

    op_domain = ""
    body: Any

    def need_context(self) -> bool:
        """Bodies read tensors around them."""
        return True

    def _run(
        self,
        trip_count: Any = None,
        condition: Any = None,
        *carried: Any,
        context: Any = None,
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


class Scan(OpRun):
    """Run a body over slices of its inputs, carrying states and stacking outputs."""

    op_domain = ""
    body: Any
    num_scan_inputs: int
    scan_input_axes: Any
    scan_input_directions: Any
    scan_output_axes: Any
    scan_output_directions: Any

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


class Scatter(OpRun):
    """Copy a tensor with some elements replaced."""

    op_domain = ""
    axis: int

    def _run(self, data: Any, indices: Any, updates: Any, **_: Any) -> tuple[Any, ...]:
        result = data.copy()
        positions: Any = np.where(indices < 0, indices + data.shape[self.axis], indices)
        np.put_along_axis(result, positions, updates, self.axis)
        return (result,)


class _Normaliser(OpRun):
    op_domain = ""

    def _run(self, x: Any, **_: Any) -> tuple[Any, ...]:
        axis = next((a.i for a in self.onnx_node.attribute if a.name == "axis"), None)
        if self.run_params["opsets"][""] >= 13:
            return (self.along(x, -1 if axis is None else axis),)
        split = 1 if axis is None else axis % max(1, x.ndim)
        rows = x.reshape(math.prod(x.shape[:split]), -1)
        return (self.along(rows, 1).reshape(x.shape),)

    def along(self, x: Any, axis: int) -> Any:
        raise NotImplementedError


class Softmax(_Normaliser):
    """Exponentials that add up to one."""

    def along(self, x: Any, axis: int) -> Any:
        """Normalise along one axis."""
        powers = np.exp(x - x.max(axis=axis, keepdims=True))
        return powers / powers.sum(axis=axis, keepdims=True)


class LogSoftmax(_Normaliser):
    """Logarithms of Softmax."""

    def along(self, x: Any, axis: int) -> Any:
        """Normalise along one axis."""
        shifted = x - x.max(axis=axis, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


class Hardmax(_Normaliser):
    """One at the first largest element, zero elsewhere."""

    def along(self, x: Any, axis: int) -> Any:
        """Mark one element along one axis."""
        result = np.zeros_like(x)
        largest = np.expand_dims(np.argmax(x, axis=axis), axis)
        np.put_along_axis(result, largest, np.array(1, x.dtype), axis=axis)
        return result


def _stacked(values: list[Any]) -> Any:
    # Without iterations neither dtype nor shape of the elements is known here.
    return np.stack(values) if values else np.empty((0,), np.float32)


CORRECTIONS = (
    BatchNormalization,
    DequantizeLinear,
    GlobalMaxPool,
    Hardmax,
    LogSoftmax,
    Loop,
    Scan,
    Scatter,
    Softmax,
)
