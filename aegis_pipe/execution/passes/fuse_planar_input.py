"""Cast, transpose and first convolution of an image in half precision: one `aegis.PlanarConv`.

For devices whose kernels read the planes of an image as they come, in float32 too, and write its
pixels in half precision with channels last: of small windows, or of such as lie side by side
(patches). After the conversion to half precision: the cast is what that put there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aegis_pipe.execution.graph import ExecutionGraph, OperatorNode
from aegis_pipe.execution.passes.channels_last import OWN
from aegis_pipe.execution.passes.matching import attribute, only_reader, producer
from aegis_pipe.execution.passes.precision import HALF_DTYPES
from aegis_pipe.execution.passes.rewriting import GraphEdit
from aegis_pipe.tensor import TensorId

name = "fuse_planar_input"

_CHANNELS_MAX, _FILTERS_MAX, _WINDOW_MAX, _STRIDE_MAX = 4, 64, 8, 2
_FILTERS_STEP = 8
_PATCH_STEP = 8
"""Windows side by side have lines of so many pixels, or whole multiples."""
_FLOAT32 = np.dtype(np.float32)


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Replace every such convolution, and what comes before it."""
    edit = GraphEdit(graph)
    for node in graph.operators:
        chain = _chain(graph, node)
        if chain is not None and not edit.is_replaced(*chain, node):
            inputs = (chain[0].inputs[0], *node.inputs[1:])
            fused = OperatorNode(
                node.name, "PlanarConv", OWN, 1, node.attributes, inputs, node.outputs
            )
            edit.replace((*chain, node), fused)
    return edit.result()


def _chain(graph: ExecutionGraph, node: OperatorNode) -> list[OperatorNode] | None:
    """Return the cast, if there is one, and the transpose that lead to a convolution."""
    if node.qualified_operator != "com.microsoft.NhwcFusedConv" or not _is_suited(graph, node):
        return None
    transpose = _before(graph, node.inputs[0], "Transpose")
    if transpose is None or transpose.attributes.get("perm") != (0, 2, 3, 1):
        return None
    cast = _before(graph, transpose.inputs[0], "Cast")
    is_from_float = cast is not None and graph.spec(cast.inputs[0]).dtype == _FLOAT32
    return [cast, transpose] if cast is not None and is_from_float else [transpose]


def _before(graph: ExecutionGraph, tensor: TensorId, operator: str) -> OperatorNode | None:
    """Return who writes a tensor that nobody else reads, if it is this operator."""
    found = producer(graph, tensor)
    is_it = found is not None and found.qualified_operator == operator
    return found if is_it and only_reader(graph, tensor) is not None else None


def _is_suited(graph: ExecutionGraph, node: OperatorNode) -> bool:
    weights = graph.constants.get(node.inputs[1])
    if weights is None or weights.dtype not in HALF_DTYPES.values() or weights.ndim != 4:
        return False
    filters, channels, *window = weights.shape
    if any(node.inputs[3:4]) or attribute(node, "group", 1) != 1:
        return False
    if node.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", b"NOTSET"):
        return False
    strides, dilations = (node.attributes.get(key) or (1, 1) for key in ("strides", "dilations"))
    assert isinstance(strides, tuple), f"{node.name}: strides are {strides!r}"
    assert isinstance(dilations, tuple), f"{node.name}: dilations are {dilations!r}"
    if filters % _FILTERS_STEP or set(dilations) != {1}:
        return False
    return _are_patches(graph, node, window, strides) or (
        channels <= _CHANNELS_MAX
        and filters <= _FILTERS_MAX
        and max(window) <= _WINDOW_MAX
        and all(int(stride) <= _STRIDE_MAX for stride in strides)
    )


def _are_patches(
    graph: ExecutionGraph, node: OperatorNode, window: Sequence[int], strides: Sequence[object]
) -> bool:
    """Return whether windows lie side by side, and their lines have whole packs of pixels."""
    shape = graph.spec(node.inputs[0]).shape
    return (
        list(strides) == list(window)
        and len(window) == 2
        and window[1] % _PATCH_STEP == 0
        and shape[2] % _PATCH_STEP == 0
        and not any(node.attributes.get("pads", ()))  # type: ignore[arg-type]
        and not node.attributes.get("activation")
    )
