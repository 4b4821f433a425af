"""Variants of a model that take several requests at once, and the proof that they may.

A variant is the same file compiled with the leading dimension of every input multiplied. It is
planned, bound and recorded like any other model, and shares the model's weights. Every request's
tensors are rows of the variant's, so its inputs and outputs are copied row by row.

That rows do not influence each other can not be read off a graph. So each variant is run once at
load, on different data in every row, and its rows are compared with the model's own results: by
the tolerances with which `aegis-pipe verify` compares arithmetic of that precision, because larger
kernels may add in another order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from aegis_pipe.device.protocols import DeviceStream
from aegis_pipe.errors import PermanentError
from aegis_pipe.execution.executor import Executor
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.input_generation import generate_inputs
from aegis_pipe.execution.output_comparison import arithmetic_of, compare
from aegis_pipe.execution.program import BoundModel, BoundTensor
from aegis_pipe.tensor import TensorSpec

HINT = "export the model with an open batch dimension and no other use of it, or leave `batching` out"


def batch_sizes(size_max: int) -> tuple[int, ...]:
    """Return the sizes of a model's variants, 1 excepted: powers of two, and the largest."""
    powers = (2**exponent for exponent in range(1, size_max.bit_length()))
    return tuple(sorted({*powers, size_max}))


def variant_shapes(graph: ExecutionGraph, size: int) -> dict[str, tuple[int, ...]]:
    """Return the input shapes of a model's variant; PermanentError for an input without rows."""
    return {name: _rows_of(graph.spec(name), name, size).shape for name in graph.inputs}


def check_variant(graph: ExecutionGraph, variant: ExecutionGraph, size: int) -> None:
    """Raise PermanentError unless every output of the variant has a row per request."""
    for name in graph.outputs:
        expected, found = _rows_of(graph.spec(name), name, size), variant.spec(name)
        if expected != found:
            raise PermanentError(
                f"with {size} requests together, output `{name}` is {found} instead of {expected}",
                hint=HINT,
            )


def in_rows(bound: BoundModel, size: int) -> BoundModel:
    """Return a variant with rows for inputs and outputs: all of the first tensor, then the next."""
    return replace(
        bound, inputs=_split(bound.inputs, size), outputs=_split(bound.outputs, size)
    )


def discards(bound: BoundModel) -> tuple[np.ndarray, ...]:
    """Return one array per output of a model, for rows that nobody wants."""
    return tuple(np.empty(tensor.spec.shape, tensor.spec.dtype) for tensor in bound.outputs)


def check_rows(
    model: BoundModel,
    variant: BoundModel,
    size: int,
    graph: ExecutionGraph,
    stream: DeviceStream,
) -> None:
    """Run a variant (`in_rows`) and the model on the same data; PermanentError if rows differ."""
    rows = [_in_order(generate_inputs(graph, seed=row), model) for row in range(size)]
    together = _run(variant, [array for arrays in zip(*rows, strict=True) for array in arrays], stream)
    arithmetic = arithmetic_of(graph)
    for row, inputs in enumerate(rows):
        alone = _run(model, inputs, stream)
        for position, tensor in enumerate(model.outputs):
            difference = compare(together[position * size + row], alone[position], arithmetic)
            if not difference.passed:
                raise PermanentError(
                    f"row {row} of output `{tensor.name}` is another one when {size} requests run "
                    f"together than when it runs alone: {difference.failure}",
                    hint=HINT,
                )


def _rows_of(spec: TensorSpec, name: str, size: int) -> TensorSpec:
    if not spec.shape:
        raise PermanentError(f"`{name}` is a scalar: it has no rows for requests", hint=HINT)
    return TensorSpec(spec.dtype, (spec.shape[0] * size, *spec.shape[1:]))


def _split(tensors: Sequence[BoundTensor], size: int) -> tuple[BoundTensor, ...]:
    return tuple(
        BoundTensor(tensor.name, spec, tensor.region.view(row * spec.size_bytes, spec.size_bytes))
        for tensor in tensors
        for spec in [TensorSpec(tensor.spec.dtype, (tensor.spec.shape[0] // size, *tensor.spec.shape[1:]))]
        for row in range(size)
    )


def _in_order(inputs: Mapping[str, np.ndarray], model: BoundModel) -> list[np.ndarray]:
    return [np.ascontiguousarray(inputs[tensor.name]) for tensor in model.inputs]


def _run(
    bound: BoundModel, inputs: Sequence[np.ndarray], stream: DeviceStream
) -> list[np.ndarray]:
    outputs = [np.empty(tensor.spec.shape, tensor.spec.dtype) for tensor in bound.outputs]
    for segment in range(bound.segment_count):
        Executor.launch_segment(bound, segment, [stream], inputs, outputs, stamped=False)
    stream.synchronise()
    return outputs
