"""EmbedLayerNormalization: the sum of looked-up rows, normalised."""

from __future__ import annotations

import math
from collections.abc import Sequence

from aegis_pipe.device.cuda.faults import INDEX_OUT_OF_RANGE
from aegis_pipe.device.cuda.kernels.each import each, given, results, simple_kernel
from aegis_pipe.device.cuda.kernels.nested import bind_nested
from aegis_pipe.device.cuda.kernels.operands import number, operand, required, result
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.device.cuda.kernels.row_normalisations import KERNEL_FAMILY as ROW_FAMILY
from aegis_pipe.device.cuda.kernels.source import FLOATS, computed, stored
from aegis_pipe.kernel import KernelRequest

_IDS, _SEGMENT_IDS, _WORDS, _POSITIONS, _SEGMENTS, _SCALE, _SHIFT, _MASK, _POSITION_IDS = range(9)


def _accepts(request: KernelRequest) -> bool:
    return required(request, _WORDS).dtype in FLOATS and result(request).element_count > 0


def _workspace(request: KernelRequest) -> int:
    """Return room for the sum of the rows, where nobody wants it."""
    wanted = len(request.outputs) > 2 and request.outputs[2] is not None
    return 0 if wanted else result(request).size_bytes


def _look_up(request: KernelRequest, table: int, ids: int, names: tuple[str, str]) -> str:
    """Return a statement that adds the row that an id names, if both are there."""
    spec, indices = operand(request, table), operand(request, ids)
    if spec is None or indices is None:
        return ""
    batch, length, _ = result(request).shape
    # Positions may be given once for all of the batch.
    row = "row" if math.prod(indices.shape) == batch * length else f"row % {length}"
    return (
        f"{{ long long at = (long long){names[1]}[{row}]; "
        f"if (at < 0 || at >= {spec.shape[0]}) {{ *fault = {INDEX_OUT_OF_RANGE}; at = 0; }} "
        f"a += (A)get({names[0]}[at * {spec.shape[1]}LL + c]); }}"
    )


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    spec = result(request)
    _, length, width = spec.shape
    element = stored(spec.dtype)
    position = _look_up(request, _POSITIONS, _POSITION_IDS, ("positions", "position_ids"))
    if not position:
        position = f"a += (A)get(positions[row % {length} * {width} + c]);"
    statements = f"""
  typedef {computed(spec.dtype)} A;
  const long long row = i / {width}, c = i % {width};
  A a = 0;
  {_look_up(request, _WORDS, _IDS, ("words", "ids"))}
  {_look_up(request, _SEGMENTS, _SEGMENT_IDS, ("segments", "segment_ids"))}
  {position}
  total[i] = To<{element}>::of(a);"""
    total = binding.outputs[2] if len(binding.outputs) > 2 else None
    total = binding.workspace if total is None else total
    names = {"ids": _IDS, "segment_ids": _SEGMENT_IDS, "position_ids": _POSITION_IDS}
    tables = {"words": _WORDS, "positions": _POSITIONS, "segments": _SEGMENTS}
    parameters = [*given(binding, names | tables), (f"{element}* total", total)]
    launches = each(binding, spec.element_count, statements, parameters, faults=True)
    scale, shift = operand(request, _SCALE), operand(request, _SHIFT)
    normalised = KernelRequest(
        "LayerNormalization",
        request.node,
        {"axis": 2, "epsilon": number(request, "epsilon")},
        (spec, scale, shift),
        (spec,),
    )
    inputs = [total, binding.inputs[_SCALE], binding.inputs[_SHIFT]]
    launches += bind_nested(binding, ROW_FAMILY, normalised, inputs, binding.outputs[:1])
    counts = results(binding, {"counts": 1})
    if counts:
        step = f"for (int t = 0; t < {length}; ++t) n += (int)mask[i * {length} + t];"
        if operand(request, _MASK) is None:
            step = ""
        parameters = [*given(binding, {"mask": _MASK}), *counts]
        launches += each(binding, spec.shape[0], f"int n = 0; {step} counts[i] = n;", parameters)
    return launches


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    simple_kernel(
        "embed_layer_normalisation",
        ("com.microsoft.EmbedLayerNormalization",),
        _bind,
        accepts=_accepts,
        workspace=_workspace,
    ),
)
