"""Attention of language models over a cache of keys and values.

New keys are turned to their positions and written behind the past; plain attention then runs over
the cache, with the number of keys that are valid in each image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.nested import (
    accepts_nested,
    bind_nested,
    nested_cost,
    nested_scratch,
)
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.errors import KernelError
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_KEY, _VALUE, _PAST_KEY, _PAST_VALUE, _LENGTHS, _COS, _SIN, _POSITIONS, _BIAS = range(1, 10)
_INT64 = np.dtype(np.int64)


def _head_counts(request: KernelRequest) -> tuple[int, int, int]:
    """Return (query heads, key heads, size of a head)."""
    heads = operands.integer(request, "num_heads")
    size = operands.output_spec(request).shape[2] // heads
    return heads, operands.integer(request, "kv_num_heads"), size


def _turned(request: KernelRequest) -> bool:
    return operands.integer(request, "do_rotary") != 0


def _present_spec(request: KernelRequest) -> TensorSpec:
    """Return the spec of the cache of keys, and that of values."""
    query = operands.input_spec(request, 0)
    batch, length, _ = query.shape
    _, kv_heads, size = _head_counts(request)
    for position in (1, 2):
        if operands.has_output(request, position):
            return operands.output_spec(request, position)
    # Nobody wants the cache; it holds what the mask or the past say.
    total = length
    if operands.has_input(request, _PAST_KEY):
        total = max(total, operands.input_spec(request, _PAST_KEY).shape[2])
    return TensorSpec(query.dtype, (batch, kv_heads, total, size))


def _attention_request(request: KernelRequest) -> KernelRequest:
    query, present = operands.input_spec(request, 0), _present_spec(request)
    heads, kv_heads, size = _head_counts(request)
    batch, length, _ = query.shape
    is_prompt = bool(operands.integer(request, "is_prompt"))
    # In a prompt keys and queries start together; else the queries are each image's last.
    lengths = None if is_prompt else TensorSpec(_INT64, (batch,))
    bias = request.inputs[_BIAS]
    return KernelRequest(
        operator="Attention",
        node=request.node,
        attributes={
            "q_num_heads": heads,
            "kv_num_heads": kv_heads,
            "scale": operands.number(request, "scale"),
            "is_causal": 1,
            "softcap": operands.number(request, "softcap"),
            "left_window_size": operands.integer(request, "left_window_size"),
            "right_window_size": -1,
            "qk_matmul_output_mode": 0,
        },
        inputs=(
            TensorSpec(query.dtype, (batch, heads, length, size)),
            present,
            present,
            bias,
            None,
            None,
            lengths,
        ),
        outputs=(operands.output_spec(request),),
    )


def _rotary_request(request: KernelRequest, heads: int) -> KernelRequest:
    query = operands.input_spec(request, 0)
    batch, length, _ = query.shape
    *_, size = _head_counts(request)
    data = TensorSpec(query.dtype, (batch, heads, length, size))
    cos, sin = operands.input_spec(request, _COS), operands.input_spec(request, _SIN)
    return KernelRequest(
        operator="RotaryEmbedding",
        node=request.node,
        attributes={
            "num_heads": heads,
            "interleaved": operands.integer(request, "rotary_interleaved"),
            "rotary_embedding_dim": 2 * cos.shape[1],
        },
        inputs=(data, cos, sin, TensorSpec(_INT64, (batch, length))),
        outputs=(data,),
    )


def _inner_requests(request: KernelRequest) -> list[KernelRequest]:
    """Return attention, then the turns of queries and of keys."""
    heads, kv_heads, _ = _head_counts(request)
    turned = (heads, kv_heads) if _turned(request) else ()
    return [_attention_request(request), *(_rotary_request(request, each) for each in turned)]


def _accepts(request: KernelRequest) -> bool:
    if not operands.integer(request, "is_plain"):
        return False
    if _turned(request) and not operands.has_input(request, _COS):
        return False
    return all(map(accepts_nested, _inner_requests(request)))


def _scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    query, present = operands.input_spec(request, 0), _present_spec(request)
    batch, length, _ = query.shape
    heads, kv_heads, size = _head_counts(request)
    turned = length if _turned(request) else 0
    return (
        TensorSpec(query.dtype, (batch, heads, length, size)),
        TensorSpec(query.dtype, (batch, heads, turned, size)),
        TensorSpec(query.dtype, (batch, kv_heads, length, size)),
        TensorSpec(query.dtype, (batch, kv_heads, turned, size)),
        TensorSpec(present.dtype, (0,) if operands.has_output(request, 1) else present.shape),
        TensorSpec(present.dtype, (0,) if operands.has_output(request, 2) else present.shape),
        TensorSpec(_INT64, (batch, length)),
        TensorSpec(_INT64, (batch,)),
        *map(nested_scratch, _inner_requests(request)),
    )


def _cost(request: KernelRequest) -> float:
    return sum(map(nested_cost, _inner_requests(request)))


def _split_heads(
    request: KernelRequest, inputs: Sequence[np.ndarray | None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return views [batch, heads, length, size] of Q, K and V."""
    heads, kv_heads, size = _head_counts(request)
    query = operands.required(inputs, 0)
    rows = query.reshape(*query.shape[:2], -1, size).swapaxes(1, 2)
    key, value = operands.optional(inputs, _KEY), operands.optional(inputs, _VALUE)
    if key is None or value is None:
        return rows[:, :heads], rows[:, heads : heads + kv_heads], rows[:, heads + kv_heads :]
    key, value = (each.reshape(*each.shape[:2], kv_heads, size) for each in (key, value))
    return rows, key.swapaxes(1, 2), value.swapaxes(1, 2)


