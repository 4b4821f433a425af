"""Cases for the kernels that reduce, convert, compare and select values."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import ml_dtypes  # noqa: F401  # NumPy knows bfloat16 by it
import numpy as np
import onnx

from tests.unit.device.cpu.kernels.case import Case, random
from tests.unit.kernel_driver import make_node

_REDUCTIONS = ("Sum", "Mean", "Max", "Min", "SumSquare", "L1", "L2")
_SHAPES: Sequence[tuple[str, tuple[int, ...], list[int]]] = (
    ("rows", (3, 70), [1]),
    ("one element", (5, 1), [1]),
    ("columns", (3, 20, 37), [1]),
    ("narrow columns", (2, 50, 3), [-2]),
    ("neighbours", (2, 3, 4, 5), [1, 2]),
    ("neighbours around one", (2, 3, 1, 5, 6), [1, 3]),
    ("everything", (4, 33), [0, 1]),
    ("long", (2, 9000), [1]),
    ("long columns", (9000, 17), [0]),
)


def reductions() -> Iterator[tuple[str, Case]]:
    for name, (size, data, axes) in itertools.product(_REDUCTIONS, _SHAPES):
        values = [random(*data), np.array(axes, np.int64)]
        for keepdims in (0, 1) if size == "neighbours" else (0,):
            node = make_node(f"Reduce{name}", 2, keepdims=keepdims)
            yield f"{name} of {size} {keepdims}", Case("native.reduce", node, list(values), (1,))


def _of(dtype: str, *shape: int) -> np.ndarray:
    """Return few different values, so that some are equal."""
    numbers = np.random.default_rng(len(shape)).integers(0, 5, shape)
    if dtype in ("int64", "int32", "int8", "float32"):
        numbers -= 2
    return numbers.astype(dtype)


def casts() -> Iterator[tuple[str, Case]]:
    integers = {
        "int64": 7,
        "int32": 6,
        "int16": 5,
        "uint16": 4,
        "uint64": 13,
        "uint32": 12,
        "uint8": 2,
        "int8": 3,
        "bool": 9,
    }
    floats = {"float32": 1, "float64": 11, "float16": 10, "bfloat16": 16}
    for source, target in itertools.product(integers, {**integers, **floats}):
        if source != target:
            node = make_node("Cast", 1, to={**integers, **floats}[target])
            theirs = target != "bfloat16"
            case = Case("native.cast", node, [_of(source, 7, 19)], like_onnxruntime=theirs)
            yield f"{source} to {target}", case
    many = np.random.default_rng(0).integers(-70_000, 70_000, 99, np.int32)
    node = make_node("Cast", 1, to=16)
    yield "int32 to rounded", Case("native.cast", node, [many], like_onnxruntime=False)
    between = [pair for pair in itertools.permutations(floats, 2) if pair != ("float64", "float16")]
    for source, target in (*itertools.product(floats, integers), *between):
        to = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(target))
        node, values = make_node("Cast", 1, to=to), random(7, 19) * 60
        values = np.abs(values) if target.startswith("u") else values
        theirs = "bfloat16" not in (source, target)  # NumPy has no such arrays of theirs
        yield (
            f"{source} to {target}",
            Case("native.cast", node, [values.astype(source)], like_onnxruntime=theirs),
        )


def comparisons() -> Iterator[tuple[str, Case]]:
    numbers = ("float32", "int64", "int32", "uint8", "int8")
    for operator in ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"):
        for dtype in numbers:
            values = [_of(dtype, 3, 21), _of(dtype, 3, 21)[::-1].copy()]
            # ONNX Runtime lacks some of the types.
            yield f"{operator} {dtype}", _comparison(operator, values, dtype == "float32")
    for operator in ("Equal", "And", "Or", "Xor"):
        values = [_of("bool", 4, 9), _of("bool", 9, 4).T.copy()]
        yield f"{operator} bool", _comparison(operator, values, True)
    for shapes in (((2, 5, 1), (1, 1, 7)), ((1,), (3, 4)), ((2, 1, 3, 4), (5, 1, 4)), ((6,), ())):
        values = [_of("int32", *shape) for shape in shapes]
        yield f"Equal of {shapes}", _comparison("Equal", values, True)
    nan = np.array([np.nan, 1, 2, np.inf], np.float32)
    yield "Equal to NaN", _comparison("Equal", [nan, nan.copy()], True)


def _comparison(operator: str, values: Sequence[np.ndarray], like_onnxruntime: bool) -> Case:
    return Case(
        "native.compare", make_node(operator, 2), [*values], like_onnxruntime=like_onnxruntime
    )


def selections() -> Iterator[tuple[str, Case]]:
    for dtype in ("float32", "int64", "int32", "uint8", "float16", "bool"):
        values = [_of("bool", 3, 20), _of(dtype, 3, 20), _of(dtype, 20, 3).T.copy()]
        theirs = dtype in ("float32", "int64", "int32", "uint8")
        node = make_node("Where", 3)
        yield f"{dtype}", Case("native.select", node, [*values], like_onnxruntime=theirs)
    for shapes in (
        ((2, 1, 4), (1,), (3, 1)),
        ((1,), (3, 5), (3, 5)),
        ((3, 5), (), (3, 5)),
        ((2, 1, 3), (2, 4, 1), (1, 4, 3)),
    ):
        values = [_of("bool", *shapes[0]), *(random(*shape) for shape in shapes[1:])]
        yield f"{shapes}", Case("native.select", make_node("Where", 3), [*values])


def words() -> Iterator[tuple[str, Case]]:
    """Int32 levels; ONNX Runtime wants their zero points to be 0."""
    for shape, axis in (((3, 5, 37), None), ((2, 4, 19), 1), ((70,), None), ((3, 6), 1)):
        values = [_of("int32", *shape) * 70_000_001, np.abs(random(shape[axis] if axis else 1))]
        if axis is None:
            values[1] = values[1].reshape(())
        node = make_node("DequantizeLinear", 2, axis=axis or 0)
        yield f"{shape} {axis}", Case("native.dequantise_words", node, [*values])
        zeros = (np.arange(values[1].size, dtype=np.int32) * 9 - 7).reshape(values[1].shape)
        node = make_node("DequantizeLinear", 3, axis=axis or 0)
        yield (
            f"{shape} {axis} zeros",
            Case("native.dequantise_words", node, [*values, zeros], like_onnxruntime=False),
        )


def shorts() -> Iterator[tuple[str, Case]]:
    """Levels of 16 bits, of which some do not fit."""
    for dtype, shape, axis in itertools.product(
        ("int16", "uint16"), ((3, 5, 37), (2, 16)), (None, 1)
    ):
        parts = () if axis is None else (shape[axis],)
        scale = np.asarray(np.abs(random(*parts)) + 0.5, np.float32)
        zero = (np.arange(scale.size) * 999).astype(dtype).reshape(parts)
        name, attributes = f"{dtype} {shape} {axis}", {} if axis is None else {"axis": axis}
        levels = (random(*shape) * 20_000).astype(np.int64).astype(dtype)
        node = make_node("DequantizeLinear", 3, **attributes)
        yield f"from {name}", Case("native.dequantise_shorts", node, [levels, scale, zero])
        node = make_node("QuantizeLinear", 3, **attributes)
        real = random(*shape) * 40_000
        yield f"to {name}", Case("native.quantise_shorts", node, [real, scale, zero])


def blocks() -> Iterator[tuple[str, Case]]:
    """Scales for blocks of the last dimension."""
    for dtype, kind in (("uint8", "bytes.{}"), ("int8", "bytes.{}"), ("int16", "{}_shorts")):
        for shape, size in (((3, 2, 32), 16), ((4, 15), 5)):
            parts = (*shape[:-1], shape[-1] // size)
            scale, zero = np.abs(random(*parts)) + np.float32(0.1), _of(dtype, *parts)
            values = {"quantise": random(*shape) * 9, "dequantise": _of(dtype, *shape)}
            for name, x in values.items():
                operator = f"{name.capitalize().removesuffix('ise')}izeLinear"
                node = make_node(operator, 3, axis=-1, block_size=size)
                yield (
                    f"{name} {dtype} {shape}",
                    Case(f"native.{kind.format(name)}", node, [x, scale, zero]),
                )


def halves() -> Iterator[tuple[str, Case]]:
    """Reals of 16 bits, and every way that scales are laid out."""
    layouts = {
        "tensor": ((3, 5, 37), {}, ()),
        "axis": ((2, 4, 19), {"axis": 1}, (4,)),
        "last": ((3, 2, 37), {"axis": 2}, (37,)),
        "blocks of the last": ((4, 15), {"axis": 1, "block_size": 6}, (4, 3)),
        "blocks of the first": ((7, 21), {"axis": 0, "block_size": 3}, (3, 21)),
        "blocks in between": ((2, 40, 5), {"axis": 1, "block_size": 16}, (2, 3, 5)),
    }
    reals = ("float32", "float16", "bfloat16")
    for real, levels in itertools.product(reals, ("uint8", "int8", "int16", "uint16")):
        for name, (shape, attributes, parts) in layouts.items():
            if real == "float32" and not name.startswith(("blocks", "last")):
                continue
            scale = np.asarray(np.abs(random(*parts)) + np.float32(0.1), real)
            values = {
                "quantise": (random(*shape) * 9).astype(real),
                "dequantise": _of(levels, *shape),
            }
            for way, x in values.items():
                kind = f"bytes.{way}" if levels.endswith("int8") else f"{way}_shorts"
                operator = f"{way.capitalize().removesuffix('ise')}izeLinear"
                node = make_node(operator, 3, **attributes)
                case = Case(
                    f"native.{kind}",
                    node,
                    [x, scale, _of(levels, *parts)],
                    like_onnxruntime=real != "bfloat16",
                    tolerance=0,
                )
                yield f"{way} {real} {levels} {name}", case


def squares() -> Iterator[tuple[str, Case]]:
    for shape in ((3, 17), (1,)):
        values = [random(*shape), np.array(2, np.float32)]
        yield f"{shape}", Case("native.map", make_node("Pow", 2), [*values], (1,))


VALUES: dict[str, Case] = {
    f"{kind} {name}": case
    for kind, cases in {
        "reduce": reductions(),
        "cast": casts(),
        "compare": comparisons(),
        "where": selections(),
        "dequantise": words(),
        "shorts": shorts(),
        "blocks": blocks(),
        "rescale": halves(),
        "square": squares(),
    }.items()
    for name, case in cases
}
