"""Operators that move elements: what goes where is known at load.

Canonical form; `Reshape` where nothing moves:

    Transpose(X)             `perm`: input axis of each output axis
    Concat(X, ...)           `axis`
    Split(X)                 `axis`, `split`: sizes along it
    Slice(X)                 `starts`, `steps`: of every axis; the output's shape says how many
    Expand(X)                broadcasts to the output's shape
    Tile(X)                  `repeats`: of every axis
    Pad(X, value?)           `mode` "constant", "reflect", "edge", "wrap"; `before`, `after`: of
                             every axis, negative ones crop; `value` holds if there is no operand
    Trilu(X)                 `upper` 0 or 1, `k`: the diagonal
    ReverseSequence(X, lengths[batch])
                             `time_axis`, `batch_axis`
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec

_SLICE_BY_OPERANDS_OPSET = 10
_SPLIT_BY_OPERAND_OPSET = 13
_PAD_BY_OPERANDS_OPSET = 11


def static_integers(context: OperatorContext, position: int, name: str) -> list[int]:
    """Return the integers of an operand known at load."""
    value = reading.static_value(context, position, name).reshape(-1)
    return list(map(int, value.tolist()))


def _nothing_moves() -> Lowered:
    return Lowered("Reshape", {}, (0,))


def _permutation(context: OperatorContext) -> tuple[int, ...]:
    rank = len(reading.operand(context, 0, "data").shape)
    perm = reading.integers(context, "perm", tuple(reversed(range(rank))))
    if sorted(perm) != list(range(rank)):
        raise reading.invalid(context, f"perm {perm} does not permute {rank} axes")
    return perm


def _infer_transpose(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "data")
    return [reading.like(data, [data.shape[axis] for axis in _permutation(context)])]


def _lower_transpose(context: OperatorContext) -> Lowered:
    perm = _permutation(context)
    moving = [axis for axis in perm if reading.operand(context, 0, "data").shape[axis] != 1]
    if moving == sorted(moving):
        return _nothing_moves()
    return Lowered("Transpose", {"perm": perm}, (0,))


def _infer_concat(context: OperatorContext) -> list[TensorSpec]:
    specs = [reading.operand(context, i, f"#{i}") for i in range(len(context.inputs))]
    reading.require(bool(specs), context, "there are no operands")
    axis = reading.resolve_axis(context, reading.integer(context, "axis"), len(specs[0].shape))
    frames = {(spec.dtype, spec.shape[:axis], spec.shape[axis + 1 :]) for spec in specs}
    if not (len(frames) == 1 and len(specs[0].shape) > 0):
        raise reading.invalid(
            context, f"operands {', '.join(map(str, specs))} differ beside axis {axis}"
        )
    shape = list(specs[0].shape)
    shape[axis] = sum(spec.shape[axis] for spec in specs)
    return [reading.like(specs[0], shape)]


def _lower_concat(context: OperatorContext) -> Lowered:
    rank = len(reading.operand(context, 0, "inputs").shape)
    axis = reading.resolve_axis(context, reading.integer(context, "axis"), rank)
    count = len(context.inputs)
    if count == 1:
        return _nothing_moves()
    return Lowered("Concat", {"axis": axis}, tuple(range(count)))


def _split(context: OperatorContext) -> tuple[int, tuple[int, ...]]:
    data = reading.operand(context, 0, "input")
    axis = reading.resolve_axis(context, reading.integer(context, "axis", 0), len(data.shape))
    sizes = _split_sizes(context, data.shape[axis])
    if not (
        sum(sizes) == data.shape[axis]
        and min(sizes) >= 0
        and len(sizes) == len(context.node.outputs)
    ):
        raise reading.invalid(
            context, f"{data} can not be split into {list(sizes)} along axis {axis}"
        )
    return axis, sizes


def _split_sizes(context: OperatorContext, size: int) -> tuple[int, ...]:
    if context.node.opset < _SPLIT_BY_OPERAND_OPSET:
        given = reading.integers(context, "split", ())
    elif reading.optional_operand(context, 1) is not None:
        given = tuple(static_integers(context, 1, "split"))
    else:
        given = ()
    if given:
        return given
    count = reading.integer(context, "num_outputs", len(context.node.outputs))
    chunk = -(-size // count)
    return tuple([min(chunk, max(size - i * chunk, 0)) for i in range(count)])


def _infer_split(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "input")
    axis, sizes = _split(context)
    return [reading.like(data, (*data.shape[:axis], n, *data.shape[axis + 1 :])) for n in sizes]


def _lower_split(context: OperatorContext) -> Lowered:
    axis, sizes = _split(context)
    if len(sizes) == 1:
        return _nothing_moves()
    return Lowered("Split", {"axis": axis, "split": sizes}, (0,))


def _slices(context: OperatorContext) -> list[range]:
    """Return the indices taken along every axis."""
    data = reading.operand(context, 0, "data")
    rank = len(data.shape)
    if context.node.opset < _SLICE_BY_OPERANDS_OPSET:
        starts, ends = (list(reading.integers(context, n, ())) for n in ("starts", "ends"))
        axes: Sequence[int] = reading.integers(context, "axes", range(len(starts)))
        steps: Sequence[int] = [1] * len(starts)
    else:
        starts, ends = static_integers(context, 1, "starts"), static_integers(context, 2, "ends")
        axes = _or(context, 3, "axes", range(len(starts)))
        steps = _or(context, 4, "steps", [1] * len(starts))
    if not (len(starts) == len(ends) == len(axes) == len(steps) and 0 not in steps):
        raise reading.invalid(
            context,
            f"starts {starts}, ends {ends}, axes {list(axes)} and steps {list(steps)} do not fit",
        )
    ranges = [range(size) for size in data.shape]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        resolved = reading.resolve_axis(context, axis, rank)
        reading.require(rank > 0, context, "a scalar can not be sliced")
        taken = range(data.shape[resolved])[slice(start, end, step)]
        # One element has no step, and none has no start.
        first = taken.start if taken else 0
        ranges[resolved] = taken if len(taken) > 1 else range(first, first + len(taken))
    return ranges


def _or(context: OperatorContext, position: int, name: str, default: Sequence[int]) -> list[int]:
    if reading.optional_operand(context, position) is None:
        return list(default)
    return static_integers(context, position, name)


def _infer_slice(context: OperatorContext) -> list[TensorSpec]:
    return [reading.like(reading.operand(context, 0, "data"), [len(r) for r in _slices(context)])]


def _lower_slice(context: OperatorContext) -> Lowered:
    ranges = _slices(context)
    whole = [range(size) for size in reading.operand(context, 0, "data").shape]
    if ranges == whole:
        return _nothing_moves()
    starts, steps = tuple([r.start for r in ranges]), tuple([r.step for r in ranges])
    return Lowered("Slice", {"starts": starts, "steps": steps}, (0,))


def _infer_expand(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "input")
    target = static_integers(context, 1, "shape")
    try:
        return [reading.like(data, np.broadcast_shapes(data.shape, tuple(target)))]
    except ValueError:
        raise reading.invalid(context, f"{data} does not broadcast to {target}") from None


def _lower_expand(context: OperatorContext) -> Lowered:
    (result,) = _infer_expand(context)
    if result.element_count == reading.operand(context, 0, "input").element_count:
        return _nothing_moves()
    return Lowered("Expand", {}, (0,))


def _repeats(context: OperatorContext) -> tuple[int, ...]:
    data = reading.operand(context, 0, "input")
    repeats = tuple(static_integers(context, 1, "repeats"))
    if not (len(repeats) == len(data.shape) and min(repeats, default=0) >= 0):
        raise reading.invalid(context, f"repeats {list(repeats)} do not fit {data}")
    return repeats


def _infer_tile(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "input")
    repeats = _repeats(context)
    return [reading.like(data, [n * r for n, r in zip(data.shape, repeats, strict=True)])]


def _lower_tile(context: OperatorContext) -> Lowered:
    repeats = _repeats(context)
    if all(repeat == 1 for repeat in repeats):
        return _nothing_moves()
    return Lowered("Tile", {"repeats": repeats}, (0,))


def _pads(context: OperatorContext) -> tuple[tuple[int, ...], tuple[int, ...]]:
    data = reading.operand(context, 0, "data")
    rank = len(data.shape)
    if context.node.opset < _PAD_BY_OPERANDS_OPSET:
        pads: Sequence[int] = reading.integers(context, "pads", ())
        axes: Sequence[int] = range(rank)
    else:
        pads = static_integers(context, 1, "pads")
        axes = _or(context, 3, "axes", range(rank))
    if len(pads) != 2 * len(axes):
        raise reading.invalid(context, f"pads {list(pads)} do not fit axes {list(axes)}")
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        resolved = reading.resolve_axis(context, axis, rank)
        before[resolved], after[resolved] = pads[i], pads[len(axes) + i]
    return tuple(before), tuple(after)


def _infer_pad(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "data")
    before, after = _pads(context)
    shape = [b + n + a for b, n, a in zip(before, data.shape, after, strict=True)]
    if min(shape, default=0) < 0:
        raise reading.invalid(context, f"pads {before}, {after} leave nothing of {data}")
    return [reading.like(data, shape)]


def _lower_pad(context: OperatorContext) -> Lowered:
    before, after = _pads(context)
    if not any(before) and not any(after):
        return _nothing_moves()
    mode = reading.text(context, "mode", "constant")
    attributes: dict[str, Attribute] = {"mode": mode, "before": before, "after": after}
    if context.node.opset < _PAD_BY_OPERANDS_OPSET:
        return Lowered(
            "Pad", attributes | {"value": reading.number(context, "value", 0.0)}, (0, -1)
        )
    positions = reading.data_positions(context, 3)
    return Lowered("Pad", attributes | {"value": 0.0}, (0, positions[2]))


def _lower_trilu(context: OperatorContext) -> Lowered:
    k = static_integers(context, 1, "k")[0] if reading.optional_operand(context, 1) else 0
    return Lowered("Trilu", {"upper": reading.integer(context, "upper", 1), "k": k}, (0,))


def _infer_trilu(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "input")
    if len(data.shape) < 2:
        raise reading.invalid(context, f"{data} is no matrix")
    return [data]


def _infer_reverse(context: OperatorContext) -> list[TensorSpec]:
    data, lengths = reading.operand(context, 0, "input"), reading.operand(context, 1, "lengths")
    axes = _reverse_axes(context)
    if not (
        sorted(axes.values()) == [0, 1]
        and len(data.shape) >= 2
        and lengths.shape == (data.shape[axes["batch_axis"]],)
    ):
        raise reading.invalid(context, f"lengths {lengths} do not fit {data} with {axes}")
    return [data]


def _reverse_axes(context: OperatorContext) -> dict[str, int]:
    return {
        "time_axis": reading.integer(context, "time_axis", 0),
        "batch_axis": reading.integer(context, "batch_axis", 1),
    }


def _lower_reverse(context: OperatorContext) -> Lowered:
    return Lowered("ReverseSequence", _reverse_axes(context), (0, 1))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("Transpose", _infer_transpose, _lower_transpose),
    OperatorEntry("Concat", _infer_concat, _lower_concat),
    OperatorEntry("Split", _infer_split, _lower_split, static_inputs=(1,)),
    OperatorEntry("Slice", _infer_slice, _lower_slice, static_inputs=(1, 2, 3, 4)),
    OperatorEntry("Expand", _infer_expand, _lower_expand, static_inputs=(1,)),
    OperatorEntry("Tile", _infer_tile, _lower_tile, static_inputs=(1,)),
    OperatorEntry("Pad", _infer_pad, _lower_pad, static_inputs=(1, 3)),
    OperatorEntry("Trilu", _infer_trilu, _lower_trilu, static_inputs=(1,)),
    OperatorEntry("ReverseSequence", _infer_reverse, _lower_reverse),
)
