"""Tensors whose length only a request knows: planned at their most, the true length beside them.

A frame notes for such tensors which axes are open and which int64 scalar has the true length
(`Frame.lengths`). What lies beyond the length is padding. Here stands how each operator follows:

    element by element      the lengths of its operands, which have to agree
    moving, picking         the axis goes where the operator moves it
    reducing along the axis the padding is first replaced by what does not count: 0 for a sum, the
                            lowest value for a maximum
    shapes                  the length is read where the size would be; a shape made of it makes
                            another open axis

Any other operator is refused: what it would compute from padding is not what the model says.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from aegis_pipe.errors import InvalidModelError, UnsupportedOperatorError
from aegis_pipe.execution.graph import NO_TENSOR, OperatorNode, reads_of
from aegis_pipe.execution.operators import data_dependent, elementwise
from aegis_pipe.execution.source_model import describe
from aegis_pipe.tensor import TensorId, TensorSpec

if TYPE_CHECKING:
    from aegis_pipe.execution.partial_evaluation import Frame

Lengths = Mapping[int, TensorId]
"""Open axes of a tensor, and the tensors that hold their true lengths."""

Follow = Callable[["Frame", OperatorNode], Sequence[Lengths]]
"""Says which axes of each output are open, once the operator is in the frame."""


def refused(frame: Frame, node: OperatorNode) -> UnsupportedOperatorError:
    """Return the error for an operator that can not follow one of its operands."""
    tensor = next(t for t in node.inputs if t in frame.lengths or t in frame.sizes)
    near = difflib.get_close_matches(node.operator, sorted(_FOLLOW), 1, 0.0)[0]
    return UnsupportedOperatorError(
        f"operand `{tensor}` ({frame.specs[tensor]}) is as long as the data says, which this "
        f"operator of opset {node.opset} can not follow",
        context=describe(node),
        hint=f"the nearest operator that can is `{near}`; or let the model end at `{tensor}` and "
        "do the rest in a transform",
    )


def apply_bounded(frame: Frame, node: OperatorNode) -> None:
    """Add an operator that reads an open tensor, or a shape made of its length."""
    if node.operator in ("Shape", "Size") and not node.domain:
        _read_shape(frame, node)
        return
    symbolic = [i for i, tensor in enumerate(node.inputs) if tensor in frame.sizes]
    if symbolic and _is_size_arithmetic(node):
        frame.apply_plain(node)
        _follow_sizes(frame, node)
    elif symbolic and node.operator in _SHAPED:
        _apply_shaped(frame, node, symbolic)
    else:
        _apply_followed(frame, node)


def _apply_followed(frame: Frame, node: OperatorNode) -> None:
    follow = _FOLLOW.get(node.qualified_operator)
    # Sizes alone are plain numbers to an operator; only open tensors have padding.
    if not any(tensor in frame.lengths for tensor in node.inputs):
        frame.apply_plain(node)
        return
    if follow is None:
        raise refused(frame, node)
    filled = _with_padding_filled(frame, node)
    try:
        frame.apply_plain(filled)
    except InvalidModelError as error:
        # At their most the operands do not fit; for some data they would.
        raise refused(frame, node) from error
    for tensor, lengths in zip(node.outputs, follow(frame, node), strict=False):
        if tensor and lengths:
            frame.lengths[tensor] = dict(lengths)


def keep_with_body(frame: Frame, node: OperatorNode, specs: Sequence[TensorSpec | None]) -> None:
    """Add an operator whose body stays one; nothing open may enter it."""
    if any(tensor in frame.lengths for tensor in reads_of(node)):
        raise refused(frame, replace(node, inputs=reads_of(node)))
    frame.keep(node, specs)


# Shapes that hold a true length


def _read_shape(frame: Frame, node: OperatorNode) -> None:
    """Write the shape as a request sees it: the true length where an axis is open."""
    (source,), (output,) = node.inputs, node.outputs
    if node.operator == "Size":
        raise refused(frame, node)
    start, end = node.attributes.get("start"), node.attributes.get("end")
    sizes: list[int | TensorId] = list(frame.specs[source].shape)
    for axis, length in frame.lengths[source].items():
        sizes[axis] = length
    part = sizes[start if isinstance(start, int) else None : end if isinstance(end, int) else None]
    path = f"{node.name}/"
    if all(isinstance(size, int) for size in part):
        _known(frame, output, np.array(part, np.int64))
        return
    one = frame.add_constant(np.array([1], np.int64), path, "one")
    numbers = [
        frame.emit("Reshape", [size, one], frame.new_tensor(path, "length"))
        if isinstance(size, str)
        else frame.add_constant(np.array([size], np.int64), path, "size")
        for size in part
    ]
    frame.emit("Concat", numbers, output, {"axis": 0})
    frame.sizes[output] = tuple(part)


def _known(frame: Frame, tensor: TensorId, value: np.ndarray) -> None:
    constant = frame.add_constant(value, "", tensor)
    assert constant == tensor


_SIZE_ARITHMETIC = ("Cast", "Concat", "Gather", "Identity", "Reshape", "Slice", "Squeeze")


def _is_size_arithmetic(node: OperatorNode) -> bool:
    return node.operator in (*_SIZE_ARITHMETIC, "Unsqueeze") and not node.domain


def _follow_sizes(frame: Frame, node: OperatorNode) -> None:
    """Compute on places instead of numbers: what the operator picks is the size it picks."""
    (output,) = node.outputs
    parts = [_sizes_of(frame, tensor) for tensor in node.inputs]
    first = parts[0]
    if node.operator == "Concat" and all(part is not None for part in parts):
        joined = tuple(itertools.chain(*(part for part in parts if part is not None)))
    elif node.operator == "Gather" and first is not None:
        indices = frame.constant(node.inputs[1])
        if indices is None:
            return
        joined = tuple(first[int(index)] for index in indices.reshape(-1))
    elif node.operator == "Slice" and first is not None:
        places = _sliced_places(frame, node, len(first))
        if places is None:
            return
        joined = tuple(first[place] for place in places)
    elif first is not None and len(first) == frame.specs[output].element_count:
        joined = first
    else:
        return
    if any(isinstance(size, str) for size in joined):
        frame.sizes[output] = joined


def _sizes_of(frame: Frame, tensor: TensorId) -> tuple[int | TensorId, ...] | None:
    if tensor in frame.sizes:
        return frame.sizes[tensor]
    value = frame.constant(tensor)
    return None if value is None else tuple(int(size) for size in value.reshape(-1))


def _sliced_places(frame: Frame, node: OperatorNode, count: int) -> range | None:
    bounds = [frame.constant(tensor) for tensor in node.inputs[1:] if tensor]
    if len(bounds) < 2 or any(bound is None for bound in bounds):
        return None
    start, end, _, step = (
        int(bound.reshape(-1)[0]) if bound is not None else 1
        for bound in (*bounds, *[None] * 4)[:4]
    )
    return range(count)[start:end:step]


_SHAPED = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1, "Range": 1}
"""Operators that make a tensor of a shape, and the operand that says which."""


def _apply_shaped(frame: Frame, node: OperatorNode, symbolic: Sequence[int]) -> None:
    """Give the operator the most for the true length; the axis it makes is open."""
    position = _SHAPED[node.operator]
    if list(symbolic) != [position]:
        raise refused(frame, node)
    target = node.inputs[position]
    sizes = frame.sizes[target]
    most = [frame.most[size] if isinstance(size, str) else size for size in sizes]
    spec = frame.specs[target]
    constant = frame.add_constant(
        np.array(most, spec.dtype).reshape(spec.shape), f"{node.name}/", "most"
    )
    inputs = (*node.inputs[:position], constant, *node.inputs[position + 1 :])
    open_operands = [frame.lengths[t] for t in node.inputs if t in frame.lengths]
    if node.operator == "Range" and _is_counting(frame, node):
        lengths: Lengths = {0: _named(sizes[0])}
    elif node.operator != "Range":
        lengths = {axis: size for axis, size in enumerate(sizes) if isinstance(size, str)}
    else:
        raise refused(frame, node)
    if any(set(each.values()) - set(lengths.values()) for each in open_operands):
        raise refused(frame, node)
    frame.apply_plain(replace(node, inputs=inputs))
    frame.lengths[node.outputs[0]] = dict(lengths)


def _named(size: int | TensorId) -> TensorId:
    assert isinstance(size, str)
    return size


def _is_counting(frame: Frame, node: OperatorNode) -> bool:
    start, _, step = (frame.constant(tensor) for tensor in node.inputs)
    return start is not None and step is not None and (start.item(), step.item()) == (0, 1)


# Where the axes go


def _follow_elements(frame: Frame, node: OperatorNode) -> Sequence[Lengths]:
    rank = len(frame.specs[node.outputs[0]].shape)
    shape = frame.specs[node.outputs[0]].shape
    lengths: dict[int, TensorId] = {}
    for tensor in filter(None, node.inputs):
        before = rank - len(frame.specs[tensor].shape)
        for axis, length in frame.lengths.get(tensor, {}).items():
            if lengths.setdefault(axis + before, length) != length:
                raise refused(frame, node)
    for tensor in filter(None, node.inputs):
        sizes = frame.specs[tensor].shape
        before = rank - len(sizes)
        for axis in lengths:
            # Of a fixed size that is not 1, it would fit one length only.
            is_open = axis - before in frame.lengths.get(tensor, {})
            if axis >= before and not is_open and sizes[axis - before] != 1 and shape[axis] != 1:
                raise refused(frame, node)
    return [lengths] * len(node.outputs)


def _follow_gather(frame: Frame, node: OperatorNode) -> Sequence[Lengths]:
    data, indices = node.inputs
    rank = len(frame.specs[data].shape)
    axis = _attribute(node, "axis", 0) % rank
    indices_rank = len(frame.specs[indices].shape)
    picked = frame.lengths.get(indices, {})
    lengths = {axis + place: length for place, length in picked.items()}
    for place, length in frame.lengths.get(data, {}).items():
        if place == axis:
            # Indices that are data themselves come from what was counted; a fixed one may
            # lie in the padding.
            if not picked:
                raise refused(frame, node)
            continue
        lengths[place if place < axis else place + indices_rank - 1] = length
    return [lengths]


def _follow_gather_nd(frame: Frame, node: OperatorNode) -> Sequence[Lengths]:
    data, indices = node.inputs
    last = len(frame.specs[indices].shape) - 1
    picked = frame.lengths.get(indices, {})
    if data in frame.lengths or last in picked:
        raise refused(frame, node)
    return [picked]


def _follow_transpose(frame: Frame, node: OperatorNode) -> Sequence[Lengths]:
    lengths = frame.lengths[node.inputs[0]]
    rank = len(frame.specs[node.inputs[0]].shape)
    order = node.attributes.get("perm") or tuple(range(rank))[::-1]
    assert isinstance(order, tuple)
    return [{place: lengths[axis] for place, axis in enumerate(map(int, order)) if axis in lengths}]


def _follow_reshape(frame: Frame, node: OperatorNode) -> Sequence[Lengths]:
    """Find the axis that has as many elements before it as before, and is as long."""
    before = frame.specs[node.inputs[0]].shape
    after = frame.specs[node.outputs[0]].shape
    places = {
        (int(np.prod(after[:place], dtype=np.int64)), size): place
        for place, size in reversed(list(enumerate(after)))
    }
    lengths: dict[int, TensorId] = {}
    for axis, length in frame.lengths[node.inputs[0]].items():
        place = places.get((int(np.prod(before[:axis], dtype=np.int64)), before[axis]))
        if place is None:
            raise refused(frame, node)
        lengths[place] = length
    return [lengths]


def _follow_squeeze(frame: Frame, node: OperatorNode) -> Sequence[Lengths]:
    shape = frame.specs[node.inputs[0]].shape
    gone = _given_axes(frame, node, len(shape))
    if gone is None:
        gone = [axis for axis, size in enumerate(shape) if size == 1]
    lengths = frame.lengths[node.inputs[0]]
    if set(gone) & set(lengths):
        raise refused(frame, node)
    return [{axis - sum(g < axis for g in gone): length for axis, length in lengths.items()}]


def _follow_unsqueeze(frame: Frame, node: OperatorNode) -> Sequence[Lengths]:
    rank = len(frame.specs[node.outputs[0]].shape)
    new = _given_axes(frame, node, rank) or []
    kept = [axis for axis in range(rank) if axis not in new]
    return [{kept[axis]: length for axis, length in frame.lengths[node.inputs[0]].items()}]


def _given_axes(frame: Frame, node: OperatorNode, rank: int) -> list[int] | None:
    """Return the axes an operand or an attribute names, None if there are neither."""
    given = node.attributes.get("axes")
    if len(node.inputs) > 1 and node.inputs[1]:
        value = frame.constant(node.inputs[1])
        given = tuple(value.reshape(-1).tolist()) if value is not None else ()
    return [int(axis) % rank for axis in given] if isinstance(given, tuple) else None


def _follow_concat(frame: Frame, node: OperatorNode) -> Sequence[Lengths]:
    rank = len(frame.specs[node.outputs[0]].shape)
    axis = _attribute(node, "axis", 0) % rank
    every = [frame.lengths.get(tensor, {}) for tensor in node.inputs]
    if any(lengths != every[0] or axis in lengths for lengths in every):
        raise refused(frame, node)
    return every[:1]


def _follow_slice(frame: Frame, node: OperatorNode) -> Sequence[Lengths]:
    lengths = dict(frame.lengths[node.inputs[0]])
    bounds = _slice_bounds(frame, node)
    for axis, (start, end, step) in bounds.items():
        if axis not in lengths:
            continue
        size = frame.specs[node.inputs[0]].shape[axis]
        if start < 0 or end < 0 or step != 1:
            raise refused(frame, node)
        if start or end < size:
            most = frame.specs[node.outputs[0]].shape[axis]
            lengths[axis] = shortened(frame, lengths[axis], start, most, f"{node.name}/")
    return [lengths]


def _slice_bounds(frame: Frame, node: OperatorNode) -> dict[int, tuple[int, int, int]]:
    rank = len(frame.specs[node.inputs[0]].shape)
    values = [frame.constant(tensor) if tensor else None for tensor in node.inputs[1:]]
    if len(node.inputs) == 1:
        values = [np.asarray(node.attributes[name]) for name in ("starts", "ends")]
        if "axes" in node.attributes:
            values.append(np.asarray(node.attributes["axes"]))
    starts, ends, axes, steps = (*values, None, None)[:4]
    if starts is None or ends is None:
        raise refused(frame, node)
    places = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    triples = zip(starts.tolist(), ends.tolist(), strides, strict=True)
    return {int(axis) % rank: each for axis, each in zip(places, triples, strict=True)}


def shortened(frame: Frame, length: TensorId, start: int, most: int, path: str) -> TensorId:
    """Return the length of what is left from `start` on, `most` at most."""
    left = length
    if start:
        offset = frame.add_constant(np.array(start, np.int64), path, "start")
        left = frame.emit("Sub", [length, offset], frame.new_tensor(path, "left"))
    bounds = [frame.add_constant(np.array(n, np.int64), path, "bound") for n in (most, 0)]
    result = frame.emit("Min", [left, bounds[0]], frame.new_tensor(path, "length"))
    if start:
        result = frame.emit("Max", [result, bounds[1]], frame.new_tensor(path, "length"))
    frame.most[result] = most
    return result


def _follow_same(frame: Frame, node: OperatorNode) -> Sequence[Lengths]:
    return [frame.lengths.get(node.inputs[0], {})] * len(node.outputs)


def _follow_split(frame: Frame, node: OperatorNode) -> Sequence[Lengths]:
    rank = len(frame.specs[node.inputs[0]].shape)
    lengths = frame.lengths[node.inputs[0]]
    if _attribute(node, "axis", 0) % rank in lengths:
        raise refused(frame, node)
    return [lengths] * len(node.outputs)


def _reduced_axes(frame: Frame, node: OperatorNode) -> list[int]:
    rank = len(frame.specs[node.inputs[0]].shape)
    if node.operator in ("ArgMax", "ArgMin"):
        return [_attribute(node, "axis", 0) % rank]
    none = [] if _attribute(node, "noop_with_empty_axes", 0) else list(range(rank))
    return _given_axes(frame, node, rank) or none


def _follow_reduction(frame: Frame, node: OperatorNode) -> Sequence[Lengths]:
    gone = _reduced_axes(frame, node)
    keeps = _attribute(node, "keepdims", 1)
    return [
        {
            axis if keeps else axis - sum(other < axis for other in gone): length
            for axis, length in frame.lengths[node.inputs[0]].items()
            if axis not in gone
        }
    ]


def _follow_top_k(frame: Frame, node: OperatorNode) -> Sequence[Lengths]:
    rank = len(frame.specs[node.inputs[0]].shape)
    axis = _attribute(node, "axis", -1) % rank
    lengths = dict(frame.lengths[node.inputs[0]])
    if axis in lengths:
        most = frame.specs[node.outputs[0] or node.outputs[1]].shape[axis]
        lengths[axis] = shortened(frame, lengths[axis], 0, most, f"{node.name}/")
    return [lengths] * 2


def _follow_product(frame: Frame, node: OperatorNode) -> Sequence[Lengths]:
    """Rows of the first operand and columns of the second stay open; the sum is over 0s."""
    left, right = node.inputs
    ranks = [len(frame.specs[tensor].shape) for tensor in (left, right)]
    first, second = frame.lengths.get(left, {}), frame.lengths.get(right, {})
    if min(ranks) < 2 or any(axis < ranks[0] - 2 for axis in first):
        raise refused(frame, node)
    if any(axis < ranks[1] - 2 for axis in second):
        raise refused(frame, node)
    rank = max(ranks)
    lengths: dict[int, TensorId] = {}
    if ranks[0] - 2 in first:
        lengths[rank - 2] = first[ranks[0] - 2]
    if ranks[1] - 1 in second:
        lengths[rank - 1] = second[ranks[1] - 1]
    return [lengths]


def _follow_counted(frame: Frame, node: OperatorNode) -> Sequence[Lengths]:
    """Open what is found: padding was made 0, which is not counted."""
    return [{1: node.outputs[1]}]


# What padding is replaced by


def _lowest(dtype: np.dtype) -> np.ndarray:
    return np.array(-np.inf if dtype.kind not in "iub" else np.iinfo(dtype).min, dtype)


def _highest(dtype: np.dtype) -> np.ndarray:
    return np.array(np.inf if dtype.kind not in "iub" else np.iinfo(dtype).max, dtype)


def _zero(dtype: np.dtype) -> np.ndarray:
    return np.array(0, dtype)


_Fill = Callable[[np.dtype], np.ndarray]


def _filled_axes(frame: Frame, node: OperatorNode, position: int) -> tuple[list[int], _Fill]:
    """Return over which axes of an operand the operator runs, and what does not count there."""
    rank = len(frame.specs[node.inputs[position]].shape)
    match node.operator:
        case "ReduceSum" | "ReduceL1" | "ReduceL2" | "ReduceSumSquare":
            return _reduced_axes(frame, node), _zero
        case "ReduceMax" | "ArgMax":
            return _reduced_axes(frame, node), _lowest
        case "ReduceMin" | "ArgMin":
            return _reduced_axes(frame, node), _highest
        case "TopK":
            axis = _attribute(node, "axis", -1) % rank
            return [axis], _lowest if _attribute(node, "largest", 1) else _highest
        case "Softmax" | "LogSoftmax" if node.opset >= 13:
            return [_attribute(node, "axis", -1) % rank], _lowest
        case "MatMul":
            return [rank - 1 if position == 0 else rank - 2], _zero
        case "NonZero":
            return list(range(rank)), _zero
        case _:
            return [], _zero


def _with_padding_filled(frame: Frame, node: OperatorNode) -> OperatorNode:
    inputs = list(node.inputs)
    for position, tensor in enumerate(node.inputs):
        if tensor not in frame.lengths:
            continue
        axes, fill = _filled_axes(frame, node, position)
        for axis in sorted(set(axes) & set(frame.lengths[tensor])):
            inputs[position] = _filled(frame, node, inputs[position], tensor, axis, fill)
    return replace(node, inputs=tuple(inputs))


def _filled(
    frame: Frame, node: OperatorNode, tensor: TensorId, source: TensorId, axis: int, fill: _Fill
) -> TensorId:
    """Return the tensor with `fill` where an axis is padding."""
    path, spec = f"{node.name}/", frame.specs[source]
    shape = tuple(size if i == axis else 1 for i, size in enumerate(spec.shape))
    places = np.arange(spec.shape[axis], dtype=np.int64).reshape(shape)
    numbers = frame.add_constant(places, path, "places")
    neutral = frame.add_constant(fill(spec.dtype), path, "neutral")
    length = frame.lengths[source][axis]
    frame.lengths[numbers] = {axis: length}
    counts = frame.emit("Less", [numbers, length], frame.new_tensor(path, "counts"))
    return frame.emit("Where", [counts, tensor, neutral], frame.new_tensor(path, "filled"))


def _attribute(node: OperatorNode, name: str, default: int) -> int:
    value = node.attributes.get(name, default)
    return value if isinstance(value, int) else default


_ELEMENTWISE = (
    *(entry.name for entry in elementwise.ENTRIES),
    *("Cast", "CastLike", "Identity", "Dropout", "DequantizeLinear", "QuantizeLinear"),
)
_REDUCTIONS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceMax", "ReduceMin")

_FOLLOW: dict[str, Follow] = {
    **dict.fromkeys(_ELEMENTWISE, _follow_elements),
    **dict.fromkeys((*_REDUCTIONS, "ArgMax", "ArgMin"), _follow_reduction),
    **dict.fromkeys(("Reshape", "Flatten"), _follow_reshape),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _follow_same),
    "Squeeze": _follow_squeeze,
    "Unsqueeze": _follow_unsqueeze,
    "Concat": _follow_concat,
    "Gather": _follow_gather,
    "GatherND": _follow_gather_nd,
    "MatMul": _follow_product,
    "Slice": _follow_slice,
    "Split": _follow_split,
    "TopK": _follow_top_k,
    "Transpose": _follow_transpose,
    "aegis.NonZero": _follow_counted,
}

COUNTED = frozenset(
    entry.name.removeprefix("aegis.")
    for entry in data_dependent.ENTRIES
    if entry.name.startswith("aegis.")
)
"""Operators with a result as long as the data says."""

_OPEN_AXES = {"NonZero": {0: 1}, "NonMaxSuppression": {0: 0}, "Compress": {0: 0}}
"""Axis that is open, by output; Unique and Compress have an `axis`."""


def add_top_k(frame: Frame, node: OperatorNode) -> None:
    """Add a TopK of a k that only a request knows: all are sorted, and the first k count."""
    data, wanted = node.inputs
    path, rank = f"{node.name}/", len(frame.specs[data].shape)
    axis = _attribute(node, "axis", -1) % max(rank, 1)
    most = frame.specs[data].shape[axis]
    every = frame.add_constant(np.array([most], np.int64), path, "most")
    frame.apply(replace(node, inputs=(data, every)))
    scalar = frame.add_constant(np.array([], np.int64), path, "scalar")
    number = frame.emit("Reshape", [wanted, scalar], frame.new_tensor(path, "k"))
    length = shortened(frame, number, 0, most, path)
    for tensor in filter(None, node.outputs):
        before = frame.lengths.get(tensor, {})
        if axis in before:
            length = frame.emit("Min", [before[axis], length], frame.new_tensor(path, "length"))
            frame.most[length] = most
        frame.lengths[tensor] = {**before, axis: length}


def add_counted(frame: Frame, node: OperatorNode, outputs: Sequence[TensorId], path: str) -> None:
    """Add an operator of `COUNTED`, its results open."""
    axis = node.attributes.get("axis")
    places = dict(_OPEN_AXES.get(node.operator, {0: 0, 1: 0, 3: 0}))
    if isinstance(axis, int) and node.operator in ("Unique", "Compress"):
        places[0] = axis % len(frame.specs[node.inputs[0]].shape)
    length = frame.new_tensor(path or f"{node.name}/", f"{node.operator}.length")
    padded = list(outputs)
    if node.operator == "Unique":
        padded += [NO_TENSOR] * (4 - len(outputs))
    counted = replace(node, domain="aegis", opset=1, inputs=node.inputs, outputs=(*padded, length))
    if any(tensor in frame.lengths for tensor in node.inputs):
        if node.operator != "NonZero":
            raise refused(frame, node)
        counted = replace(
            _with_padding_filled(frame, node), domain="aegis", opset=1, outputs=counted.outputs
        )
    frame.apply_plain(counted)
    first = next(tensor for tensor in outputs if tensor)
    place = next(i for i, tensor in enumerate(outputs) if tensor)
    frame.most[length] = frame.specs[first].shape[places.get(place, 0)]
    for position, open_axis in places.items():
        if position < len(outputs) and outputs[position]:
            frame.lengths[outputs[position]] = {open_axis: length}
