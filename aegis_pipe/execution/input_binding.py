"""Settles the shapes of a model's inputs, and binds some to constants.

Sizes come from the file, from `LoadOptions.shapes`, and from the symbols that inputs share. What
stays open is an error that shows the line to write in the manifest.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aegis_pipe.errors import DynamicShapeError, InvalidModelError, UnsupportedOperatorError
from aegis_pipe.execution.model_file import REEXPORT
from aegis_pipe.execution.onnx_types import STRING
from aegis_pipe.execution.source_model import Dimension, SourceGraph, SourceValue
from aegis_pipe.tensor import TensorSpec, kind_of, written_value

Constant = bool | int | float | list[Any] | np.ndarray
"""What an input can be bound to."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadOptions:
    """What the manifest adds to a model file."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of inputs; they also settle the symbols that other inputs share."""
    bind: Mapping[str, Constant] = field(default_factory=dict)
    """Inputs or initialisers that become these constants."""
    name: str = ""
    """The graph's name; the file's name if empty."""


def fixed_inputs(
    graph: SourceGraph, options: LoadOptions
) -> tuple[dict[str, TensorSpec], dict[str, np.ndarray]]:
    """Return the specs of the inputs that stay inputs, and the values of bound ones.

    Raises InvalidModelError for options that do not fit the model, DynamicShapeError for shapes
    that stay open, UnsupportedOperatorError for inputs that are not tensors of numbers.
    """
    declared = {value.name: value for value in graph.inputs}
    for key, name in [("shapes", n) for n in options.shapes] + [("bind", n) for n in options.bind]:
        if name not in declared and not (key == "bind" and name in graph.initialisers):
            raise _unknown_input(key, name, declared)
    bound = {
        name: _bound_value(graph, declared.get(name), name, value)
        for name, value in options.bind.items()
    }
    free = [
        value
        for value in graph.inputs
        if value.name not in bound
        and (value.name not in graph.initialisers or value.name in options.shapes)
    ]
    for value in free:
        _check_input_type(value)
    symbols = _symbols(free, options.shapes)
    shapes = {value.name: _settled_shape(value, options.shapes, symbols) for value in free}
    still_open = [value for value in free if _is_open(shapes[value.name])]
    if still_open:
        raise _open_shapes(still_open, shapes)
    specs = {}
    for value in free:
        assert value.dtype is not None
        shape = shapes[value.name] or ()
        specs[value.name] = TensorSpec(value.dtype, tuple(s for s in shape if isinstance(s, int)))
    return specs, bound


def _is_open(shape: tuple[Dimension, ...] | None) -> bool:
    return shape is None or not all(isinstance(size, int) for size in shape)


def _unknown_input(key: str, name: str, declared: Mapping[str, SourceValue]) -> InvalidModelError:
    near = difflib.get_close_matches(name, list(declared), 1)
    listed = ", ".join(f"`{known}`" for known in declared) or "none"
    return InvalidModelError(
        f"`{key}` names `{name}`, but the model has no such input",
        hint=f"did you mean `{near[0]}`?" if near else f"its inputs are {listed}",
    )


def _check_input_type(value: SourceValue) -> None:
    kind = "text tensor" if value.dtype == STRING else value.kind
    if kind != "tensor":
        raise UnsupportedOperatorError(
            f"is a {kind}; only tensors of numbers can enter a model",
            context=f"graph input `{value.name}`",
            hint="export the model with tensor inputs, or bind the input to a constant",
        )
    if value.dtype is None:
        raise InvalidModelError(
            "has no element type", context=f"graph input `{value.name}`", hint=REEXPORT
        )