def _bind(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    queries, turned_queries, keys, turned_keys, spare_key, spare_value, positions, lengths = (
        scratch[:8]
    )
    attention, *turns = _inner_requests(request)
    query, key, value = _split_heads(request, inputs)
    present_key, present_value = (
        spare if (array := operands.optional(outputs, i)) is None else array
        for i, spare in ((1, spare_key), (2, spare_value))
    )
    past_key, past_value = (operands.optional(inputs, i) for i in (_PAST_KEY, _PAST_VALUE))
    given_lengths = operands.required(inputs, _LENGTHS).reshape(-1)
    given_positions = operands.optional(inputs, _POSITIONS)
    rotate = [
        bind_nested(turn, [source, inputs[_COS], inputs[_SIN], positions], [target], workspace)
        for turn, source, target, workspace in zip(
            turns,
            (queries, keys)[: len(turns)],
            (turned_queries, turned_keys)[: len(turns)],
            scratch[9:],
            strict=True,
        )
    ]
    is_prompt = attention.inputs[6] is None
    used = turned_queries if rotate else queries
    new_keys = turned_keys if rotate else keys
    bias = operands.optional(inputs, _BIAS)
    arrays = [used, present_key, present_value, bias, None, None, None if is_prompt else lengths]
    attend = bind_nested(attention, arrays, outputs[:1], scratch[8])
    length, total = queries.shape[2], present_key.shape[2]
    steps = np.arange(length)

    def run() -> None:
        np.add(given_lengths, 1, out=lengths)
        if is_prompt:
            lengths.fill(length)
        _check_lengths(request, lengths, length, total)
        np.copyto(queries, query)
        np.copyto(keys, key)
        if given_positions is None:
            np.subtract(lengths[:, None], length, out=positions)
            np.add(positions, steps, out=positions)
        else:
            np.copyto(positions, given_positions)
        for turn in rotate:
            turn()
        for cache, past, new in (
            (present_key, past_key, new_keys),
            (present_value, past_value, value),
        ):
            for image, end in enumerate(lengths.tolist()):
                start = end - length
                if past is None:
                    cache[image, :, :start] = 0
                else:  # the very same bytes, if the cache is updated in place
                    np.copyto(cache[image, :, :start], past[image, :, :start])
                cache[image, :, start:end] = new[image]
                cache[image, :, end:] = 0
        attend()

    return run


def _check_lengths(request: KernelRequest, lengths: np.ndarray, least: int, most: int) -> None:
    if lengths.size and not least <= lengths.min() <= lengths.max() <= most:
        raise KernelError(
            f"seqlens_k + 1 reaches from {lengths.min()} to {lengths.max()}, "
            f"but has to be within {least} and {most}",
            context=f"node `{request.node}` ({request.operator})",
            hint="give the attention mask that belongs to the past that is given",
        )


def _listed_request(request: KernelRequest) -> KernelRequest:
    """Return the request with positions one by one."""
    data = operands.input_spec(request, 0)
    length = data.shape[-2]
    positions = TensorSpec(_INT64, (data.shape[0], length))
    return KernelRequest(
        operator="RotaryEmbedding",
        node=request.node,
        attributes=request.attributes,
        inputs=(*request.inputs[:3], positions),
        outputs=request.outputs,
    )


def _accepts_rotary(request: KernelRequest) -> bool:
    return accepts_nested(_listed_request(request))


def _rotary_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    listed = _listed_request(request)
    return (operands.input_spec(listed, 3), nested_scratch(listed))


def _bind_rotary(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    positions, workspace = scratch
    first = operands.required(inputs, 3).reshape(-1)
    steps = np.arange(positions.shape[1])
    call = bind_nested(_listed_request(request), [*inputs[:3], positions], outputs, workspace)

    def run() -> None:
        np.add(first[:1], steps, out=positions)
        call()

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "attention.group_query",
        ("com.microsoft.GroupQueryAttention",),
        _bind,
        accepts=_accepts,
        scratch=_scratch,
        cost=_cost,
        in_place=((_PAST_KEY, 1), (_PAST_VALUE, 2)),
    ),
    planned_kernel(
        "rotary_embedding.from_first",
        ("com.microsoft.RotaryEmbedding",),
        _bind_rotary,
        accepts=_accepts_rotary,
        scratch=_rotary_scratch,
    ),
)
