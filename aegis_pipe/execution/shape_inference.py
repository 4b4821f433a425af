"""Dtype and shape of every operator's results.

The operator table answers for its operators; ONNX's own inference answers for the rest. A
result whose shape depends on values nobody knows yet is a DynamicShapeError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aegis_pipe.errors import DynamicShapeError
from aegis_pipe.execution.graph import OperatorNode
from aegis_pipe.execution.operators.table import OperatorContext, OperatorTable
from aegis_pipe.execution.reference_operators import InferredType, infer_with_onnx
from aegis_pipe.execution.source_model import Dimension, SourceValue, describe
from aegis_pipe.tensor import TensorSpec

SHAPE_OPERANDS: Mapping[str, tuple[int, ...]] = {
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "DFT": (1, 2),
    "Expand": (1,),
    "Loop": (0, 1),
    "If": (0,),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "ReduceL1": (1,),
    "ReduceL2": (1,),
    "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceProd": (1,),
    "ReduceSum": (1,),
    "ReduceSumSquare": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
"""Positions whose values decide a result's shape, for operators the table has no entry for."""


class UnknownOperandError(DynamicShapeError):
    """A shape depends on an operand whose value is not known at load.

    `inputs` are the graph inputs that decide the value: binding them to constants helps.
    """

    def __init__(self, node: OperatorNode, position: int, operand: str, inputs: Sequence[str]):
        self.node = node.name
        self.position = position
        self.inputs = tuple(inputs)
        bindings = ", ".join(f"`{name}`" for name in inputs)
        super().__init__(
            f"the output shape depends on the value of operand {position} (`{operand}`), "
            "which is not known before a request",
            context=describe(node),
            hint=f"bind {bindings} to a constant in the manifest, or export a model with "
            "fixed shapes"
            if inputs
            else "export a model with fixed shapes",
        )


class OperandValueNeeded(Exception):  # noqa: N818 - caught by whoever knows the graph
    """Inference needs the value of the operand at `position`."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


def infer_outputs(
    context: OperatorContext,
    table: OperatorTable,
    declared: Sequence[SourceValue | None],
) -> tuple[TensorSpec | None, ...]:
    """Return the spec of each output of the node, None where an output is left out.

    What the file declares (`declared`, by position) is believed only where inference finds no
    shape at all; the reference kernel checks it at run time.

    Raises OperandValueNeeded if one operand's value would decide, DynamicShapeError if the data
    would, InvalidModelError or UnsupportedOperatorError if the node can not be understood.
    """
    entry = table.get(context.node.qualified_operator)
    if entry is None:
        return _infer_without_entry(context, declared)
    _require(context, entry.static_inputs)
    try:
        specs = tuple(entry.infer(context))
    except DynamicShapeError:
        if not any(value is not None and _is_fixed(value.shape) for value in declared):
            raise
        return _infer_without_entry(context, declared)
    assert len(specs) >= len(context.node.outputs), f"{entry.name} infers too few outputs"
    return tuple([s if t else None for s, t in zip(specs, context.node.outputs, strict=False)])


def _infer_without_entry(
    context: OperatorContext, declared: Sequence[SourceValue | None]
) -> tuple[TensorSpec | None, ...]:
    inferred = infer_with_onnx(context.node, context.inputs, context.constants)
    return tuple(
        [
            _settled(context, position, found, declared[position]) if tensor else None
            for position, (tensor, found) in enumerate(
                zip(context.node.outputs, inferred, strict=True)
            )
        ]
    )


def _require(context: OperatorContext, positions: Sequence[int]) -> None:
    for position in positions:
        given = position < len(context.inputs) and context.inputs[position] is not None
        if given and position not in context.constants:
            raise OperandValueNeeded(position)


def _settled(
    context: OperatorContext, position: int, found: InferredType, declared: SourceValue | None
) -> TensorSpec:
    dtype, shape = found
    if dtype is not None and shape is not None and _is_fixed(shape):
        return TensorSpec(dtype, tuple([int(size) for size in shape if size is not None]))
    _require(context, SHAPE_OPERANDS.get(context.node.qualified_operator, ()))
    if declared is not None and declared.shape is not None and _is_fixed(declared.shape):
        dtype = dtype or declared.dtype
        if dtype is not None:
            return TensorSpec(dtype, tuple([int(s) for s in declared.shape if s is not None]))
    raise DynamicShapeError(
        f"the shape of output {position} depends on the operands' data",
        context=describe(context.node),
        hint="export the model without this operator (cut it before post-processing, say), "
        "and do that part in a transform",
    )


def _is_fixed(shape: Sequence[Dimension] | None) -> bool:
    return shape is not None and all(isinstance(size, int) for size in shape)