def _symbols(free: list[SourceValue], pinned: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the sizes that pinned shapes give to symbols. Raises if two disagree."""
    symbols: dict[str, int] = {}
    for value in free:
        if value.name not in pinned or value.shape is None:
            continue
        shape = tuple(pinned[value.name])
        context = f"graph input `{value.name}`"
        if len(shape) != len(value.shape):
            raise InvalidModelError(
                f"`shapes` gives it {len(shape)} dimensions, the model declares {len(value.shape)}",
                context=context,
                hint=f"the model declares [{', '.join(map(_shown, value.shape))}]",
            )
        for axis, (size, dimension) in enumerate(zip(shape, value.shape, strict=True)):
            if size < 0:
                raise InvalidModelError(f"`shapes` gives it the size {size}", context=context)
            expected = dimension if isinstance(dimension, int) else None
            if isinstance(dimension, str):
                expected = symbols.setdefault(dimension, size)
            if expected is not None and expected != size:
                raise InvalidModelError(
                    f"`shapes` gives `{dimension}` the size {size}, but it is {expected} elsewhere"
                    if isinstance(dimension, str)
                    else f"dimension {axis} can not be {size}: the model fixes it at {expected}",
                    context=context,
                    hint=f"the model declares [{', '.join(map(_shown, value.shape))}]",
                )
    return symbols


def _settled_shape(
    value: SourceValue, pinned: Mapping[str, tuple[int, ...]], symbols: Mapping[str, int]
) -> tuple[Dimension, ...] | None:
    if value.name in pinned:
        return tuple(map(int, pinned[value.name]))
    if value.shape is None:
        return None
    return tuple(symbols.get(d, d) if isinstance(d, str) else d for d in value.shape)


def _shown(dimension: Dimension) -> str:
    return "?" if dimension is None else str(dimension)


def _open_shapes(
    values: list[SourceValue], shapes: Mapping[str, tuple[Dimension, ...] | None]
) -> DynamicShapeError:
    def listed(name: str, show: Callable[[Dimension], str]) -> str:
        shape = shapes[name]
        return "..." if shape is None else f"[{', '.join(map(show, shape))}]"

    said = ", ".join(f"`{v.name}` {listed(v.name, _shown)}" for v in values)
    line = ", ".join(
        f"{_toml_key(v.name)} = "
        + (listed(v.name, lambda d: str(d) if isinstance(d, int) else "1"))
        for v in values
    )
    return DynamicShapeError(
        f"the shapes of these inputs are open: {said}",
        hint=f"add `shapes = {{ {line} }}` to the model, with your sizes",
    )


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _bound_value(
    graph: SourceGraph, declared: SourceValue | None, name: str, value: Constant
) -> np.ndarray:
    """Return the constant an input is bound to, in the dtype and shape the model declares.

    A single number fills a shape that is known.
    """
    dtype = declared.dtype if declared else graph.initialisers[name]().dtype
    shape = declared.shape if declared else None
    context = f"graph input `{name}`"
    if dtype is None or dtype == STRING:
        what = "has no element type" if dtype is None else "takes text"
        hint = REEXPORT if dtype is None else "export the model without it; only numbers are bound"
        raise InvalidModelError(
            f"{what}, so that `bind` can not set it", context=context, hint=hint
        )
    array = _as_array(value)
    expected = f"{dtype.name}[{'...' if shape is None else ', '.join(map(_shown, shape))}]"
    example = written_value(dtype.name, () if shape is None else shape)
    hint = f"write `bind = {{ {_toml_key(name)} = {example} }}` with your values"
    if array is None:
        raise InvalidModelError(
            f"expected {expected}, found {_brief(value)}", context=context, hint=hint
        )
    given = f"{array.dtype.name}[{', '.join(map(str, array.shape))}]"
    converted = _converted(array, dtype)
    if converted is None:
        raise InvalidModelError(
            f"expected {expected}, found {given}: {_brief(value)}", context=context, hint=hint
        )
    if shape is None or _fits(converted.shape, shape):
        return converted
    if converted.ndim == 0 and all(isinstance(size, int) for size in shape):
        return np.full([size for size in shape if isinstance(size, int)], converted)
    raise InvalidModelError(f"expected {expected}, found {given}", context=context, hint=hint)


def _brief(value: Constant) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fits(shape: tuple[int, ...], declared: tuple[Dimension, ...]) -> bool:
    return len(shape) == len(declared) and all(
        not isinstance(expected, int) or expected == size
        for expected, size in zip(declared, shape, strict=True)
    )


def _as_array(value: Constant) -> np.ndarray | None:
    """Return a value as an array of numbers or bools; None if it is none."""
    try:
        array = np.array(value)
    except ValueError:  # Lists of different lengths.
        return None
    return None if array.dtype.kind in "OSUMmc" else array


def _converted(array: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """Return an array in another dtype; None if its values have no place there."""
    given, expected = kind_of(array.dtype.name), kind_of(dtype.name)
    if (given == "bool") != (expected == "bool"):
        return None
    with np.errstate(all="ignore"):
        converted = array.astype(dtype)
        same = np.array_equal(converted.astype(array.dtype), array)
    # Floats are rounded to what the dtype can hold; whole numbers have to stay what they are.
    return converted if same or given == expected == "float" else None
