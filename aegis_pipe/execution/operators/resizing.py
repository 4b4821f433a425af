"""Resize and Upsample.

Canonical form: Resize(X) to the output's shape, with

    mode                            "nearest", "linear", "cubic"
    coordinate_transformation_mode  as in ONNX, "tf_half_pixel_for_nn" included
    nearest_mode                    as in ONNX
    scales                          of every axis; 1.0 for those that stay
    roi                             of every axis, starts then ends; only "tf_crop_and_resize"
                                    reads it
    cubic_coeff_a, exclude_outside, extrapolation_value, antialias
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.layout import static_integers
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec

_COORDINATES_OPSET = 11
"""Before, every coordinate was asymmetric and rounded down, and the operands were X, scales."""
_UPSAMPLE_BY_OPERAND_OPSET = 9


@dataclass(frozen=True, slots=True)
class _Target:
    scales: tuple[float, ...]
    sizes: tuple[int, ...]


def _given_floats(context: OperatorContext, position: int, name: str) -> list[float]:
    """Return a constant operand's numbers; empty if it is left out or empty."""
    if reading.optional_operand(context, position) is None:
        return []
    return [float(each) for each in reading.static_value(context, position, name).reshape(-1)]


def _axes(context: OperatorContext) -> tuple[int, ...]:
    rank = len(reading.operand(context, 0, "X").shape)
    axes = reading.integers(context, "axes", range(rank))
    return tuple([reading.resolve_axis(context, axis, rank) for axis in axes])


def _target(context: OperatorContext) -> _Target:
    data, axes = reading.operand(context, 0, "X"), _axes(context)
    sizes: list[int] = []
    if context.node.operator == "Upsample" and context.node.opset < _UPSAMPLE_BY_OPERAND_OPSET:
        scales = list(reading.numbers(context, "scales"))
    elif context.node.opset < _COORDINATES_OPSET:
        scales = _given_floats(context, 1, "scales")
    else:
        scales = _given_floats(context, 2, "scales")
        if not scales and reading.optional_operand(context, 3) is not None:
            sizes = static_integers(context, 3, "sizes")
    reading.require(
        len(scales or sizes) == len(axes) and min(scales or sizes, default=1) > 0,
        context,
        f"scales {scales} or sizes {sizes} do not fit {data} along axes {axes}",
    )
    if sizes:
        return _target_of_sizes(context, data, axes, sizes)
    of_axis = dict(zip(axes, scales, strict=True))
    every = tuple([of_axis.get(axis, 1.0) for axis in range(len(data.shape))])
    results = tuple([int(n * scale) for n, scale in zip(data.shape, every, strict=True)])
    return _Target(every, results)


def _target_of_sizes(
    context: OperatorContext, data: TensorSpec, axes: Sequence[int], sizes: Sequence[int]
) -> _Target:
    reading.require(data.element_count > 0, context, f"{data} has nothing to resize")
    ratios = [size / data.shape[axis] for axis, size in zip(axes, sizes, strict=True)]
    policy = reading.text(context, "keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        common = min(ratios) if policy == "not_larger" else max(ratios)
        ratios = [common] * len(axes)
        sizes = [math.floor(common * data.shape[axis] + 0.5) for axis in axes]
    of_axis = dict(zip(axes, zip(ratios, sizes, strict=True), strict=True))
    pairs = [of_axis.get(axis, (1.0, size)) for axis, size in enumerate(data.shape)]
    return _Target(tuple([ratio for ratio, _ in pairs]), tuple([size for _, size in pairs]))


def _roi(context: OperatorContext) -> tuple[float, ...]:
    rank = len(reading.operand(context, 0, "X").shape)
    axes, given = _axes(context), _given_floats(context, 1, "roi")
    reading.require(len(given) == 2 * len(axes), context, f"roi {given} does not fit {rank} axes")
    starts, ends = [0.0] * rank, [1.0] * rank
    for i, axis in enumerate(axes):
        starts[axis], ends[axis] = given[i], given[len(axes) + i]
    return (*starts, *ends)


def _infer(context: OperatorContext) -> list[TensorSpec]:
    return [reading.like(reading.operand(context, 0, "X"), _target(context).sizes)]


_BEFORE_COORDINATES: Mapping[str, Attribute] = {
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
    "roi": (),
    "cubic_coeff_a": -0.75,
    "exclude_outside": 0,
    "extrapolation_value": 0.0,
    "antialias": 0,
}


def _lower(context: OperatorContext) -> Lowered:
    target = _target(context)
    mode = reading.text(context, "mode", "nearest")
    how: dict[str, Attribute] = {"mode": mode, "scales": target.scales}
    if context.node.opset < _COORDINATES_OPSET:
        # Some exporters of Upsample write "bilinear".
        how["mode"] = "nearest" if mode == "nearest" else "linear"
        return Lowered("Resize", {**_BEFORE_COORDINATES, **how}, (0,))
    coordinates = reading.text(context, "coordinate_transformation_mode", "half_pixel")
    is_crop = coordinates == "tf_crop_and_resize"
    return Lowered(
        "Resize",
        how
        | {
            "coordinate_transformation_mode": coordinates,
            "nearest_mode": reading.text(context, "nearest_mode", "round_prefer_floor"),
            "roi": _roi(context) if is_crop else (),
            "cubic_coeff_a": reading.number(context, "cubic_coeff_a", -0.75),
            "exclude_outside": reading.integer(context, "exclude_outside", 0),
            "extrapolation_value": reading.number(context, "extrapolation_value", 0.0),
            "antialias": reading.integer(context, "antialias", 0),
        },
        (0,),
    )


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("Resize", _infer, _lower, static_inputs=(1, 2, 3)),
    OperatorEntry("Upsample", _infer, _lower, static_inputs=(1,)),
)
