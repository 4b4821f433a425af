"""Operators where ONNX's reference evaluator departs from the specification.

    BatchNormalization  before opset 14, its own normalises by a mixture with the batch's moments
    GlobalMaxPool       its own is right for two spatial axes only
    Loop                its own does not start without a condition, and stacks scalars wrongly
    Scan                its own knows neither other axes than the first nor reverse directions
    Scatter             its own is missing (replaced by ScatterElements in opset 11)
    Softmax, LogSoftmax, Hardmax
                        before opset 13, `axis` splits the tensor into rows and counts from 1

Imported by `reference_operators` only, when a reference operator is first called.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun


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


class Softmax(OpRun):
    """Exponentials along an axis, divided by their sum."""

    op_domain = ""

    def _run(self, x: Any, **_: Any) -> tuple[Any, ...]:
        return (_along_axis(self, x, lambda rows, axis: np.exp(_log_softmax(rows, axis))),)


class LogSoftmax(OpRun):
    """The logarithm of Softmax."""

    op_domain = ""

    def _run(self, x: Any, **_: Any) -> tuple[Any, ...]:
        return (_along_axis(self, x, _log_softmax),)


class Hardmax(OpRun):
    """One at the first largest value along an axis, zero elsewhere."""

    op_domain = ""

    def _run(self, x: Any, **_: Any) -> tuple[Any, ...]:
        return (_along_axis(self, x, _hardmax),)


def _along_axis(operator: OpRun, x: Any, function: Callable[[Any, int], Any]) -> Any:
    """Apply a function along `axis`, or to rows as opsets before 13 have it."""
    flattens = operator.run_params["opsets"][""] < 13
    given = [a.i for a in operator.onnx_node.attribute if a.name == "axis"]
    axis = given[0] if given else 1 if flattens else -1
    if x.size == 0:
        return x
    if not flattens:
        return function(x, axis).astype(x.dtype)
    rows = x.reshape(math.prod(x.shape[: axis % x.ndim]), -1)
    return function(rows, 1).astype(x.dtype).reshape(x.shape)


def _log_softmax(x: Any, axis: int) -> Any:
    # In double precision, as 16-bit types would not even hold the sum.
    shifted = x.astype(np.float64) - x.max(axis=axis, keepdims=True).astype(np.float64)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def _hardmax(x: Any, axis: int) -> Any:
    result = np.zeros_like(x)
    np.put_along_axis(result, np.expand_dims(x.argmax(axis=axis), axis), 1, axis)
    return result


def _stacked(values: list[Any]) -> Any:
    # Without iterations neither dtype nor shape of the elements is known here.
    return np.stack(values) if values else np.empty((0,), np.float32)


CORRECTIONS = (
    BatchNormalization,
    GlobalMaxPool,
    Hardmax,
    LogSoftmax,
    Loop,
    Scan,
    Scatter,
    Softmax,
)
